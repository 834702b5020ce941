// The shape rule of every operation: types and shapes of the inputs in, type and shape of the value out.
import { broadcast, type Dim, plus, type Shape, sameShape, showShape, times } from './dim.ts';
import type { OperationKind, OperationOf, Value, ValueType } from './value.ts';

interface Typed {
  readonly dtype: ValueType;
  readonly shape: Shape;
}
type ShapeRule<K extends OperationKind> = (operation: OperationOf<K>, inputs: readonly Value[]) => Typed;

const elementwise = (operation: { readonly kind: OperationKind }, [a, b]: readonly Value[]): Typed => {
  expectFloat(operation.kind, a!, b!);
  return { dtype: 'float32', shape: broadcast(a!.shape, b!.shape) };
};
const same = (operation: { readonly kind: OperationKind }, [x]: readonly Value[]): Typed => {
  expectFloat(operation.kind, x!);
  return { dtype: 'float32', shape: x!.shape };
};
const perRow = (operation: { readonly kind: OperationKind }, [x]: readonly Value[]): Typed => {
  expectFloat(operation.kind, x!);
  return { dtype: 'float32', shape: [...x!.shape.slice(0, -1), 1] };
};

export const shapeRules: { readonly [K in OperationKind]: ShapeRule<K> } = {
  input: ({ dtype, shape }) => ({ dtype, shape }),
  weight: ({ stored }) => ({ dtype: 'float32', shape: stored.dims }),
  constant: ({ tensor }) => ({ dtype: tensor.dtype, shape: tensor.dims }),
  add: elementwise,
  sub: elementwise,
  mul: elementwise,
  div: elementwise,
  neg: same,
  exp: same,
  sqrt: same,
  sigmoid: same,
  silu: same,
  erf: same,
  gelu: same,
  softmax: same,
  logSoftmax: same,
  keep: (_, [mask, x]) => {
    const fits = mask!.dtype === 'bool' && x!.dtype === 'float32' && sameShape(mask!.shape, x!.shape);
    expect(fits, 'keep', [mask!, x!], 'a bool mask and float32 values of one shape');
    return { dtype: 'float32', shape: x!.shape };
  },
  matmul: ({ transposeA, transposeB }, [a, b]) => {
    expectFloat('matmul', a!, b!);
    const [aRows, aColumns] = matrix(a!, transposeA);
    const [bRows, bColumns] = matrix(b!, transposeB);
    const fits = sameShape(a!.shape.slice(0, -2), b!.shape.slice(0, -2)) && aColumns === bRows;
    expect(fits, 'matmul', [a!, b!], `equal leading axes and inner sizes (${aColumns} and ${bRows})`);
    return { dtype: 'float32', shape: [...a!.shape.slice(0, -2), aRows, bColumns] };
  },
  rmsInverse: perRow,
  rmsNorm: (_, [x, weight]) => {
    expectFloat('rmsNorm', x!, weight!);
    expect(
      sameShape(weight!.shape, x!.shape.slice(-1)),
      'rmsNorm',
      [x!, weight!],
      'a weight as long as the last axis',
    );
    return { dtype: 'float32', shape: x!.shape };
  },
  deviationInverse: perRow,
  standardize: same,
  layerNorm: (_, [x, weight, bias]) => {
    expectFloat('layerNorm', x!, weight!, bias!);
    const last = x!.shape.slice(-1);
    const fits = sameShape(weight!.shape, last) && sameShape(bias!.shape, last);
    expect(fits, 'layerNorm', [x!, weight!, bias!], 'a weight and a bias as long as the last axis');
    return { dtype: 'float32', shape: x!.shape };
  },
  crossEntropy: (_, [logits, labels]) => {
    expectLabelled('crossEntropy', 'logits', logits!, labels!);
    return { dtype: 'float32', shape: labels!.shape };
  },
  minusOneHot: (_, [x, labels]) => {
    expectLabelled('minusOneHot', 'x', x!, labels!);
    return { dtype: 'float32', shape: x!.shape };
  },
  quantizedLinear: ({ forward, backward }, [x, weight]) => {
    expectFloat('quantizedLinear', x!);
    const [rows, columns] = forward.values.dims as readonly [number, number];
    const transposed = backward?.values.dims ?? weight?.shape;
    const fits =
      x!.shape.length === 2 && x!.shape[1] === rows && sameShape(transposed ?? [], [columns, rows]);
    expect(
      fits,
      'quantizedLinear',
      [x!],
      `x [n, ${rows}], and ${forward.name} [${rows}, ${columns}] with its transpose for the gradient`,
    );
    return { dtype: 'float32', shape: [x!.shape[0]!, columns] };
  },
  topValues: (operation, inputs) => ({ dtype: 'float32', shape: top(operation, inputs) }),
  topIndices: (operation, inputs) => ({ dtype: 'int64', shape: top(operation, inputs) }),
  sum: ({ axes }, [x]) => {
    expectFloat('sum', x!);
    expect(
      axes.every((axis) => axis >= 0 && axis < x!.shape.length),
      'sum',
      [x!],
      `the axes ${axes}`,
    );
    return { dtype: 'float32', shape: x!.shape.map((dim, axis) => (axes.includes(axis) ? 1 : dim)) };
  },
  expand: ({ shape }, [x]) => {
    expect(
      sameShape(broadcast(x!.shape, shape), shape),
      'expand',
      [x!],
      `a shape that grows to ${showShape(shape)}`,
    );
    return { dtype: x!.dtype, shape };
  },
  reshape: ({ shape }, [x]) => {
    expect(
      times(...x!.shape) === times(...shape),
      'reshape',
      [x!],
      `as many elements as ${showShape(shape)}`,
    );
    return { dtype: x!.dtype, shape };
  },
  transpose: ({ permutation }, [x]) => {
    const sorted = [...permutation].sort((a, b) => a - b);
    const fits = sorted.length === x!.shape.length && sorted.every((axis, i) => axis === i);
    expect(fits, 'transpose', [x!], `as many axes as the permutation ${permutation}`);
    return { dtype: x!.dtype, shape: permutation.map((axis) => x!.shape[axis]!) };
  },
  concat: ({ axis }, inputs) => {
    const [first] = inputs;
    const fits = inputs.every(
      (input) =>
        hasAxis(input, axis) &&
        input.dtype === first!.dtype &&
        sameShape(without(input.shape, axis), without(first!.shape, axis)),
    );
    expect(fits, 'concat', inputs, `equal types and shapes apart from axis ${axis}`);
    return {
      dtype: first!.dtype,
      shape: first!.shape.map((dim, i) =>
        i === axis ? plus(...inputs.map((input) => input.shape[axis]!)) : dim,
      ),
    };
  },
  slice: ({ axis, before, size }, [x]) => {
    const fits = hasAxis(x!, axis) && isWithin(plus(before, size), x!.shape[axis]!);
    expect(fits, 'slice', [x!], `an axis ${axis} of at least ${plus(before, size)} places`);
    return { dtype: x!.dtype, shape: x!.shape.map((dim, i) => (i === axis ? size : dim)) };
  },
  pad: ({ axis, before, size }, [x]) => {
    expectFloat('pad', x!);
    const fits = hasAxis(x!, axis) && isWithin(plus(before, x!.shape[axis]!), size);
    expect(fits, 'pad', [x!], `an axis ${axis} that fits behind ${before} of ${size} places`);
    return { dtype: x!.dtype, shape: x!.shape.map((dim, i) => (i === axis ? size : dim)) };
  },
  gather: (_, [x, indices]) => {
    const fits = indices!.dtype === 'int64' && indices!.shape.length === 1;
    expect(fits, 'gather', [x!, indices!], 'int64 indices [n]');
    return { dtype: x!.dtype, shape: [indices!.shape[0]!, ...x!.shape.slice(1)] };
  },
  scatter: ({ rows }, [x, indices]) => {
    expectFloat('scatter', x!);
    const fits = indices!.dtype === 'int64' && sameShape(indices!.shape, [x!.shape[0]!]);
    expect(fits, 'scatter', [x!, indices!], 'int64 indices, one a row');
    return { dtype: 'float32', shape: [rows, ...x!.shape.slice(1)] };
  },
  rotary: (_, [x, positions, cos, sin]) => {
    const [n, width] = x!.shape;
    const half = cos!.shape[1];
    const fits =
      x!.shape.length === 2 &&
      positions!.dtype === 'int64' &&
      sameShape(positions!.shape, [n!]) &&
      typeof width === 'number' &&
      typeof half === 'number' &&
      width % (2 * half) === 0 &&
      sameShape(cos!.shape, sin!.shape);
    expect(fits, 'rotary', [x!, positions!, cos!, sin!], 'x [n, heads * d], positions [n], tables [m, d/2]');
    return { dtype: 'float32', shape: x!.shape };
  },
};

