// A strategy turns the reports of a round into a row-stochastic matrix over the clients: new = matrix x old. It sees no
// tensors: the round computes the comparisons that it asks for, and has clients judge what it proposes.
import type { SimilarityOn } from '../parameters/round-parameters.ts';

/** What a client says of its training, apart from the parameters. */
export interface ClientReport {
  readonly client: string;
  readonly group?: string | undefined;
  /** Mean training loss. */
  readonly loss: number;
  readonly samples: number;
}

/** A round that is over; rows of its mixing follow `clients`. */
export interface PreviousRound {
  readonly clients: readonly string[];
  readonly mixing: Mixing;
}

export interface RoundStatistics {
  /** From 0. */
  readonly round: number;
  /** The round before; undefined in the first one. */
  readonly previous?: PreviousRound | undefined;
  /** Between the clients, in the reports' order; where the strategy has a `similarityOn`. */
  readonly cosines?: readonly (readonly number[])[] | undefined;
  /** x_i . x_j of what the cosines are of. */
  readonly innerProducts?: readonly (readonly number[])[] | undefined;
  /** |w_i - w_j|^2 of the trained parameters, over what both hold; infinite for clients that share nothing. */
  readonly squaredDistances?: readonly (readonly number[])[] | undefined;
  /** `[i][j]`: |w_j - start_i|^2, with client i's own parameters where j does not hold them. */
  readonly squaredMoves?: readonly (readonly number[])[] | undefined;
  /**
   * By client the validation losses of its candidates, in their order; undefined for a client that has no validation
   * samples or did not deliver. Where the strategy has `candidates`, once clients have judged them.
   */
  readonly judged?: readonly (readonly number[] | undefined)[] | undefined;
}

/** What a strategy may ask for beside the cosines. Each of the last two is one more pass over all clients' parameters. */
export type Comparison = 'innerProducts' | 'squaredDistances' | 'squaredMoves';

/** Parameters that a client judges on its own validation samples, before all are mixed. */
export interface Candidate {
  readonly name: string;
  /** The weights of the clients' trained parameters, as a row of a matrix; 'start': what it started the round from. */
  readonly row: readonly number[] | 'start';
}

export interface Mixing {
  /** `matrix[c][j]`: the weight of client j's parameters in client c's new ones. Rows sum to 1. */
  readonly matrix: readonly (readonly number[])[];
  /** This round's, where the strategy has a `similarityOn`; the round adds them. */
  readonly cosines?: readonly (readonly number[])[];
  /** Cosines smoothed over rounds, where they are. */
  readonly smoothed?: readonly (readonly number[])[];
  /** d_ij in [0, 1]. */
  readonly similarity?: number[][];
  /** p_c, the clients' losses after the softmax. */
  readonly softmax?: number[];
  /** w_c in [0, 1]: how much client c listens to the others. */
  readonly warmth?: number[];
  /** Each client's cluster, from 0. */
  readonly clusters?: readonly number[];
  /** The name of the candidate that each client took. */
  readonly chosen?: readonly string[];
  /** By client the validation loss of each candidate; none of a client that judged none. */
  readonly candidateLosses?: readonly Readonly<Record<string, number>>[];
}

export interface Strategy {
  readonly name: string;
  /** What it needs the cosines of; absent if it does not look at the parameters. */
  readonly similarityOn?: SimilarityOn;
  /** What else it needs, in the statistics under the same name. */
  readonly compares?: readonly Comparison[];
  /** It looks at the round before. */
  readonly remembers?: boolean;
  /** Clients are sent others' parameters as they are: not for clients that must not see them. */
  readonly showsOthers?: boolean;
  /** Tensors that never leave their client: not compared, not mixed, not sent. None if absent. */
  readonly personal?: (tensor: string) => boolean;
  /**
   * What each client is to judge before all are mixed, at least one; none are judged if absent. A pure function. The
   * first is what `mix` is to give a client that did not.
   */
  candidates?(
    reports: readonly ClientReport[],
    statistics: RoundStatistics,
  ): readonly (readonly Candidate[])[];
  /** A pure function. */
  mix(reports: readonly ClientReport[], statistics: RoundStatistics): Mixing;
}
