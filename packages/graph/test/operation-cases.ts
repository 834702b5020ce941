// For every operation: programs that use it with their formula in float64, and what it refuses.
import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { plus, type Shape, times } from '../src/dim.ts';
import * as op from '../src/operations.ts';
import { float32, int64 } from '../src/tensor.ts';
import { type OperationKind, type Value, value } from '../src/value.ts';
import { at, type NdArray, sumOf, tabulate } from './closed-form.ts';

export interface Fed {
  readonly shape: Shape;
  /** `normal` if absent; `below` makes int64 values in [0, below). */
  readonly values?: 'positive' | 'mask' | { readonly below: number };
  /** No gradient flows here. */
  readonly frozen?: true;
}
export interface Case {
  readonly inputs: readonly Fed[];
  readonly build: (...inputs: Value[]) => Value;
  readonly shape: Shape;
  readonly formula: (...inputs: NdArray[]) => NdArray;
  readonly secondOrder?: true;
}
export interface Checks {
  readonly cases: readonly Case[];
  /** What a misfit's error says, and the misfit. */
  readonly misfits: readonly (readonly [RegExp, () => Value])[];
}

/** Holds a weight; whoever runs the cases removes it. */
export const folder: string = mkdtempSync(join(tmpdir(), 'fellrec-operations-'));
const file = join(folder, 'weights.bin');
writeFileSync(file, new Uint8Array(Float32Array.of(2, -3, 0.5).buffer));

const x = (...shape: Shape) => op.input('x', 'float32', shape);
const ids = (...shape: Shape) => op.input('ids', 'int64', shape);
const mask = (...shape: Shape) => op.input('mask', 'bool', shape);
const fed = (...shape: Shape): Fed => ({ shape });

const logistic = (a: number) => 1 / (1 + Math.exp(-a));
const map = (f: (a: number) => number) => (a: NdArray) => ({ dims: a.dims, data: a.data.map(f) });
/** A function of one element, on [batch, time, 3]. */
const elementwise = (
  build: (x: Value) => Value,
  f: (a: number) => number,
  { values, secondOrder }: Pick<Fed, 'values'> & Pick<Case, 'secondOrder'> = {},
): Checks => ({
  cases: [
    {
      inputs: [{ shape: ['batch', 'time', 3], ...(values && { values }) }],
      build,
      shape: ['batch', 'time', 3],
      formula: map(f),
      ...(secondOrder && { secondOrder }),
    },
  ],
  misfits: [[/needs float32 inputs, found int64\[n\]/, () => build(ids('n'))]],
});
/** A function of two elements: equal shapes, a row and a column that broadcast, a scalar. */
const broadcasting = (
  build: (a: Value, b: Value) => Value,
  f: (a: number, b: number) => number,
  secondOrder?: true,
): Checks => ({
  cases: (
    [
      [['batch', 3], ['batch', 3], 2],
      [['batch', 'time', 3], [3], 3],
      [['batch', 1, 3], ['time', 1], 3],
      [[], ['batch', 3], 2],
    ] as [Shape, Shape, number][]
  ).map(([a, b, rank]) => ({
    inputs: [{ shape: a }, { shape: b, values: 'positive' }],
    build,
    shape: rank === 2 ? ['batch', 3] : ['batch', 'time', 3],
    formula: (a: NdArray, b: NdArray) => {
      const size = (axis: number) =>
        Math.max(a.dims[axis - rank + a.dims.length] ?? 1, b.dims[axis - rank + b.dims.length] ?? 1);
      return tabulate(
        Array.from({ length: rank }, (_, axis) => size(axis)),
        (...index) => f(at(a, ...index), at(b, ...index)),
      );
    },
    ...(secondOrder && { secondOrder }),
  })),
  misfits: [
    [/do not broadcast: batch is not time/, () => build(x('batch', 3), x('time', 3))],
    [/do not broadcast: 3 is not 2/, () => build(x(3), x(2))],
    [/needs float32 inputs, found float32\[3\], int64\[3\]/, () => build(x(3), ids(3))],
  ],
});
/** Rows of the last axis: `f` of a row gives the row of results. */
const byRow = (a: NdArray, f: (row: number[]) => number[]): number[] => {
  const width = a.dims.at(-1)!;
  return Array.from({ length: a.data.length / width }, (_, i) =>
    f(a.data.slice(i * width, (i + 1) * width)),
  ).flat();
};
const logSumExp = (row: number[]) => Math.log(row.reduce((sum, a) => sum + Math.exp(a), 0));
const moments = (row: number[]) => {
  const mean = row.reduce((sum, a) => sum + a, 0) / row.length;
  const variance = row.reduce((sum, a) => sum + (a - mean) ** 2, 0) / row.length;
  const inverse = 1 / Math.sqrt(variance + 0.1);
  return { inverse, standardized: row.map((a) => (a - mean) * inverse) };
};
/** By its power series, 2 / sqrt(pi) times the sum of (-1)^k a^(2k+1) / (k! (2k+1)). */
const erf = (a: number) => {
  let [term, sum] = [a, a];
  for (let k = 1; k < 80; k++) {
    term *= (-a * a) / k;
    sum += term / (2 * k + 1);
  }
  return (2 / Math.sqrt(Math.PI)) * sum;
};
const inverseRms = (row: number[]) =>
  1 / Math.sqrt(row.reduce((sum, a) => sum + a * a, 0) / row.length + 0.1);

