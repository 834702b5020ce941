// The seam to where a round's parameters lie: in memory, or in files where they are too many.
import type { NamedTensors } from '@fellrec/graph';
import type { Products } from '../products/products.ts';

/** Reads one client's parameters. */
export type ReadParameters = () => Promise<NamedTensors>;

/** What clients compare: what they learned this round (parameters - start), or the parameters themselves. */
export type SimilarityOn = 'update' | 'parameters';

/** Clients go by number. All have the same tensors, which is not checked here. */
export interface RoundParameters {
  /** What each client starts the round from. Where they lie in files, to be read before the next `mix`. */
  starts(): readonly ReadParameters[];
  /** Takes what a client has after training. */
  keep(client: number, trained: NamedTensors): Promise<void>;
  /** x_i . x_j between all clients, x all their tensors as one flat vector, once each has trained. */
  gram(on: SimilarityOn): Promise<number[][]>;
  /** Begins the next round: new starts = matrix x trained, each from the trained ones alone. */
  mix(matrix: readonly (readonly number[])[]): Promise<void>;
  close(): Promise<void>;
}

export interface RoundParametersOptions {
  /** Names and dimensions of the tensors, in the order in which clients get them. */
  readonly like: NamedTensors;
  /** What each client starts the first round from. */
  readonly starts: readonly ReadParameters[];
  readonly products: Products;
}
