// A strategy turns the updates of a round into a row-stochastic matrix over the clients: new = matrix x old.
import type { NamedTensors } from '@fellrec/graph';

export interface ClientUpdate {
  readonly client: string;
  /** What the client started the round from. */
  readonly start: NamedTensors;
  /** What it had after local training. */
  readonly parameters: NamedTensors;
  /** Mean training loss. */
  readonly loss: number;
  readonly samples: number;
}

export interface Mixing {
  /** `matrix[c][j]`: the weight of client j's parameters in client c's new ones. Rows sum to 1. */
  readonly matrix: readonly (readonly number[])[];
  /** d_ij in [0, 1]. */
  readonly similarity?: number[][];
  /** p_c, the clients' losses after the softmax. */
  readonly softmax?: number[];
  /** w_c in [0, 1]: how much client c listens to the others. */
  readonly warmth?: number[];
}

export interface Strategy {
  readonly name: string;
  /** A pure function of the updates. `round` is from 0. */
  mix(updates: readonly ClientUpdate[], round: number): Mixing;
}
