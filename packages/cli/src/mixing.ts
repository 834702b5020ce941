// What a round's mixing came to, in a few numbers.
import { type CosineMeans, effectiveClients, type RoundRecord } from '@fellrec/federation';

/** What a round's mixing came to; its matrices are in the round's own file. */
export interface MixingResult {
  readonly round: number;
  /** Mean over clients of 1 / sum of squared weights: 1 keeps its own, n takes all alike. */
  readonly effectiveClients: number;
  /** Between clients of one group and of different ones, where cosines were computed. */
  readonly cosineMeans?: CosineMeans;
  /** How many clients took each candidate, where they chose. */
  readonly chosen?: Readonly<Record<string, number>>;
}

type MixedRound = Pick<RoundRecord, 'round' | 'cosineMeans'> & {
  readonly mixing: Pick<RoundRecord['mixing'], 'matrix' | 'chosen'>;
};

export function mixingResult({ round, cosineMeans, mixing: { matrix, chosen } }: MixedRound): MixingResult {
  const counts = effectiveClients(matrix);
  const names = [...new Set(chosen)];
  return {
    round: round + 1,
    effectiveClients: counts.reduce((sum, count) => sum + count, 0) / counts.length,
    ...(cosineMeans && { cosineMeans }),
    ...(chosen && {
      chosen: Object.fromEntries(names.map((name) => [name, chosen.filter((one) => one === name).length])),
    }),
  };
}
