// Inner products between clients, a block of columns at a time. Rows are read in passes of few values and five clients:
// with fifteen inner products in one pass, the time goes into reading memory.
import type { Block } from './products.ts';

/** Values of a row in one pass: twenty such pieces stay in the second-level cache. */
const passLength = 8192;
const zeros = new Float32Array(passLength);

/** A piece of one client's row, and what is subtracted from it (zeros, where nothing is). */
interface Piece {
  readonly before: Float32Array;
  readonly after: Float32Array;
}
type Five<T> = readonly [T, T, T, T, T];

/** Adds x_i . x_j of x = rows - origins to products[i][j], i <= j. Sums are float64. */
export function addInnerProducts(products: number[][], { rows, origins }: Block): void {
  const n = rows.length;
  const width = rows[0]!.length;
  const sums = new Float64Array(25);
  for (let from = 0; from < width; from += passLength) {
    const to = Math.min(from + passLength, width);
    const none: Piece = { before: zeros, after: zeros.subarray(0, to - from) };
    const piece = (c: number): Piece => {
      if (c >= n) return none;
      return { before: origins ? origins[c]!.subarray(from, to) : zeros, after: rows[c]!.subarray(from, to) };
    };
    const five = (c: number): Five<Piece> => [
      piece(c),
      piece(c + 1),
      piece(c + 2),
      piece(c + 3),
      piece(c + 4),
    ];
    for (let i = 0; i < n; i += 5) {
      const group = five(i);
      triangle(group, sums);
      add(products, sums, i, i);
      for (let j = i + 5; j < n; j += 5) {
        rectangle(group, five(j), sums);
        add(products, sums, i, j);
      }
    }
  }
}

/** Adds sums[5 r + c] to products[i + r][j + c], above the diagonal and on it. */
function add(products: number[][], sums: Float64Array, i: number, j: number): void {
  for (let r = 0; r < 5 && i + r < products.length; r++) {
    const row = products[i + r]!;
    for (let c = i === j ? r : 0; c < 5 && j + c < row.length; c++) row[j + c]! += sums[5 * r + c]!;
  }
}

/** sums[5 r + c] = x_r . x_c for r <= c. */
function triangle(pieces: Five<Piece>, sums: Float64Array): void {
  const [{ after: p0, before: s0 }, { after: p1, before: s1 }, { after: p2, before: s2 }] = pieces;
  const [, , , { after: p3, before: s3 }, { after: p4, before: s4 }] = pieces;
  let [a00, a01, a02, a03, a04] = [0, 0, 0, 0, 0];
  let [a11, a12, a13, a14] = [0, 0, 0, 0];
  let [a22, a23, a24, a33, a34, a44] = [0, 0, 0, 0, 0, 0];
  for (let k = 0; k < p0.length; k++) {
    const x0 = p0[k]! - s0[k]!;
    const x1 = p1[k]! - s1[k]!;
    const x2 = p2[k]! - s2[k]!;
    const x3 = p3[k]! - s3[k]!;
    const x4 = p4[k]! - s4[k]!;
    a00 += x0 * x0;
    a01 += x0 * x1;
    a02 += x0 * x2;
    a03 += x0 * x3;
    a04 += x0 * x4;
    a11 += x1 * x1;
    a12 += x1 * x2;
    a13 += x1 * x3;
    a14 += x1 * x4;
    a22 += x2 * x2;
    a23 += x2 * x3;
    a24 += x2 * x4;
    a33 += x3 * x3;
    a34 += x3 * x4;
    a44 += x4 * x4;
  }
  sums.set([a00, a01, a02, a03, a04], 0);
  sums.set([a11, a12, a13, a14], 6);
  sums.set([a22, a23, a24], 12);
  sums.set([a33, a34], 18);
  sums[24] = a44;
}

/** sums[5 r + c] = x_r . y_c. */
function rectangle(rows: Five<Piece>, columns: Five<Piece>, sums: Float64Array): void {
  const [{ after: p0, before: s0 }, { after: p1, before: s1 }, { after: p2, before: s2 }] = columns;
  const [, , , { after: p3, before: s3 }, { after: p4, before: s4 }] = columns;
  rows.forEach(({ before, after }, r) => {
    let [a0, a1, a2, a3, a4] = [0, 0, 0, 0, 0];
    for (let k = 0; k < after.length; k++) {
      const x = after[k]! - before[k]!;
      a0 += x * (p0[k]! - s0[k]!);
      a1 += x * (p1[k]! - s1[k]!);
      a2 += x * (p2[k]! - s2[k]!);
      a3 += x * (p3[k]! - s3[k]!);
      a4 += x * (p4[k]! - s4[k]!);
    }
    sums.set([a0, a1, a2, a3, a4], 5 * r);
  });
}
