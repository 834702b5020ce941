// The ways a layer's queries read keys and values: within a sequence behind a shared prefix, and one new token after a
// prompt.
import {
  add,
  concat,
  type Dim,
  expand,
  gather,
  matmul,
  reshape,
  slice,
  softmax,
  times,
  transpose,
  type Value,
} from '@fellrec/graph';
import type { Attended } from './layered-model.ts';

export interface SequenceAttention {
  readonly batch: Dim;
  readonly time: Dim;
  readonly headDim: number;
  /** Added to the scores, [batch, 1, H / KV * time, prefix + time]. */
  readonly mask: Value;
  /** Keys and values that all sequences begin with, [1, KV, prefix, headDim]. */
  readonly prefix?: { readonly keys: Value; readonly values: Value };
}

/**
 * Attention of each sequence to the prefix and to itself, [batch * time, heads * headDim], and the keys and values that
 * it read, [batch, KV, prefix + time, headDim]. Grouped queries sit on the time axis, so keys and values are never
 * repeated.
 */
export function selfAttention(
  attended: Attended,
  { batch, time, headDim, mask, prefix }: SequenceAttention,
): { readonly read: Value; readonly keys: Value; readonly values: Value } {
  const heads = (x: Value) => {
    const count = (x.shape[1] as number) / headDim;
    return transpose(reshape(x, [batch, time, count, headDim]), [0, 2, 1, 3]);
  };
  const behind = (shared: Value | undefined, own: Value) =>
    shared ? concat([expand(shared, [batch, ...shared.shape.slice(1)]), own], 2) : own;
  const keys = behind(prefix?.keys, heads(attended.keys));
  const values = behind(prefix?.values, heads(attended.values));
  const queries = heads(attended.queries); // [batch, H, time, headDim]
  const [H, KV] = [queries.shape[1] as number, keys.shape[1] as number];
  const grouped = reshape(queries, [batch, KV, times(H / KV, time), headDim]);
  const weights = softmax(add(matmul(grouped, keys, { transposeB: true }), mask));
  const read = reshape(matmul(weights, values), queries.shape);
  return { read: reshape(transpose(read, [0, 2, 1, 3]), attended.queries.shape), keys, values };
}

/** Keys and values of the prompts, one a user, and of what each of a user's beams has generated. */
export interface DecodingCache {
  readonly users: Dim;
  readonly beams: Dim;
  readonly headDim: number;
  /** [users, KV, prompt, headDim]. */
  readonly promptKeys: Value;
  readonly promptValues: Value;
  /** Added to the scores of prompt tokens, [users, 1, 1, prompt]: padding is far below 0. */
  readonly promptMask: Value;
  /** [users * beams, KV, generated, headDim], in the order of the step before. */
  readonly generatedKeys: Value;
  readonly generatedValues: Value;
  /** int64 [users * beams]: which row of the step before each row continues. */
  readonly parents: Value;
}

/**
 * Attention of one new token a beam to its user's prompt, whose keys and values all beams share, and to what the beam
 * has generated. Also returns the grown cache.
 */
export function decodingAttention(
  { queries, keys, values }: Attended,
  cache: DecodingCache,
): { readonly read: Value; readonly generatedKeys: Value; readonly generatedValues: Value } {
  const { users, beams, headDim } = cache;
  const rows = queries.shape[0]!;
  const KV = (keys.shape[1] as number) / headDim;
  const G = (queries.shape[1] as number) / headDim / KV;
  const heads = (x: Value) => reshape(x, [rows, KV, 1, headDim]);
  const prompt = cache.promptKeys.shape[2]!;
  const generatedKeys = concat([gather(cache.generatedKeys, cache.parents), heads(keys)], 2);
  const generatedValues = concat([gather(cache.generatedValues, cache.parents), heads(values)], 2);
  const generated = generatedKeys.shape[2]!;

  // [users * beams, KV, G, ...] <-> [users, KV, beams * G, ...]
  const byUser = (x: Value, last: Dim) =>
    reshape(transpose(reshape(x, [users, beams, KV, times(G, last)]), [0, 2, 1, 3]), [
      users,
      KV,
      times(beams, G),
      last,
    ]);
  const byBeam = (x: Value, last: Dim) =>
    reshape(transpose(reshape(x, [users, KV, beams, times(G, last)]), [0, 2, 1, 3]), [rows, KV, G, last]);

  const grouped = reshape(queries, [rows, KV, G, headDim]);
  const promptScores = add(
    matmul(byUser(grouped, headDim), cache.promptKeys, { transposeB: true }),
    cache.promptMask,
  );
  const generatedScores = matmul(grouped, generatedKeys, { transposeB: true }); // [rows, KV, G, generated]
  const weights = softmax(concat([byBeam(promptScores, prompt), generatedScores], 3));
  const fromPrompt = matmul(byUser(slice(weights, 3, 0, prompt), prompt), cache.promptValues);
  const fromGenerated = matmul(slice(weights, 3, prompt, generated), generatedValues);
  const read = add(byBeam(fromPrompt, headDim), fromGenerated);
  return { read: reshape(read, queries.shape), generatedKeys, generatedValues };
}