function top({ kind, count }: OperationOf<'topValues' | 'topIndices'>, [x]: readonly Value[]): Shape {
  expectFloat(kind, x!);
  expect(isWithin(count, x!.shape.at(-1) ?? 0), kind, [x!], `a last axis of at least ${count} places`);
  return [...x!.shape.slice(0, -1), count];
}

function expectLabelled(kind: OperationKind, name: string, x: Value, labels: Value): void {
  const fits =
    x.dtype === 'float32' &&
    x.shape.length === 2 &&
    labels.dtype === 'int64' &&
    sameShape(labels.shape, [x.shape[0]!]);
  expect(fits, kind, [x, labels], `${name} [n, classes] and int64 labels [n]`);
}

function matrix(x: Value, transposed: boolean): readonly [Dim, Dim] {
  expect(x.shape.length >= 2, 'matmul', [x], 'at least two axes');
  const [rows, columns] = x.shape.slice(-2) as [Dim, Dim];
  return transposed ? [columns, rows] : [rows, columns];
}

function hasAxis(x: Value, axis: number): boolean {
  return axis >= 0 && axis < x.shape.length;
}

/** False if both sizes are known and the range ends behind the axis. */
function isWithin(end: Dim, size: Dim): boolean {
  return typeof end === 'string' || typeof size === 'string' || end <= size;
}

function without(shape: Shape, axis: number): Shape {
  return shape.filter((_, i) => i !== axis);
}

function expectFloat(kind: OperationKind, ...inputs: readonly Value[]): void {
  expect(
    inputs.every((input) => input.dtype === 'float32'),
    kind,
    inputs,
    'float32 inputs',
  );
}

function expect(fits: boolean, kind: OperationKind, inputs: readonly Value[], wanted: string): void {
  if (fits) return;
  const found = inputs.map((input) => `${input.dtype}${showShape(input.shape)}`).join(', ');
  throw new Error(`graph: ${kind} needs ${wanted}, found ${found}`);
}
