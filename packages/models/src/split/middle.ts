// The seam that a model is cut at: who has the first layers and the last one sends hidden states through the middle ones,
// wherever these are.
import type { Float32Tensor } from '@fellrec/graph';

/**
 * Sequences side by side behind what all of them begin with. Hidden states have `prefix` rows of that, then `time` rows
 * of each sequence, padded on the right.
 */
export interface TokenLayout {
  /** Tokens of each sequence, those of the prefix included. */
  readonly lengths: readonly number[];
  /** Rows of each sequence. */
  readonly time: number;
  /** Tokens that all sequences begin with; 0: none. */
  readonly prefix: number;
}

export interface ForwardOptions {
  /** For which later call something is kept, in place of what was; nothing if absent. */
  readonly keep?: 'gradient' | 'cache';
  /** Whether the middle layers' adapter applies, if there is one. */
  readonly adapted: boolean;
  /** With an adapter that has dropout, in training. */
  readonly dropout?: MiddleDropout;
}

/** Names the streams that dropout masks come from: the same as of the layers that the client has. */
export interface MiddleDropout {
  readonly seed: readonly [number, ...(string | number)[]];
  /** Place of each sequence in its batch. */
  readonly sequences: readonly number[];
}

export interface DecodeRequest {
  /** Hidden states of the new tokens, [users * beams, d]. */
  readonly states: Float32Tensor;
  /** Sequences that go on, by their place in the kept layout, ascending; the others are forgotten. */
  readonly users: readonly number[];
  readonly beams: number;
  /** For each row the row of the call before that it goes on from; ignored in the first call after the prompt. */
  readonly parents: readonly number[];
}

/** Layers k .. n - 2 as one client sees them. Calls come one after another. */
export interface MiddleLayers {
  /** Whether these layers learn too: they have an adapter of their own. */
  readonly trains: boolean;
  /** States before layer k, [tokens, d], to states before layer n - 1. */
  forward(states: Float32Tensor, layout: TokenLayout, options: ForwardOptions): Promise<Float32Tensor>;
  /**
   * The gradient of the kept forward pass' result to that of its states. Gradients of an adapter of the middle layers
   * add up until `update`.
   */
  backward(gradient: Float32Tensor): Promise<Float32Tensor>;
  /**
   * An optimizer step of the middle layers' adapter. Clipping is by the norm over all layers, of which the caller's part
   * is `squaredNorm`. Returns the middle's part; 0 if it has no adapter.
   */
  update(squaredNorm: number, learningRate: number): Promise<number>;
  /** One more token of every beam, behind what a forward pass kept. States before layer n - 1, [users * beams, d]. */
  decode(request: DecodeRequest): Promise<Float32Tensor>;
}