const matmulCase = (lead: Shape, transposeA: boolean, transposeB: boolean): Case => ({
  inputs: [
    fed(...lead, ...(transposeA ? [4, 'time'] : ['time', 4])),
    fed(...lead, ...(transposeB ? ['n', 4] : [4, 'n'])),
  ],
  build: (a, b) => op.matmul(a, b, { transposeA, transposeB }),
  shape: [...lead, 'time', 'n'],
  formula: (a, b) =>
    tabulate(
      [...a.dims.slice(0, -2), a.dims.at(transposeA ? -1 : -2)!, b.dims.at(transposeB ? -2 : -1)!],
      (...index) => {
        const [i, j] = index.slice(-2) as [number, number];
        const before = index.slice(0, -2);
        return sumOf(
          4,
          (k) =>
            at(a, ...before, ...(transposeA ? [k, i] : [i, k])) *
            at(b, ...before, ...(transposeB ? [j, k] : [k, j])),
        );
      },
    ),
  secondOrder: true,
});

const rotaryCase = (inverse: boolean): Case => ({
  inputs: [
    fed('n', 8),
    { shape: ['n'], values: { below: 5 } },
    { shape: [5, 2], frozen: true },
    { shape: [5, 2], frozen: true },
  ],
  build: (a, positions, cos, sin) => value({ kind: 'rotary', inverse }, a, positions, cos, sin),
  shape: ['n', 8],
  formula: (a, positions, cos, sin) =>
    tabulate(a.dims, (t, column) => {
      const [head, j] = [column! - (column! % 4), column! % 4];
      const [position, i] = [at(positions, t!), j % 2];
      const s = at(sin, position, i) * (inverse ? -1 : 1);
      const partner = j < 2 ? -at(a, t!, head + i + 2) : at(a, t!, head + i);
      return at(a, t!, column!) * at(cos, position, i) + partner * s;
    }),
});

const topOf = (row: number[], count: number) =>
  row
    .map((a, i) => ({ a, i }))
    .sort((p, q) => q.a - p.a || p.i - q.i)
    .slice(0, count);
const topShape = (a: NdArray) => [...a.dims.slice(0, -1), 2];

const eightBits = (rows: number, columns: number) => {
  const stored = (dtype: 'int8' | 'float32', ...dims: number[]) => ({
    dtype,
    dims,
    file,
    byteOffset: 0,
    byteLength: 0,
  });
  const matrix = (name: string, ...dims: [number, number]) => ({
    name,
    values: stored('int8', ...dims),
    scales: stored('float32', dims[1]),
  });
  return { forward: matrix('w', rows, columns), backward: matrix('wT', columns, rows), terms: 1 as const };
};

