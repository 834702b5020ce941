// The ways a layer's queries read keys and values: within a sequence, and one new token after a shared prompt.
import {
  add,
  concat,
  type Dim,
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

/**
 * Attention of a sequence to itself. `mask` [batch, 1, 1, time, time] is added to the scores.
 * Grouped queries sit on the time axis, so keys and values are never repeated.
 */
export function selfAttention({ queries, keys, values }: Attended, mask: Value): Value {
  const [batch, H, time, headDim] = queries.shape as readonly [Dim, number, Dim, number];
  const KV = keys.shape[1] as number;
  const G = H / KV;
  const grouped = reshape(queries, [batch, KV, times(G, time), headDim]);
  const scores = reshape(matmul(grouped, keys, { transposeB: true }), [batch, KV, G, time, time]);
  const weights = reshape(softmax(add(scores, mask)), [batch, KV, times(G, time), time]);
  return reshape(matmul(weights, values), queries.shape);
}

/** Keys and values of the prompts, one a user, and of what each of a user's beams has generated. */
export interface DecodingCache {
  readonly users: Dim;
  readonly beams: Dim;
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
 * has generated. Queries, keys and values are [users * beams, heads, 1, headDim]. Also returns the grown cache.
 */
export function decodingAttention(
  { queries, keys, values }: Attended,
  cache: DecodingCache,
): { readonly read: Value; readonly generatedKeys: Value; readonly generatedValues: Value } {
  const { users, beams } = cache;
  const rows = queries.shape[0]!;
  const [H, headDim] = [queries.shape[1] as number, queries.shape[3] as number];
  const KV = keys.shape[1] as number;
  const G = H / KV;
  const prompt = cache.promptKeys.shape[2]!;
  const generatedKeys = concat([gather(cache.generatedKeys, cache.parents), keys], 2);
  const generatedValues = concat([gather(cache.generatedValues, cache.parents), values], 2);
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
