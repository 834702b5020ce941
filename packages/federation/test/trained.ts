// A round's clients after their training, and what a strategy makes of them.
import { createHash } from 'node:crypto';
import type { NamedTensors } from '@fellrec/graph';
import { comparisonsOf } from '../src/comparisons.ts';
import {
  type Candidate,
  type ClientReport,
  type Mixing,
  plainProducts,
  type RoundStatistics,
  type Strategy,
} from '../src/index.ts';
import { type HeldParameters, heldParameters } from '../src/parameters/held.ts';
import { inMemory } from '../src/parameters/memory.ts';

/** A client's report, with the parameters before and after its training. */
export interface Trained extends ClientReport {
  readonly start: NamedTensors;
  readonly parameters: NamedTensors;
}

/** All tensors of the common start are 0.5 if there is none. */
export async function hold(updates: readonly Trained[], common?: NamedTensors): Promise<HeldParameters> {
  const likeIn = (own: NamedTensors): NamedTensors =>
    new Map(
      [...own].map(([name, tensor]) => [
        name,
        common?.get(name) ?? { ...tensor, data: tensor.data.map(() => 0.5) },
      ]),
    );
  const parameters = await heldParameters({
    held: updates.map(({ start }) => likeIn(start)),
    starts: updates.map(
      ({ start }) =>
        async () =>
          start,
    ),
    open: (group) => inMemory({ ...group, products: plainProducts }),
  });
  for (const [c, update] of updates.entries()) await parameters.keep(c, update.parameters);
  return parameters;
}

/** A client's loss with a candidate. */
export type Judge = (update: Trained, candidate: Candidate, updates: readonly Trained[]) => number;

/** By the names alone: whatever their order, and never the same twice. */
export const byName: Judge = ({ client }, { name }) =>
  createHash('sha256').update(`${client} ${name}`).digest().readUInt32LE() / 2 ** 32;

/** By the parameters: their squared distance from a wave of the client's. */
export const byParameters: Judge = ({ samples, start }, { row }, updates) => {
  const vectors = updates.map(({ parameters }) => flat(parameters));
  const vector =
    row === 'start'
      ? flat(start)
      : vectors[0]!.map((_, k) => row.reduce((sum, weight, j) => sum + weight * vectors[j]![k]!, 0));
  return vector.reduce((sum, x, k) => sum + (x - 50 * Math.sin(samples + k)) ** 2, 0);
};

export interface MixingOptions {
  readonly round?: number;
  readonly previous?: RoundStatistics['previous'];
  readonly common?: NamedTensors;
  readonly judge?: Judge;
}

/** What a strategy makes of a round, with the comparisons and the judgements that it asks for. */
export async function mixingOf(
  strategy: Strategy,
  updates: readonly Trained[],
  { round = 0, previous, common, judge = byName }: MixingOptions = {},
): Promise<Mixing> {
  const numbers = [...updates.keys()];
  const compared = await comparisonsOf(strategy, await hold(updates, common), numbers, updates.length);
  const statistics = { round, previous, ...compared };
  const judged = strategy
    .candidates?.(updates, statistics)
    .map((own, c) => own.map((candidate) => judge(updates[c]!, candidate, updates)));
  return strategy.mix(updates, { ...statistics, judged });
}

export function flat(named: NamedTensors): number[] {
  return [...named.values()].flatMap(({ data }) => [...data]);
}
