// What the engine is compared with: arrays of float64 in plain TypeScript, formulas by index, central differences.
import type { Dim } from '../src/dim.ts';
import type { Tensor } from '../src/tensor.ts';

export interface NdArray {
  readonly dims: readonly number[];
  /** Row-major. */
  readonly data: readonly number[];
}

/** The array whose element at an index is `element(...index)`. */
export function tabulate(dims: readonly number[], element: (...index: number[]) => number): NdArray {
  let indices: number[][] = [[]];
  for (const dim of dims) indices = indices.flatMap((index) => range(dim).map((i) => [...index, i]));
  return { dims, data: indices.map((index) => element(...index)) };
}

/** An element by its index; axes of size 1 and leading axes that are absent broadcast. */
export function at({ dims, data }: NdArray, ...index: number[]): number {
  const lead = index.length - dims.length;
  return data[dims.reduce((offset, dim, axis) => offset * dim + (dim === 1 ? 0 : index[axis + lead]!), 0)]!;
}

const range = (count: number): number[] => Array.from({ length: count }, (_, i) => i);
export const sumOf = (count: number, term: (i: number) => number): number =>
  range(count).reduce((sum, i) => sum + term(i), 0);

/** A dimension's value. Its own reading of the expression, independent of `dim.ts`. */
export function sizeOf(dim: Dim, sizes: Readonly<Record<string, number>>): number {
  const factor = (name: string) => (/^\d+$/.test(name) ? Number(name) : sizes[name]!);
  return `${dim}`
    .split('+')
    .map((term) => term.split('*').reduce((product, name) => product * factor(name), 1))
    .reduce((a, b) => a + b, 0);
}

/** df/dx[j] for every j. */
export function centralDifferences(
  f: (x: readonly number[]) => number,
  x: readonly number[],
  step: number,
): number[] {
  return x.map((_, j) => {
    const moved = (by: number) => f(x.map((element, i) => (i === j ? element + by : element)));
    return (moved(step) - moved(-step)) / (2 * step);
  });
}

/** The largest difference of two arrays, relative to the largest expected magnitude where that is above 1. */
export function largestError(found: Tensor | NdArray, expected: readonly number[]): number {
  if (found.data.length !== expected.length) return Number.POSITIVE_INFINITY;
  const magnitude = Math.max(1, ...expected.map(Math.abs));
  const errors = expected.map((element, i) => Math.abs(Number(found.data[i]) - element) / magnitude);
  return errors.some(Number.isNaN) ? Number.NaN : Math.max(0, ...errors);
}
