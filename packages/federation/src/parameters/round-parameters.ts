// The seam to where a round's parameters lie: in memory, or in files where they are too many.
import type { NamedTensors } from '@fellrec/graph';
import type { Products } from '../products/products.ts';

/** Reads one client's parameters. */
export type ReadParameters = () => Promise<NamedTensors>;

/**
 * What clients compare: what they learned this round (parameters - start), the parameters themselves, or how far these
 * are from the common start (parameters - common start). Both of the latter two reinforce themselves: clients that were
 * mixed are alike from then on, so they are mixed more. Only the update is about the clients' data alone.
 */
export type SimilarityOn = 'update' | 'parameters' | 'displacement';

/** Clients go by number. All have the same tensors, which is not checked here. */
export interface RoundParameters {
  /** What each client starts the round from. Where they lie in files, to be read before the next `mix`. */
  starts(): readonly ReadParameters[];
  /** Takes what a client has after training. */
  keep(client: number, trained: NamedTensors): Promise<void>;
  /** x_i . x_j between all clients, x all their tensors as one flat vector, once each has trained. */
  gram(on: SimilarityOn): Promise<number[][]>;
  /** The same of n clients' trained parameters and then of their n starts, each minus the common start: [2n][2n]. */
  gramWithStarts(): Promise<number[][]>;
  /** What `mix` would make of each row, without ending the round; equal rows once. To be read before the next `mix`. */
  mixtures(rows: readonly (readonly number[])[]): Promise<readonly ReadParameters[]>;
  /** Begins the next round: new starts = matrix x trained, each from the trained ones alone. */
  mix(matrix: readonly (readonly number[])[]): Promise<void>;
  close(): Promise<void>;
}

export interface RoundParametersOptions {
  /** The common start, whose tensors and dimensions all have, in the order in which clients get them. */
  readonly like: NamedTensors;
  /** What each client starts the first round from. */
  readonly starts: readonly ReadParameters[];
  readonly products: Products;
}
