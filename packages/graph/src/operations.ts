// The operations as functions of values: what models are written with.
import { type Dim, plus, type Shape, sameShape } from './dim.ts';
import { float32, type StoredTensor, type Tensor } from './tensor.ts';
import { type QuantizedMatrix, type Value, type ValueType, value } from './value.ts';

/** A value fed when the program runs. Named sizes of its shape are bound by what is fed. */
export const input = (name: string, dtype: ValueType, shape: Shape): Value =>
  value({ kind: 'input', name, dtype, shape });
/** A frozen tensor that lies in a file; narrower types are widened to float32. */
export const weight = (name: string, stored: StoredTensor): Value => value({ kind: 'weight', name, stored });
/** A small tensor that is part of the graph. */
export const constant = (tensor: Tensor): Value => value({ kind: 'constant', tensor });
export const scalar = (number: number): Value => constant(float32([number], []));

export const add = (a: Value, b: Value): Value => value({ kind: 'add' }, a, b);
export const sub = (a: Value, b: Value): Value => value({ kind: 'sub' }, a, b);
export const mul = (a: Value, b: Value): Value => value({ kind: 'mul' }, a, b);
export const div = (a: Value, b: Value): Value => value({ kind: 'div' }, a, b);
export const neg = (x: Value): Value => value({ kind: 'neg' }, x);
export const exp = (x: Value): Value => value({ kind: 'exp' }, x);
export const sqrt = (x: Value): Value => value({ kind: 'sqrt' }, x);
export const sigmoid = (x: Value): Value => value({ kind: 'sigmoid' }, x);
/** x * sigmoid(x). */
export const silu = (x: Value): Value => value({ kind: 'silu' }, x);
export const erf = (x: Value): Value => value({ kind: 'erf' }, x);
/** x Phi(x), with the normal distribution's Phi, not an approximation of it (arXiv 1606.08415). */
export const gelu = (x: Value): Value => value({ kind: 'gelu' }, x);
export const scale = (x: Value, factor: number): Value => (factor === 1 ? x : mul(x, scalar(factor)));
/** x where `mask` (bool, same shape) is true, 0 elsewhere. */
export const keep = (mask: Value, x: Value): Value => value({ kind: 'keep' }, mask, x);
/** Inverted dropout: x / (1 - rate) where `mask` is true, 0 elsewhere. */
export const dropout = (mask: Value, x: Value, rate: number): Value => scale(keep(mask, x), 1 / (1 - rate));

/** Matrix product over the last two axes, either operand transposed first. Leading axes are equal. */
export const matmul = (
  a: Value,
  b: Value,
  { transposeA = false, transposeB = false }: { transposeA?: boolean; transposeB?: boolean } = {},
): Value => value({ kind: 'matmul', transposeA, transposeB }, a, b);
/** x W^T + b: [n, in], weights [out, in] and bias [out] to [n, out], the layout of checkpoints. */
export const linear = (x: Value, weights: Value, bias?: Value): Value => {
  const product = matmul(x, weights, { transposeB: true });
  return bias ? add(product, bias) : product;
};

/**
 * x W^T with a frozen W [out, in] as 8-bit integers. `forward` is its transpose [in, out], scaled by output; the gradient
 * goes through `backward`, W itself scaled by input, or through a float32 W.
 */
export const quantizedLinear = (
  x: Value,
  { forward, backward, terms }: { forward: QuantizedMatrix; backward: QuantizedMatrix | Value; terms: 1 | 2 },
): Value =>
  'operation' in backward
    ? value({ kind: 'quantizedLinear', terms, forward }, x, backward)
    : value({ kind: 'quantizedLinear', terms, forward, backward }, x);

export const softmax = (x: Value): Value => value({ kind: 'softmax' }, x);
export const logSoftmax = (x: Value): Value => value({ kind: 'logSoftmax' }, x);
export const rmsInverse = (x: Value, epsilon: number): Value => value({ kind: 'rmsInverse', epsilon }, x);
/** Root-mean-square normalisation over the last axis, times a weight (arXiv 1910.07467). */
export const rmsNorm = (x: Value, weights: Value, epsilon: number): Value =>
  value({ kind: 'rmsNorm', epsilon }, x, weights);
