// RecFormer (arXiv 2305.13731) as a graph: Longformer's encoder (arXiv 2004.05150) over items as text. Four embeddings
// are added up; the layers are normalised after each sum; the first token, and only it, reads the whole sequence.
// Weights keep the names of Hugging Face's checkpoints.
import {
  add,
  concat,
  type Dim,
  gather,
  gelu,
  layerNorm,
  linear,
  plus,
  reshape,
  scale,
  slice,
  type Value,
  weight,
} from '@fellrec/graph';
import { tensorOf } from '../checkpoint/part.ts';
import type { Attended, LayeredModel } from '../layered-model.ts';
import type { LoraGraph } from '../lora.ts';
import { type FirstAttention, firstAttention, type Projected } from './attention.ts';
import type { RecformerCheckpoint } from './checkpoint.ts';

/** What is known of each token, int64 [tokens] each. */
export interface EncoderTokens {
  readonly ids: Value;
  /** Their word embeddings [tokens, d], where they are not to be looked up. */
  readonly words?: Value;
  /** Rows of the position table. */
  readonly positions: Value;
  /** 0 of the first token, 1 of an attribute's name, 2 of its value, 3 of padding. */
  readonly tokenTypes: Value;
  /** 0 of the first token, 1 of the newest item's tokens, 2 of the next older one's, ... */
  readonly itemPositions: Value;
}

export interface EncoderContext {
  readonly batch: Dim;
  readonly time: Dim;
  /** What each token reads around it, [tokens, heads * headDim]. Queries are already scaled by 1 / sqrt(headDim). */
  attend(layer: number, attended: Attended): Value;
  /**
   * The first tokens: their places (int64 [batch]) and the mask of what they read. Without it they read as all others
   * do, by the ordinary projections. A layer's `rows` are theirs.
   */
  readonly first?: Pick<FirstAttention, 'mask'> & { readonly rows: Value };
  readonly lora?: Pick<LoraGraph, 'adapt' | 'matrix'>;
}

/** By far the largest table: a step reads few of its rows. */
export const wordTable = 'embeddings.word_embeddings.weight';

/** The graph of a checkpoint: its weights stay in their files, but for those that `trained` has as inputs. */
export function recformer(
  checkpoint: RecformerCheckpoint,
  trained: ReadonlyMap<string, Value> = new Map(),
): LayeredModel<EncoderTokens, EncoderContext> {
  const { config } = checkpoint;
  const { headDim, normEpsilon } = config;
  const get = (name: string) => trained.get(name) ?? weight(name, tensorOf(checkpoint, name));
  const norm = (path: string, x: Value) =>
    layerNorm(x, get(`${path}.weight`), get(`${path}.bias`), normEpsilon);

  /** Projections of one x. */
  function project(paths: readonly string[], x: Value, { lora }: EncoderContext): Value[] {
    const additions = lora?.adapt(paths, x) ?? [];
    return paths.map((path, i) => {
      const base = linear(x, get(`${path}.weight`), get(`${path}.bias`));
      return additions[i] ? add(base, additions[i]) : base;
    });
  }

  /** What is multiplied to project x: the base's matrix, and the adapter's. */
  function projected(path: string, x: Value, { lora }: EncoderContext): Projected[] {
    const base = { weights: get(`${path}.weight`), x };
    const adapter = lora?.matrix(path, x);
    if (!adapter) return [base];
    return adapter.x === x ? [{ weights: add(base.weights, adapter.weights), x }] : [base, adapter];
  }

  const attentionPath = (index: number) => `encoder.layer.${index}.attention.self`;
  const scaled = (queries: Value) => scale(queries, 1 / Math.sqrt(headDim));

  function local(index: number, x: Value, context: EncoderContext): Value {
    const path = attentionPath(index);
    const paths = ['query', 'key', 'value'].map((name) => `${path}.${name}`);
    const [queries, keys, values] = project(paths, x, context) as [Value, Value, Value];
    return context.attend(index, { queries: scaled(queries), keys, values });
  }

  /** [batch, d]. */
  function ofFirst(index: number, x: Value, context: EncoderContext): Value {
    const path = attentionPath(index);
    const { batch, time, first } = context;
    const [queries] = project([`${path}.query_global`], gather(x, first!.rows), context) as [Value];
    return firstAttention(
      scaled(queries),
      projected(`${path}.key_global`, x, context),
      projected(`${path}.value_global`, x, context),
      get(`${path}.value_global.bias`),
      { batch, time, headDim, mask: first!.mask },
    );
  }

  function attention(index: number, x: Value, context: EncoderContext, rows: Value | undefined): Value {
    const { batch, time, first } = context;
    const d = config.hiddenSize;
    if (rows && first) return ofFirst(index, x, context);
    const read = local(index, x, context);
    if (!first) return rows ? gather(read, rows) : read;
    const others = slice(reshape(read, [batch, time, d]), 1, 1, plus(time, -1));
    return reshape(concat([reshape(ofFirst(index, x, context), [batch, 1, d]), others], 1), x.shape);
  }

  return {
    layerCount: config.layerCount,
    words: () => get(wordTable),
    embed({ ids, words, positions, tokenTypes, itemPositions }) {
      const row = (table: string, indices: Value) => gather(get(`embeddings.${table}.weight`), indices);
      const sum = [
        words ?? row('word_embeddings', ids),
        row('position_embeddings', positions),
        row('token_type_embeddings', tokenTypes),
        row('item_position_embeddings', itemPositions),
      ].reduce(add);
      return norm('embeddings.LayerNorm', sum); // [tokens, d]
    },
    layer(index, hidden, context, rows) {
      const path = `encoder.layer.${index}`;
      const read = attention(index, hidden, context, rows);
      const kept = rows ? gather(hidden, rows) : hidden;
      const attended = add(kept, project([`${path}.attention.output.dense`], read, context)[0]!);
      const x = norm(`${path}.attention.output.LayerNorm`, attended);
      const inner = gelu(project([`${path}.intermediate.dense`], x, context)[0]!);
      return norm(`${path}.output.LayerNorm`, add(x, project([`${path}.output.dense`], inner, context)[0]!));
    },
  };
}
