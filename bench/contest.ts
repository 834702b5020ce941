// What the benchmarks beside PyTorch share. Every contestant is a process of its own, so that each has its own peak of
// memory. They take turns, and the fastest run of each step counts: a machine that others use may slow single steps tenfold.
import { execFileSync } from 'node:child_process';
import { availableParallelism, cpus } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

export interface Contestant {
  readonly name: string;
  readonly command: string;
  readonly args: readonly string[];
}

/** What a contestant prints as its last line, in JSON. */
export interface Measured {
  /** Of the steps, which are the same ones in the same order for all contestants of a kind. */
  readonly seconds: readonly number[];
  readonly peakRssMiB: number;
}

export const machine = {
  cpu: cpus()[0]!.model,
  cores: availableParallelism(),
  node: process.version,
};

/** A script of this folder for our side, run as this process is (its conditions included). */
export const ours = (name: string, script: string, args: Record<string, string>): Contestant => ({
  name,
  command: process.execPath,
  args: [...process.execArgv, here(script), ...flags(args)],
});

/** A script of this folder for PyTorch's side. */
export const peer = (
  name: string,
  python: string,
  script: string,
  args: Record<string, string>,
): Contestant => ({ name, command: python, args: [here(script), ...flags(args)] });

/** Runs all `rounds` times, alternating; of each contestant, the fastest run of every step and the highest peak of memory. */
export function contest<M extends Measured>(
  contestants: readonly Contestant[],
  rounds: number,
): Map<string, M> {
  const best = new Map<string, M>();
  for (let round = 0; round < rounds; round++)
    for (const contestant of contestants) {
      const found = run<M>(contestant);
      const { name } = contestant;
      process.stderr.write(
        `${name}: ${total(found.seconds).toFixed(1)} s, ${Math.round(found.peakRssMiB)} MiB\n`,
      );
      const known = best.get(name) ?? found;
      best.set(name, {
        ...found,
        seconds: found.seconds.map((s, step) => Math.min(s, known.seconds[step]!)),
        peakRssMiB: Math.max(found.peakRssMiB, known.peakRssMiB),
      });
    }
  return best;
}

/** Writes the model as folders that transformers loads without converting, one a dtype: by dtype, the folder. */
export function peerWeights(
  python: string,
  model: string,
  dtypes: readonly string[],
  folder: string,
): Map<string, string> {
  const stored = (dtype: string) => (dtype === 'bf16' ? 'bfloat16' : 'float32');
  for (const dtype of new Set(dtypes.map(stored)))
    execFileSync(python, [here('peer_weights.py'), ...flags({ model, dtype, out: join(folder, dtype) })], {
      encoding: 'utf8',
      stdio: 'pipe',
    });
  return new Map(dtypes.map((dtype) => [dtype, join(folder, stored(dtype))]));
}

export const total = (numbers: readonly number[]): number => numbers.reduce((sum, x) => sum + x, 0);

export const list = (text: string): string[] => text.split(',').filter((part) => part !== '');

export const rounded = (x: number, digits = 2): number => Number(x.toFixed(digits));

function run<M>({ command, args }: Contestant): M {
  // What it says on standard error becomes part of the error if it fails.
  const output = execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
  return JSON.parse(output.trim().split('\n').at(-1)!);
}

function here(file: string): string {
  return join(fileURLToPath(new URL('.', import.meta.url)), file);
}

function flags(args: Record<string, string>): string[] {
  return Object.entries(args).flatMap(([name, value]) => [`--${name}`, value]);
}
