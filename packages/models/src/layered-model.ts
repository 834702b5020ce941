// The seam that everything written once for all architectures stands on: an embedding, a list of layers, a head.
// Hidden states are [tokens, d], whatever sequences the tokens belong to: only attention and positions know.
import type { Value } from '@fellrec/graph';

/** Queries [tokens, heads * headDim], keys and values [tokens, kvHeads * headDim] of the same tokens. */
export interface Attended {
  readonly queries: Value;
  readonly keys: Value;
  readonly values: Value;
}

/** What a layer of a causal language model needs besides hidden states. */
export interface LayerContext {
  /** int64 [tokens]: number of tokens of its sequence before each token. */
  readonly positions: Value;
  /** Cosine and sine tables [positions, headDim / 2]. */
  readonly cos: Value;
  readonly sin: Value;
  /** What each query reads, [tokens, heads * headDim]. Queries are already scaled by 1 / sqrt(headDim). */
  attend(layer: number, attended: Attended): Value;
  /**
   * The adapter's additions to projections of one `x`, by their paths (`layers.0.self_attn.q_proj`); undefined where
   * there is none. With `columns` [in], the projections are of `x * columns`.
   */
  adapt?(paths: readonly string[], x: Value, columns?: Value): readonly (Value | undefined)[];
}

/** `Tokens` is what the embedding reads, `Context` what a layer reads besides hidden states. */
export interface LayeredModel<Tokens, Context> {
  readonly layerCount: number;
  /** The table of token embeddings, [vocabulary, d]. */
  words(): Value;
  /** Tokens to hidden states. */
  embed(tokens: Tokens): Value;
  /**
   * Hidden states after layer `index` (from 0). With `rows` (int64 [n]) only these rows are computed after the
   * attention and returned, [n, d]: the last layer is needed only where something is read.
   */
  layer(index: number, hidden: Value, context: Context, rows?: Value): Value;
}

/** A causal language model; it embeds token ids [tokens]. */
export interface CausalModel extends LayeredModel<Value, LayerContext> {
  /** The normalised hidden states, [n, d], that the head and grounding read. */
  normalize(hidden: Value): Value;
  /** Normalised hidden states [n, d] to logits [n, vocabulary]. */
  logits(normalized: Value): Value;
}

/** Hidden states after all layers, before the final norm; with `rows`, of these rows only. */
export function runLayers<Tokens, Context>(
  model: LayeredModel<Tokens, Context>,
  tokens: Tokens,
  context: Context,
  rows?: Value,
): Value {
  let hidden = model.embed(tokens);
  for (let index = 0; index < model.layerCount; index++)
    hidden = model.layer(index, hidden, context, index === model.layerCount - 1 ? rows : undefined);
  return hidden;
}
