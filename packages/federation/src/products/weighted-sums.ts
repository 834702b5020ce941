// Weighted sums of clients' rows, from a snapshot, never in place (later clients must not average what earlier ones have
// already averaged).
import type { Rows } from './products.ts';

/** `sum_j matrix[c][j] rows[j]` for every row c of the matrix, summed in float64. */
export function weightedSums(matrix: readonly (readonly number[])[], rows: Rows): Float32Array[] {
  const length = rows[0]!.length;
  const sums = matrix.map(() => new Float32Array(length));
  if (matrix.length === 5 && rows.length === 5) fiveOfFive(matrix, rows, sums);
  else for (const [c, weights] of matrix.entries()) weightedSum(weights, rows, sums[c]!);
  return sums;
}

const blockLength = 4096;

/** One row of weights, in blocks that stay in the cache while the clients pass by. */
function weightedSum(weights: readonly number[], sources: Rows, sum: Float32Array): void {
  const block = new Float64Array(Math.min(blockLength, sum.length));
  for (let from = 0; from < sum.length; from += blockLength) {
    const length = Math.min(blockLength, sum.length - from);
    block.fill(0);
    for (const [j, source] of sources.entries()) addScaled(block, weights[j]!, source, from, length);
    for (let k = 0; k < length; k++) sum[from + k] = block[k]!;
  }
}

function addScaled(
  block: Float64Array,
  weight: number,
  source: Float32Array,
  from: number,
  length: number,
): void {
  for (let k = 0; k < length; k++) block[k]! += weight * source[from + k]!;
}

/** The paper's five clients: each value is read once for all five rows. */
function fiveOfFive(
  rows: readonly (readonly number[])[],
  sources: Rows,
  sums: readonly Float32Array[],
): void {
  const [x0, x1, x2, x3, x4] = sources as Five<Float32Array>;
  const [y0, y1, y2, y3, y4] = sums as Five<Float32Array>;
  const [a, b, c, d, e] = rows as Five<Five<number>>;
  const [a0, a1, a2, a3, a4] = a;
  const [b0, b1, b2, b3, b4] = b;
  const [c0, c1, c2, c3, c4] = c;
  const [d0, d1, d2, d3, d4] = d;
  const [e0, e1, e2, e3, e4] = e;
  for (let k = 0; k < x0.length; k++) {
    const v = x0[k]!;
    const w = x1[k]!;
    const x = x2[k]!;
    const y = x3[k]!;
    const z = x4[k]!;
    y0[k] = a0 * v + a1 * w + a2 * x + a3 * y + a4 * z;
    y1[k] = b0 * v + b1 * w + b2 * x + b3 * y + b4 * z;
    y2[k] = c0 * v + c1 * w + c2 * x + c3 * y + c4 * z;
    y3[k] = d0 * v + d1 * w + d2 * x + d3 * y + d4 * z;
    y4[k] = e0 * v + e1 * w + e2 * x + e3 * y + e4 * z;
  }
}
type Five<T> = readonly [T, T, T, T, T];
