// Reverse-mode differentiation: the gradient of a value is a graph again, made of the same operations, so that it can
// be differentiated once more. One rule an operation: the gradient of its output in, those of its inputs out.
import { sameShape, showShape, times } from './dim.ts';
import {
  add,
  deviationInverse,
  div,
  erf,
  exp,
  expand,
  gather,
  keep,
  matmul,
  minusOneHot,
  mul,
  neg,
  offsets,
  pad,
  quantizedLinear,
  reshape,
  rmsInverse,
  scalar,
  scale,
  scatter,
  sigmoid,
  slice,
  softmax,
  standardize,
  sub,
  sumLast,
  sumTo,
  transpose,
} from './operations.ts';
import { type OperationKind, type OperationOf, topological, type Value, value } from './value.ts';

/** Given y = f(inputs) and dL/dy, dL/dinput for each input; undefined where there is none (indices, masks). */
type GradientRule<K extends OperationKind> = (context: {
  readonly operation: OperationOf<K>;
  readonly inputs: readonly Value[];
  readonly y: Value;
  readonly dy: Value;
}) => readonly (Value | undefined)[];

const none = () => [];

const gradientRules: { readonly [K in OperationKind]: GradientRule<K> } = {
  input: none,
  weight: none,
  constant: none,
  add: ({ inputs: [a, b], dy }) => [sumTo(dy, a!.shape), sumTo(dy, b!.shape)],
  sub: ({ inputs: [a, b], dy }) => [sumTo(dy, a!.shape), sumTo(neg(dy), b!.shape)],
  mul: ({ inputs: [a, b], dy }) => [sumTo(mul(dy, b!), a!.shape), sumTo(mul(dy, a!), b!.shape)],
  div: ({ inputs: [a, b], y, dy }) => [
    sumTo(div(dy, b!), a!.shape),
    sumTo(neg(div(mul(dy, y), b!)), b!.shape),
  ],
  neg: ({ dy }) => [neg(dy)],
  exp: ({ y, dy }) => [mul(dy, y)],
  sqrt: ({ y, dy }) => [div(scale(dy, 0.5), y)],
  sigmoid: ({ y, dy }) => [mul(dy, sub(y, mul(y, y)))],
  // silu'(x) = s (1 + x - silu(x)) with s = sigmoid(x)
  silu: ({ inputs: [x], y, dy }) => [mul(dy, mul(sub(add(x!, scalar(1)), y), sigmoid(x!)))],
  // erf'(x) = 2 / sqrt(pi) e^(-x^2)
  erf: ({ inputs: [x], dy }) => [mul(dy, scale(exp(neg(mul(x!, x!))), 2 / Math.sqrt(Math.PI)))],
  // gelu'(x) = Phi(x) + x phi(x)
  gelu: ({ inputs: [x], dy }) => {
    const distribution = add(scale(erf(scale(x!, Math.SQRT1_2)), 0.5), scalar(0.5));
    const density = scale(exp(scale(mul(x!, x!), -0.5)), 1 / Math.sqrt(2 * Math.PI));
    return [mul(dy, add(distribution, mul(x!, density)))];
  },
  keep: ({ inputs: [mask], dy }) => [undefined, keep(mask!, dy)],
  matmul: ({ operation: { transposeA, transposeB }, inputs: [a, b], dy }) => [
    transposeA
      ? matmul(b!, dy, { transposeA: transposeB, transposeB: true })
      : matmul(dy, b!, { transposeB: !transposeB }),
    transposeB
      ? matmul(dy, a!, { transposeA: true, transposeB: transposeA })
      : matmul(a!, dy, { transposeA: !transposeA }),
  ],
  softmax: ({ y, dy }) => [mul(y, sub(dy, rowProducts(dy, y)))],
  logSoftmax: ({ inputs: [x], dy }) => [sub(dy, mul(softmax(x!), sumLast(dy)))],
  // d (mean(x^2) + e)^(-1/2) = -x inverse^3 / n
  rmsInverse: ({ inputs: [x], y, dy }) => [mul(x!, scale(mul(dy, mul(y, mul(y, y))), -1 / lastSize(x!)))],
  // With g = dy w: dx = (g - x inverse^2 mean(g x)) inverse; dw = sum over rows of dy x inverse.
  rmsNorm: ({ operation: { epsilon }, inputs: [x, weight], dy }) => {
    const inverse = rmsInverse(x!, epsilon);
    const g = mul(dy, weight!);
    const mean = scale(sumLast(mul(g, x!)), 1 / lastSize(x!));
    return [
      mul(sub(g, mul(x!, mul(mul(inverse, inverse), mean))), inverse),
      sumTo(mul(dy, mul(x!, inverse)), weight!.shape),
    ];
  },
  // d (variance(x) + e)^(-1/2) = -standardize(x) inverse^2 / n
  deviationInverse: ({ operation: { epsilon }, inputs: [x], y, dy }) => [
    mul(standardize(x!, epsilon), scale(mul(dy, mul(y, y)), -1 / lastSize(x!))),
  ],
  // dx = (dy - mean(dy) - y mean(dy y)) inverse
  standardize: ({ operation: { epsilon }, inputs: [x], y, dy }) => {
    const n = lastSize(x!);
    const centred = sub(dy, scale(sumLast(dy), 1 / n));
    const tangent = sub(centred, mul(y, scale(sumLast(mul(dy, y)), 1 / n)));
    return [mul(tangent, deviationInverse(x!, epsilon))];
  },
  // As of standardize(x) w + b, the sums over the last axis of dy w and of dy w h as products with w.
  layerNorm: ({ operation: { epsilon }, inputs: [x, weight, bias], dy }) => {
    const n = lastSize(x!);
    const h = standardize(x!, epsilon);
    const column = reshape(weight!, [n, 1]);
    const weighted = (z: Value) =>
      scale(reshape(matmul(rows(z), column), [...z.shape.slice(0, -1), 1]), 1 / n);
    const dyh = mul(dy, h);
    const tangent = sub(sub(mul(dy, weight!), mul(h, weighted(dyh))), weighted(dy));
    return [mul(tangent, deviationInverse(x!, epsilon)), sumTo(dyh, weight!.shape), sumTo(dy, bias!.shape)];
  },
  crossEntropy: ({ inputs: [logits, labels], dy }) => [
    mul(minusOneHot(softmax(logits!), labels!), reshape(dy, [dy.shape[0]!, 1])),
  ],
  minusOneHot: ({ dy }) => [dy],
  quantizedLinear: ({ operation: { forward, backward }, inputs: [, weight], dy }) => [
    backward ? quantizedLinear(dy, { forward: backward, backward: forward, terms: 1 }) : matmul(dy, weight!),
  ],
  topValues: () => {
    throw new Error('graph: topValues has no gradient here; differentiate a gather of what topIndices finds');
  },
  topIndices: none,
  sum: ({ inputs: [x], dy }) => [expand(dy, x!.shape)],
  expand: ({ inputs: [x], dy }) => [sumTo(dy, x!.shape)],
  reshape: ({ inputs: [x], dy }) => [reshape(dy, x!.shape)],
  transpose: ({ operation: { permutation }, dy }) => [
    transpose(
      dy,
      permutation.map((_, axis) => permutation.indexOf(axis)),
    ),
  ],
  concat: ({ operation: { axis }, inputs, dy }) => {
    const sizes = inputs.map((input) => input.shape[axis]!);
    const starts = offsets(sizes);
    return inputs.map((_, i) => slice(dy, axis, starts[i]!, sizes[i]!));
  },
  slice: ({ operation: { axis, before }, inputs: [x], dy }) => [pad(dy, axis, before, x!.shape[axis]!)],
  pad: ({ operation: { axis, before }, inputs: [x], dy }) => [slice(dy, axis, before, x!.shape[axis]!)],
  gather: ({ inputs: [x, indices], dy }) => [scatter(dy, indices!, x!.shape[0]!)],
  scatter: ({ inputs: [, indices], dy }) => [gather(dy, indices!)],
  rotary: ({ operation: { inverse }, inputs: [, positions, cos, sin], dy }) => [
    value({ kind: 'rotary', inverse: !inverse }, dy, positions!, cos!, sin!),
  ],
};

