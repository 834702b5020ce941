// How the tokens of an encoder read each other: within a window in blocks, so that the cost grows with the length and
// not with its square; and the first token everything. `selfAttention` with a mask does the same on short sequences.
import {
  add,
  concat,
  type Dim,
  expand,
  matmul,
  pad,
  plus,
  reshape,
  slice,
  softmax,
  times,
  transpose,
  type Value,
} from '@fellrec/graph';
import type { Attended } from '../layered-model.ts';

export interface WindowAttention {
  readonly batch: Dim;
  /** Blocks of a sequence, of `window` tokens each. */
  readonly blocks: Dim;
  /** Tokens to both sides, in all. */
  readonly window: number;
  readonly headDim: number;
  /** Added to the scores, [batch, 1, blocks, window, 2 window + 1]; `windowMask` of `batch.ts` makes it. */
  readonly mask: Value;
}

/**
 * Attention of each token to those at most window / 2 away and to the first, [batch * time, heads * headDim]. A block of
 * queries reads its own block, half a block before and after it, and the first token in a place of its own.
 */
export function windowAttention(
  { queries, keys, values }: Attended,
  { batch, blocks, window, headDim, mask }: WindowAttention,
): Value {
  const half = window / 2;
  const time = times(blocks, window);
  const H = (queries.shape[1] as number) / headDim;
  const heads = (x: Value) => transpose(reshape(x, [batch, time, H, headDim]), [0, 2, 1, 3]);
  const inBlocks = (x: Value) => reshape(x, [batch, H, blocks, window, headDim]);
  /** [batch, H, blocks, 2 window + 1, headDim]: half a block before, the block, half a block after, the first token. */
  const around = (x: Value) => {
    const padded = pad(x, 2, half, plus(time, window));
    const halves = reshape(padded, [batch, H, plus(blocks, 1), window, headDim]);
    const first = reshape(slice(x, 2, 0, 1), [batch, H, 1, 1, headDim]);
    return concat(
      [
        slice(halves, 2, 0, blocks),
        slice(halves, 2, 1, blocks),
        expand(first, [batch, H, blocks, 1, headDim]),
      ],
      3,
    );
  };
  const scores = matmul(inBlocks(heads(queries)), around(heads(keys)), { transposeB: true });
  const read = matmul(softmax(add(scores, mask)), around(heads(values))); // [batch, H, blocks, window, headDim]
  return reshape(transpose(reshape(read, [batch, H, time, headDim]), [0, 2, 1, 3]), queries.shape);
}

/** A matrix [H * headDim, d] and the hidden states [batch * time, d] that it is applied to. */
export interface Projected {
  readonly weights: Value;
  readonly x: Value;
}

export interface FirstAttention {
  readonly batch: Dim;
  readonly time: Dim;
  readonly headDim: number;
  /** Added to the scores, [batch, 1, time]. */
  readonly mask: Value;
}

/**
 * What the first tokens read of all tokens, [batch, H * headDim]: softmax(q K^T) V with K = sum of W_k x and
 * V = sum of W_v x + b_v over what `keys` and `values` list. Keys and values of the tokens are never computed: as there
 * is one query a head, q (W_k x) = (W_k^T q) x and sum p (W_v x + b_v) = W_v (sum p x) + b_v. A bias of the keys shifts
 * all scores of a head alike and changes nothing. `queries` [batch, H * headDim] are scaled by 1 / sqrt(headDim).
 */
export function firstAttention(
  queries: Value,
  keys: readonly Projected[],
  values: readonly Projected[],
  valueBias: Value,
  { batch, time, headDim, mask }: FirstAttention,
): Value {
  const H = (queries.shape[1] as number) / headDim;
  const tokens = ({ x }: Projected) => reshape(x, [batch, time, x.shape[1]!]);
  const perHead = ({ weights }: Projected) => reshape(weights, [H, headDim, weights.shape[1]!]);
  const swap = (x: Value) => transpose(x, [1, 0, 2]); // [batch, H, ...] <-> [H, batch, ...]
  const q = swap(reshape(queries, [batch, H, headDim]));
  const scores = keys
    .map((key) => matmul(swap(matmul(q, perHead(key))), tokens(key), { transposeB: true })) // [batch, H, time]
    .reduce(add);
  const weights = softmax(add(scores, mask));
  const read = values
    .map((value) => matmul(swap(matmul(weights, tokens(value))), perHead(value), { transposeB: true })) // [H, batch, headDim]
    .reduce(add);
  return add(reshape(swap(read), queries.shape), valueBias);
}
