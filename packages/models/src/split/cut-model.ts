// What cutting needs to know of an architecture: the graph of one layer, and what it is fed for a layout of tokens.
// Both sides of a cut run their layers one by one, so that any k can be chosen, and clients with different k share them.
import type { Feeds, NamedTensors, Outputs, Tensor, Value } from '@fellrec/graph';
import type { DecodingCache } from '../decoding.ts';
import type { LayeredModel } from '../layered-model.ts';
import type { AdaptedProjections, LoraConfig } from '../lora.ts';
import type { ItemSequence } from '../recformer/batch.ts';
import type { MiddleDropout, TokenLayout } from './middle.ts';

/** Layers from .. to - 1. */
export interface LayerRange {
  readonly from: number;
  readonly to: number;
}

export const isIn =
  ({ from, to }: LayerRange) =>
  (layer: number): boolean =>
    layer >= from && layer < to;

/** Hidden states through a range of layers. */
export function runRange<Tokens, Context>(
  model: LayeredModel<Tokens, Context>,
  { from, to }: LayerRange,
  hidden: Value,
  context: Context,
): Value {
  let states = hidden;
  for (let index = from; index < to; index++) states = model.layer(index, states, context);
  return states;
}

/** What is trained: an adapter's tensors with its configuration, or (without one) tensors in the checkpoint's place. */
export interface Trained {
  readonly lora?: LoraConfig;
  readonly tensors: NamedTensors;
}

export interface LayersGraph {
  /** The input `hidden`, [tokens, d]. */
  readonly hidden: Value;
  /** Hidden states after the layers, [tokens, d]. */
  readonly states: Value;
  /** What is trained of the layers, as inputs by their names. */
  readonly parameters: ReadonlyMap<string, Value>;
  /** Dropout masks, inputs too. */
  readonly masks: ReadonlyMap<string, Value>;
  /** Their keys and values by `keyName` and `valueName`, where it can decode. */
  readonly read: Outputs;
}

export interface LayerOptions {
  readonly trained?: Trained | undefined;
  /** With dropout. */
  readonly training: boolean;
}

/** A sequence as the embeddings read it; the types and positions of items are an encoder's. */
export type EmbeddedTokens = Pick<ItemSequence, 'ids'> & Partial<ItemSequence>;

export interface CutModel {
  readonly layerCount: number;
  readonly hiddenSize: number;
  readonly vocabularySize: number;
  /** The head's matrix is the table of token embeddings. */
  readonly tied: boolean;
  /** The table of token embeddings, [vocabulary, d]. */
  words(): Value;
  /** The graph of the embeddings: `states`, [tokens, d]. */
  embedding(): Outputs;
  /** How sequences lie side by side; what they begin with alike is there once, where that can be. */
  layout(sequences: readonly EmbeddedTokens[]): TokenLayout;
  /** What the embeddings are fed for sequences in a layout. */
  embeddingFeeds(sequences: readonly EmbeddedTokens[], layout: TokenLayout): Feeds;
  /** Scores of all tokens by hidden states [n, d] after the last layer, [n, vocabulary]; an encoder's are its word table's. */
  head(hidden: Value): Value;
  adapted(lora: LoraConfig): AdaptedProjections;
  /** What is wrong with a layout; undefined if nothing is. */
  problem(layout: TokenLayout): string | undefined;
  /** Tells layouts apart whose graphs differ. It may decide how sequences are padded. */
  form(layout: Omit<TokenLayout, 'time'>): string;
  layers(range: LayerRange, form: string, options: LayerOptions): LayersGraph;
  /** What layers are fed besides hidden states: positions and masks. */
  feeds(layout: TokenLayout): Feeds;
  dropout(
    masks: ReadonlyMap<string, Value>,
    rate: number,
    layout: TokenLayout,
    dropout: MiddleDropout,
  ): Feeds;
  /** Where the model generates. */
  readonly decoding?: {
    /** One more token of every beam, as `decodingProgram`: `states` instead of tokens, and the grown caches. */
    layers(range: LayerRange, options: LayerOptions): Outputs;
    /** Of the keys and values that prompts left. */
    cache(read: Readonly<Record<string, Tensor>>, layout: TokenLayout, beams: number): DecodingCache;
  };
}
