// Numbers of training samples, and methods that are there with several of them: each number counts as a method.
import type { RoundRecord } from '@fellrec/federation';
import type { Trial } from './compared.ts';

/** Trials, with the number of samples in a method's name where it is there with several for one seed. */
export function apartBySamples(trials: readonly Trial[]): Trial[] {
  const several = new Set<string>();
  for (const own of Map.groupBy(trials, ({ method, seed }) => `${method}-${seed}`).values())
    if (new Set(own.map(({ trainSamples }) => trainSamples)).size > 1) several.add(own[0]!.method);
  return trials.map((trial) =>
    several.has(trial.method) && trial.trainSamples !== undefined
      ? { ...trial, method: withSamples(trial.method, trial.trainSamples) }
      : trial,
  );
}

function withSamples(method: string, samples: number): string {
  return `${method}, ${samples} samples`;
}

export function withoutSamples(method: string): string {
  return method.replace(/, \d+ samples$/, '');
}

/** Of all clients that took part in a round. */
export function trainSamplesOf({ samples }: Pick<RoundRecord, 'samples'>): number {
  return Object.values(samples).reduce((sum, own) => sum + own, 0);
}
