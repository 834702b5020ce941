// What a round's mixing came to, in a few numbers.
import { type CosineMeans, effectiveClients, type RoundRecord } from '@fellrec/federation';

/** What a round's mixing came to; its matrices are in the round's own file. */
export interface MixingResult {
  readonly round: number;
  /** Mean over clients of 1 / sum of squared weights: 1 keeps its own, n takes all alike. */
  readonly effectiveClients: number;
  /** Mean over pairs of different clients, where cosines were computed. */
  readonly cosine?: number;
  /** Between clients of one group and of different ones, where cosines were computed and groups are known. */
  readonly cosineMeans?: CosineMeans;
  /** How many clients took each candidate, where they chose. */
  readonly chosen?: Readonly<Record<string, number>>;
  /** What judging the candidates took, of all clients together. */
  readonly candidateSeconds?: number;
  readonly clients: Readonly<Record<string, ClientMixing>>;
}

export interface ClientMixing {
  readonly effectiveClients: number;
  /** Of heating, 0 to 1. */
  readonly warmth?: number;
  /** The candidate that it took. */
  readonly chosen?: string;
}

type MixedRound = Pick<RoundRecord, 'round' | 'clients' | 'cosineMeans'> & {
  readonly mixing: Pick<RoundRecord['mixing'], 'matrix' | 'cosines' | 'warmth' | 'chosen'>;
  readonly seconds: Pick<RoundRecord['seconds'], 'candidates'>;
};

export function mixingResult({ round, clients, cosineMeans, mixing, seconds }: MixedRound): MixingResult {
  const { matrix, cosines, warmth, chosen } = mixing;
  const counts = effectiveClients(matrix);
  const between = cosines?.flatMap((row, i) => row.slice(i + 1)) ?? [];
  return {
    round: round + 1,
    effectiveClients: mean(counts),
    ...(between.length > 0 && { cosine: mean(between) }),
    ...(cosineMeans && { cosineMeans }),
    ...(chosen && {
      chosen: Object.fromEntries(
        [...Map.groupBy(chosen, (name) => name)].map(([name, own]) => [name, own.length]),
      ),
    }),
    ...(seconds.candidates && {
      candidateSeconds: Object.values(seconds.candidates).reduce((sum, own) => sum + own, 0),
    }),
    clients: Object.fromEntries(
      clients.map((client, c) => [
        client,
        {
          effectiveClients: counts[c]!,
          ...(warmth && { warmth: warmth[c]! }),
          ...(chosen && { chosen: chosen[c]! }),
        },
      ]),
    ),
  };
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