export const operations: { readonly [K in OperationKind]: Checks } = {
  input: {
    cases: [{ inputs: [fed('batch', 3)], build: (a) => a, shape: ['batch', 3], formula: (a) => a }],
    misfits: [],
  },
  weight: {
    cases: [
      {
        inputs: [fed('batch', 3)],
        build: (a) =>
          op.mul(a, op.weight('w', { dtype: 'float32', dims: [3], file, byteOffset: 0, byteLength: 12 })),
        shape: ['batch', 3],
        formula: (a) => tabulate(a.dims, (i, j) => at(a, i!, j!) * [2, -3, 0.5][j!]!),
      },
    ],
    misfits: [],
  },
  constant: {
    cases: [
      {
        inputs: [fed('batch', 3)],
        build: (a) => op.add(a, op.constant(float32([1, 2, 4], [3]))),
        shape: ['batch', 3],
        formula: (a) => tabulate(a.dims, (i, j) => at(a, i!, j!) + 2 ** j!),
      },
      {
        inputs: [fed(3, 2)],
        build: (a) => op.gather(a, op.constant(int64([2, 0], [2]))),
        shape: [2, 2],
        formula: (a) => tabulate([2, 2], (i, j) => at(a, i === 0 ? 2 : 0, j!)),
      },
    ],
    misfits: [[/3 values do not fill \[2\]/, () => op.constant(float32([1, 2, 3], [2]))]],
  },
  add: broadcasting(op.add, (a, b) => a + b),
  sub: broadcasting(op.sub, (a, b) => a - b),
  mul: broadcasting(op.mul, (a, b) => a * b, true),
  div: broadcasting(op.div, (a, b) => a / b, true),
  neg: elementwise(op.neg, (a) => -a),
  exp: elementwise(op.exp, Math.exp, { secondOrder: true }),
  sqrt: elementwise(op.sqrt, Math.sqrt, { values: 'positive', secondOrder: true }),
  sigmoid: elementwise(op.sigmoid, logistic, { secondOrder: true }),
  silu: elementwise(op.silu, (a) => a * logistic(a), { secondOrder: true }),
  erf: elementwise(op.erf, erf, { secondOrder: true }),
  gelu: elementwise(op.gelu, (a) => (a * (1 + erf(a * Math.SQRT1_2))) / 2, { secondOrder: true }),
  keep: {
    cases: [
      {
        inputs: [{ shape: ['batch', 3], values: 'mask' }, fed('batch', 3)],
        build: op.keep,
        shape: ['batch', 3],
        formula: (m, a) => tabulate(a.dims, (i, j) => (at(m, i!, j!) ? at(a, i!, j!) : 0)),
      },
    ],
    misfits: [
      [
        /a bool mask and float32 values of one shape, found bool\[2\], float32\[3\]/,
        () => op.keep(mask(2), x(3)),
      ],
      [/found float32\[3\], float32\[3\]/, () => op.keep(x(3), x(3))],
      [/found bool\[3\], int64\[3\]/, () => op.keep(mask(3), ids(3))],
    ],
  },
  matmul: {
    cases: ([[], ['batch'], ['batch', 2]] as Shape[]).flatMap((lead) =>
      [false, true].flatMap((a) => [false, true].map((b) => matmulCase(lead, a, b))),
    ),
    misfits: [
      [/inner sizes \(3 and 4\), found float32\[2, 3\], float32\[4, 2\]/, () => op.matmul(x(2, 3), x(4, 2))],
      [/inner sizes \(3 and 4\)/, () => op.linear(x(2, 3), x(2, 4))],
      [/equal leading axes/, () => op.matmul(x('batch', 2, 3), x('time', 3, 2))],
      [/equal leading axes/, () => op.matmul(x('batch', 2, 3), x(3, 2))],
      [/at least two axes, found float32\[3\]/, () => op.matmul(x(2, 3), x(3))],
      [/float32 inputs/, () => op.matmul(ids(2, 3), x(3, 2))],
    ],
  },
  softmax: {
    cases: [
      {
        inputs: [fed('batch', 'time', 4)],
        build: op.softmax,
        shape: ['batch', 'time', 4],
        formula: (a) => ({
          dims: a.dims,
          data: byRow(a, (row) => row.map((element) => Math.exp(element - logSumExp(row)))),
        }),
        secondOrder: true,
      },
      {
        inputs: [fed('batch', 'time')], // a named last axis
        build: op.softmax,
        shape: ['batch', 'time'],
        formula: (a) => ({
          dims: a.dims,
          data: byRow(a, (row) => row.map((element) => Math.exp(element - logSumExp(row)))),
        }),
      },
    ],
    misfits: [[/float32 inputs/, () => op.softmax(ids('n', 3))]],
  },
  logSoftmax: {
    cases: [
      {
        inputs: [fed('batch', 'time')],
        build: op.logSoftmax,
        shape: ['batch', 'time'],
        formula: (a) => ({
          dims: a.dims,
          data: byRow(a, (row) => row.map((element) => element - logSumExp(row))),
        }),
        secondOrder: true,
      },
    ],
    misfits: [[/float32 inputs/, () => op.logSoftmax(ids('n', 3))]],
  },
  rmsInverse: {
    cases: [
      {
        inputs: [fed('batch', 'time', 4)],
        build: (a) => op.rmsInverse(a, 0.1),
        shape: ['batch', 'time', 1],
        formula: (a) => ({
          dims: [...a.dims.slice(0, -1), 1],
          data: byRow(a, (row) => [inverseRms(row)]),
        }),
        secondOrder: true,
      },
    ],
    misfits: [[/float32 inputs/, () => op.rmsInverse(ids('n', 3), 0.1)]],
  },
  rmsNorm: {
    cases: (
      [
        ['batch', 4],
        ['batch', 'time', 4],
      ] as Shape[]
    ).map((shape) => ({
      inputs: [{ shape }, fed(4)],
      build: (a, w) => op.rmsNorm(a, w, 0.1),
      shape,
      formula: (a, w) => ({
        dims: a.dims,
        data: byRow(a, (row) => row.map((element, i) => element * inverseRms(row) * at(w, i))),
      }),
      secondOrder: true,
    })),
    misfits: [
      [
        /a weight as long as the last axis, found float32\[n, 4\], float32\[3\]/,
        () => op.rmsNorm(x('n', 4), x(3), 0.1),
      ],
      [/float32 inputs/, () => op.rmsNorm(ids('n', 4), x(4), 0.1)],
    ],
  },
  deviationInverse: {
    cases: [
      {
        inputs: [fed('batch', 'time', 4)],
        build: (a) => op.deviationInverse(a, 0.1),
        shape: ['batch', 'time', 1],
        formula: (a) => ({
          dims: [...a.dims.slice(0, -1), 1],
          data: byRow(a, (row) => [moments(row).inverse]),
        }),
        secondOrder: true,
      },
    ],
    misfits: [[/float32 inputs/, () => op.deviationInverse(ids('n', 3), 0.1)]],
  },
  standardize: {
    cases: [
      {
        inputs: [fed('batch', 'time', 4)],
        build: (a) => op.standardize(a, 0.1),
        shape: ['batch', 'time', 4],
        formula: (a) => ({ dims: a.dims, data: byRow(a, (row) => moments(row).standardized) }),
        secondOrder: true,
      },
    ],
    misfits: [[/float32 inputs/, () => op.standardize(ids('n', 3), 0.1)]],
  },
  layerNorm: {
    cases: (
      [
        ['batch', 4],
        ['batch', 'time', 4],
      ] as Shape[]
    ).map((shape) => ({
      inputs: [{ shape }, fed(4), fed(4)],
      build: (a, w, b) => op.layerNorm(a, w, b, 0.1),
      shape,
      formula: (a, w, b) => ({
        dims: a.dims,
        data: byRow(a, (row) => moments(row).standardized.map((element, i) => element * at(w, i) + at(b, i))),
      }),
    })),
    misfits: [
      [
        /a weight and a bias as long as the last axis, found float32\[n, 4\], float32\[4\], float32\[3\]/,
        () => op.layerNorm(x('n', 4), x(4), x(3), 0.1),
      ],
      [/as long as the last axis/, () => op.layerNorm(x('n', 4), x(3), x(4), 0.1)],
      [/float32 inputs/, () => op.layerNorm(ids('n', 4), x(4), x(4), 0.1)],
    ],
  },
  crossEntropy: {
    cases: [
      {
        inputs: [fed('n', 5), { shape: ['n'], values: { below: 5 } }],
        build: op.crossEntropy,
        shape: ['n'],
        formula: (logits, labels) =>
          tabulate(labels.dims, (i) => {
            const row = logits.data.slice(i! * 5, i! * 5 + 5);
            return logSumExp(row) - row[at(labels, i!)]!;
          }),
        secondOrder: true,
      },
    ],
    misfits: [
      [
        /logits \[n, classes\] and int64 labels \[n\], found float32\[n, 5\], int64\[m\]/,
        () => op.crossEntropy(x('n', 5), ids('m')),
      ],
      [/found float32\[n, 5\], float32\[n\]/, () => op.crossEntropy(x('n', 5), x('n'))],
      [/found float32\[n\], int64\[n\]/, () => op.crossEntropy(x('n'), ids('n'))],
      [/found int64\[n, 5\], int64\[n\]/, () => op.crossEntropy(ids('n', 5), ids('n'))],
    ],
  },
  minusOneHot: {
    cases: [
      {
        inputs: [fed('n', 4), { shape: ['n'], values: { below: 4 } }],
        build: op.minusOneHot,
        shape: ['n', 4],
        formula: (a, labels) => tabulate(a.dims, (i, j) => at(a, i!, j!) - Number(at(labels, i!) === j)),
      },
    ],
    misfits: [
      [/x \[n, classes\] and int64 labels \[n\]/, () => op.minusOneHot(x('n', 4), ids('m'))],
      [/found float32\[n, 4\], float32\[n\]/, () => op.minusOneHot(x('n', 4), x('n'))],
      [/found float32\[n\], int64\[n\]/, () => op.minusOneHot(x('n'), ids('n'))],
    ],
  },
  // Its rounding has no slope: see quantized-linear.test.ts.
  quantizedLinear: {
    cases: [],
    misfits: [
      [/x \[n, 3\], and w \[3, 2\] with its transpose/, () => op.quantizedLinear(x('n', 2), eightBits(3, 2))],
      [/found float32\[n, 2, 3\]/, () => op.quantizedLinear(x('n', 2, 3), eightBits(3, 2))],
      [/with its transpose/, () => op.quantizedLinear(x('n', 3), { ...eightBits(3, 2), backward: x(3, 2) })],
    ],
  },
  topValues: {
    cases: [
      {
        inputs: [{ shape: ['batch', 'time', 7], frozen: true }],
        build: (a) => op.topValues(a, 2),
        shape: ['batch', 'time', 2],
        formula: (a) => ({ dims: topShape(a), data: byRow(a, (row) => topOf(row, 2).map(({ a }) => a)) }),
      },
    ],
    misfits: [
      [/a last axis of at least 4 places, found float32\[n, 3\]/, () => op.topValues(x('n', 3), 4)],
      [/float32 inputs/, () => op.topValues(ids('n', 3), 2)],
    ],
  },
  topIndices: {
    cases: [
      {
        // Gathered by them, the row of all tokens is their indices.
        inputs: [{ shape: [7], frozen: true }],
        build: (a) => op.gather(a, op.topIndices(a, 3)),
        shape: [3],
        formula: (a) => ({ dims: [3], data: topOf([...a.data], 3).map(({ a }) => a) }),
      },
    ],
    misfits: [[/a last axis of at least 4 places/, () => op.topIndices(x('n', 3), 4)]],
  },
  sum: {
    cases: [
      {
        inputs: [fed('batch', 'time', 3)],
        build: (a) => op.sum(a, [1]),
        shape: ['batch', 1, 3],
        formula: (a) => tabulate([a.dims[0]!, 1, 3], (i, _, k) => sumOf(a.dims[1]!, (j) => at(a, i!, j, k!))),
      },
      {
        inputs: [fed('batch', 'time', 3)],
        build: (a) => op.sum(a, [0, 2]),
        shape: [1, 'time', 1],
        formula: (a) =>
          tabulate([1, a.dims[1]!, 1], (_, j) => sumOf(a.dims[0]!, (i) => sumOf(3, (k) => at(a, i, j!, k)))),
      },
    ],
    misfits: [
      [/needs the axes 0,2, found float32\[2, 3\]/, () => op.sum(x(2, 3), [0, 2])],
      [/the axes -1/, () => op.sum(x(2, 3), [-1])],
      [/float32 inputs/, () => op.sum(ids(2, 3), [0])],
    ],
  },
  expand: {
    cases: [
      {
        inputs: [fed(3), fed('batch', 'time', 1)], // the second binds the sizes
        build: (a, b) => op.mul(op.expand(a, ['batch', 'time', 3]), b),
        shape: ['batch', 'time', 3],
        formula: (a, b) => tabulate([b.dims[0]!, b.dims[1]!, 3], (i, j, k) => at(a, k!) * at(b, i!, j!, 0)),
      },
      {
        inputs: [fed('batch', 1, 3)],
        build: (a) => op.expand(a, ['batch', 2, 3]),
        shape: ['batch', 2, 3],
        formula: (a) => tabulate([a.dims[0]!, 2, 3], (i, _, k) => at(a, i!, 0, k!)),
      },
    ],
    misfits: [
      [/a shape that grows to \[1, 3\], found float32\[2, 3\]/, () => op.expand(x(2, 3), [1, 3])],
      [/do not broadcast/, () => op.expand(x(2, 3), [4, 3])],
    ],
  },
  reshape: {
    cases: [
      {
        inputs: [fed('batch', 'time', 4)],
        build: (a) => op.reshape(a, [times('batch', 'time'), 4]),
        shape: ['batch*time', 4],
        formula: (a) => ({ dims: [a.dims[0]! * a.dims[1]!, 4], data: a.data }),
      },
      {
        inputs: [fed('batch', 'time', 4)],
        build: (a) => op.reshape(op.reshape(a, [times('batch', 'time'), 4]), ['batch', 2, 'time', 2]),
        shape: ['batch', 2, 'time', 2],
        formula: (a) => ({ dims: [a.dims[0]!, 2, a.dims[1]!, 2], data: a.data }),
      },
      {
        inputs: [fed(2, 3)],
        build: (a) => op.reshape(a, [6]),
        shape: [6],
        formula: (a) => ({ dims: [6], data: a.data }),
      },
    ],
    misfits: [
      [/as many elements as \[7\], found float32\[2, 3\]/, () => op.reshape(x(2, 3), [7])],
      [/as many elements as \[batch, 3\]/, () => op.reshape(x('batch', 'time', 3), ['batch', 3])],
    ],
  },
  transpose: {
    cases: [
      {
        inputs: [fed('batch', 'time', 2, 3)],
        build: (a) => op.transpose(a, [1, 3, 0, 2]), // not its own inverse
        shape: ['time', 3, 'batch', 2],
        formula: (a) => tabulate([a.dims[1]!, 3, a.dims[0]!, 2], (t, k, b, h) => at(a, b!, t!, h!, k!)),
      },
    ],
    misfits: [
      [
        /as many axes as the permutation 1,0, found float32\[2, 3, 4\]/,
        () => op.transpose(x(2, 3, 4), [1, 0]),
      ],
      [/the permutation 0,0/, () => op.transpose(x(2, 3), [0, 0])],
    ],
  },
  concat: {
    cases: [
      {
        inputs: [fed('batch', 'past', 2), fed('batch', 'time', 2), fed('batch', 1, 2)],
        build: (...parts) => op.concat(parts, 1),
        shape: ['batch', plus('past', 'time', 1), 2],
        formula: (a, b, c) =>
          tabulate([a.dims[0]!, a.dims[1]! + b.dims[1]! + 1, 2], (i, j, k) => {
            const [first, second] = [a.dims[1]!, a.dims[1]! + b.dims[1]!];
            if (j! < first) return at(a, i!, j!, k!);
            return j! < second ? at(b, i!, j! - first, k!) : at(c, i!, 0, k!);
          }),
      },
    ],
    misfits: [
      [/equal types and shapes apart from axis 1/, () => op.concat([x(2, 3), x(3, 3)], 1)],
      [/apart from axis 2, found float32\[2, 3\], float32\[2, 3\]/, () => op.concat([x(2, 3), x(2, 3)], 2)],
      [/apart from axis -1/, () => op.concat([x(2), x(2)], -1)],
      [/equal types/, () => op.concat([x(2), ids(2)], 0)],
    ],
  },
  slice: {
    cases: [
      {
        inputs: [fed('batch', 5)],
        build: (a) => op.slice(a, 1, 1, 3),
        shape: ['batch', 3],
        formula: (a) => tabulate([a.dims[0]!, 3], (i, j) => at(a, i!, j! + 1)),
      },
      {
        inputs: [fed('batch', plus('past', 'time'), 2), fed('past', 1, 1), fed(1, 'time', 1)],
        build: (a, past, time) => op.add(op.mul(op.slice(a, 1, 'past', 'time'), time), op.sum(past, [0])),
        shape: ['batch', 'time', 2],
        formula: (a, past, time) =>
          tabulate(
            [a.dims[0]!, time.dims[1]!, 2],
            (i, j, k) =>
              at(a, i!, j! + past.dims[0]!, k!) * at(time, 0, j!, 0) +
              past.data.reduce((sum, element) => sum + element, 0),
          ),
      },
    ],
    misfits: [
      [/an axis 2 of at least 1 places, found float32\[2, 3\]/, () => op.slice(x(2, 3), 2, 0, 1)],
      [/an axis -1/, () => op.slice(x(2, 3), -1, 0, 1)],
      [/an axis 1 of at least 4 places/, () => op.slice(x(2, 3), 1, 2, 2)],
    ],
  },
  pad: {
    cases: [
      {
        inputs: [fed('batch', 2)],
        build: (a) => op.add(op.pad(a, 1, 0, 4), op.pad(a, 1, 2, 4)), // [a a]
        shape: ['batch', 4],
        formula: (a) => tabulate([a.dims[0]!, 4], (i, j) => at(a, i!, j! % 2)),
      },
      {
        inputs: [fed('batch', 2)],
        build: (a) => op.pad(a, 1, 1, 4),
        shape: ['batch', 4],
        formula: (a) => tabulate([a.dims[0]!, 4], (i, j) => (j === 1 || j === 2 ? at(a, i!, j - 1) : 0)),
      },
      {
        inputs: [fed('batch', 'time', 2), fed(1, 'past', 1)],
        build: (a, past) => op.add(op.pad(a, 1, 'past', plus('past', 'time', 1)), op.sum(past, [1])),
        shape: ['batch', plus('past', 'time', 1), 2],
        formula: (a, past) =>
          tabulate([a.dims[0]!, past.dims[1]! + a.dims[1]! + 1, 2], (i, j, k) => {
            const t = j! - past.dims[1]!;
            const inside = t >= 0 && t < a.dims[1]! ? at(a, i!, t, k!) : 0;
            return inside + past.data.reduce((sum, element) => sum + element, 0);
          }),
      },
    ],
    misfits: [
      [/fits behind 2 of 4 places, found float32\[2, 3\]/, () => op.pad(x(2, 3), 1, 2, 4)],
      [/an axis 2/, () => op.pad(x(2, 3), 2, 0, 4)],
      [/float32 inputs/, () => op.pad(ids(2, 3), 1, 0, 4)],
    ],
  },
  gather: {
    cases: [
      {
        inputs: [fed('m', 'time', 2), { shape: ['n'], values: { below: 2 } }],
        build: op.gather,
        shape: ['n', 'time', 2],
        formula: (a, indices) =>
          tabulate([indices.dims[0]!, a.dims[1]!, 2], (i, j, k) => at(a, at(indices, i!), j!, k!)),
      },
    ],
    misfits: [
      [/int64 indices \[n\], found float32\[2, 3\], int64\[n, 1\]/, () => op.gather(x(2, 3), ids('n', 1))],
      [/int64 indices/, () => op.gather(x(2, 3), x('n'))],
    ],
  },
  scatter: {
    // More rows than places: some go to the same one.
    cases: ([['n'], ['n', 3], ['n', 'time', 2]] as Shape[]).map((shape) => ({
      inputs: [{ shape }, { shape: ['n'], values: { below: 3 } }],
      build: (a, indices) => op.scatter(a, indices, 4),
      shape: [4, ...shape.slice(1)],
      formula: (a, indices) =>
        tabulate([4, ...a.dims.slice(1)], (place, ...rest) =>
          sumOf(a.dims[0]!, (i) => (at(indices, i) === place ? at(a, i, ...rest) : 0)),
        ),
    })),
    misfits: [
      [
        /int64 indices, one a row, found float32\[n, 3\], int64\[m\]/,
        () => op.scatter(x('n', 3), ids('m'), 4),
      ],
      [/int64 indices/, () => op.scatter(x('n', 3), x('n'), 4)],
      [/float32 inputs/, () => op.scatter(ids('n', 3), ids('n'), 4)],
    ],
  },
  rotary: {
    cases: [rotaryCase(false), rotaryCase(true)],
    misfits: [
      [
        /x \[n, heads \* d\], positions \[n\], tables \[m, d\/2\]/,
        () => op.rotary(x('n', 8), ids('n'), x(5, 3), x(5, 3)),
      ],
      [/rotary/, () => op.rotary(x('n', 2, 4), ids('n'), x(5, 2), x(5, 2))],
      [/rotary/, () => op.rotary(x('n', 8), ids('m'), x(5, 2), x(5, 2))],
      [/rotary/, () => op.rotary(x('n', 8), x('n'), x(5, 2), x(5, 2))],
      [/rotary/, () => op.rotary(x('n', 8), ids('n'), x(5, 2), x(6, 2))],
    ],
  },
};