/** A value that a gradient starts from, and the gradient of the loss with respect to it (1 for the loss itself). */
export interface Seed {
  readonly value: Value;
  readonly gradient: Value;
}

/**
 * The gradients of a scalar loss, or of what `seeds` name, with respect to `wrt`, in its order.
 * @throws if a value of `wrt` has no influence on the seeds, or has some through an operation without a gradient.
 */
export function gradients(loss: Value | readonly Seed[], wrt: readonly Value[]): Value[] {
  return partialGradients(loss, wrt).map((gradient, i) => {
    if (!gradient)
      throw new Error(`graph: value ${i} of wrt (${describe(wrt[i]!)}) has no influence on the loss`);
    return gradient;
  });
}

/** As `gradients`; undefined for a value of `wrt` without influence. */
export function partialGradients(
  loss: Value | readonly Seed[],
  wrt: readonly Value[],
): (Value | undefined)[] {
  const seeds = 'operation' in loss ? [{ value: loss, gradient: scalar(1) }] : loss;
  const { order, canonical } = topological([...wrt, ...seeds.map((seed) => seed.value)]);
  const targets = new Set(wrt.map((target) => canonical.get(target)!));
  const influenced = new Set<Value>();
  for (const node of order)
    if (targets.has(node) || node.inputs.some((input) => influenced.has(input))) influenced.add(node);

  const byValue = new Map<Value, Value>();
  const accumulate = (target: Value, gradient: Value) => {
    const known = byValue.get(target);
    byValue.set(target, known ? add(known, gradient) : gradient);
  };
  for (const { value, gradient } of seeds)
    if (!sameShape(value.shape, gradient.shape))
      throw new Error(
        `graph: the gradient of ${describe(value)} is ${showShape(gradient.shape)}, the value is ${showShape(value.shape)}`,
      );
  for (const seed of seeds) accumulate(canonical.get(seed.value)!, seed.gradient);
  for (const y of order.toReversed()) {
    const dy = byValue.get(y);
    if (!dy || !y.inputs.some((input) => influenced.has(input))) continue;
    const rule = gradientRules[y.operation.kind] as GradientRule<OperationKind>;
    const found = rule({ operation: y.operation, inputs: y.inputs, y, dy });
    y.inputs.forEach((input, i) => {
      if (found[i] && influenced.has(input)) accumulate(input, found[i]);
    });
  }
  return wrt.map((target) => byValue.get(canonical.get(target)!));
}

/** sumLast(dy y). Where y was multiplied by v, dy = g v^T, it is sumLast(g (y v)): y v is there, and smaller than y. */
function rowProducts(dy: Value, y: Value): Value {
  const { operation, inputs } = dy;
  if (operation.kind !== 'matmul' || operation.transposeA || !operation.transposeB)
    return sumLast(mul(dy, y));
  const [g, v] = inputs as readonly [Value, Value];
  return sumLast(mul(g, matmul(y, v)));
}

/** [..., n] as [rows, n]. */
function rows(x: Value): Value {
  return reshape(x, [times(...x.shape.slice(0, -1)), x.shape.at(-1)!]);
}

function lastSize(x: Value): number {
  const size = x.shape.at(-1);
  if (typeof size !== 'number')
    throw new Error(`graph: a gradient over the last axis needs its size, found ${times(size ?? 1)}`);
  return size;
}

function describe({ operation }: Value): string {
  return 'name' in operation ? operation.name : operation.kind;
}
