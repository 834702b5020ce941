// A strategy turns the reports of a round into a row-stochastic matrix over the clients: new = matrix x old. It sees no
// tensors: the round computes the cosines that it asks for.
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
}

export interface Strategy {
  readonly name: string;
  /** What it needs the cosines of; absent if it does not look at the parameters. */
  readonly similarityOn?: SimilarityOn;
  /** Tensors that never leave their client: not compared, not mixed, not sent. None if absent. */
  readonly personal?: (tensor: string) => boolean;
  /** A pure function. */
  mix(reports: readonly ClientReport[], statistics: RoundStatistics): Mixing;
}