export const deviationInverse = (x: Value, epsilon: number): Value =>
  value({ kind: 'deviationInverse', epsilon }, x);
/** Mean 0 and variance 1 over the last axis. */
export const standardize = (x: Value, epsilon: number): Value => value({ kind: 'standardize', epsilon }, x);
/** Layer normalisation over the last axis (arXiv 1607.06450). */
export const layerNorm = (x: Value, weights: Value, bias: Value, epsilon: number): Value =>
  value({ kind: 'layerNorm', epsilon }, x, weights, bias);
/** -log softmax(logits)[label]: ([n, classes], int64 [n]) -> [n]. */
export const crossEntropy = (logits: Value, labels: Value): Value =>
  value({ kind: 'crossEntropy' }, logits, labels);
/** x - oneHot(labels): ([n, classes], int64 [n]) -> [n, classes]. */
export const minusOneHot = (x: Value, labels: Value): Value => value({ kind: 'minusOneHot' }, x, labels);

/** The `count` largest values of the last axis, largest first. Has no gradient. */
export const topValues = (x: Value, count: number): Value => value({ kind: 'topValues', count }, x);
/** Where they lie (int64); of equals the first. */
export const topIndices = (x: Value, count: number): Value => value({ kind: 'topIndices', count }, x);

/** Sum over axes, which stay with size 1. */
export const sum = (x: Value, axes: readonly number[]): Value =>
  axes.length === 0 ? x : value({ kind: 'sum', axes }, x);
/** Sum over the last axis, which stays with size 1. */
export const sumLast = (x: Value): Value => sum(x, [x.shape.length - 1]);
/** The sum of all elements, []. */
export const total = (x: Value): Value =>
  reshape(
    sum(
      x,
      x.shape.map((_, axis) => axis),
    ),
    [],
  );
export const expand = (x: Value, shape: Shape): Value =>
  sameShape(x.shape, shape) ? x : value({ kind: 'expand', shape }, x);
export const reshape = (x: Value, shape: Shape): Value =>
  sameShape(x.shape, shape) ? x : value({ kind: 'reshape', shape }, x);
export const transpose = (x: Value, permutation: readonly number[]): Value =>
  value({ kind: 'transpose', permutation }, x);
export const concat = (inputs: readonly Value[], axis: number): Value =>
  inputs.length === 1 ? inputs[0]! : value({ kind: 'concat', axis }, ...inputs);
export const slice = (x: Value, axis: number, before: Dim, size: Dim): Value =>
  value({ kind: 'slice', axis, before, size }, x);
export const pad = (x: Value, axis: number, before: Dim, size: Dim): Value =>
  value({ kind: 'pad', axis, before, size }, x);
export const gather = (x: Value, indices: Value): Value => value({ kind: 'gather' }, x, indices);
export const scatter = (x: Value, indices: Value, rows: Dim): Value =>
  value({ kind: 'scatter', rows }, x, indices);
/** Rotary position embedding (arXiv 2104.09864) in the half-split layout: x [n, heads * d], positions [n]. */
export const rotary = (x: Value, positions: Value, cos: Value, sin: Value): Value =>
  value({ kind: 'rotary', inverse: false }, x, positions, cos, sin);

/** The sum of a value over the axes along which `shape` was broadcast to it: the transpose of broadcasting. */
export function sumTo(x: Value, shape: Shape): Value {
  if (sameShape(x.shape, shape)) return x;
  const lead = x.shape.length - shape.length;
  const axes = x.shape.flatMap((dim, axis) =>
    axis < lead || (shape[axis - lead] === 1 && dim !== 1) ? [axis] : [],
  );
  return reshape(sum(x, axes), shape);
}

/** Where the parts of a concatenation begin: 0, size of the first, sum of the first two, ... */
export function offsets(sizes: readonly Dim[]): Dim[] {
  return sizes.map((_, i) => (i === 0 ? 0 : plus(...sizes.slice(0, i))));
}
