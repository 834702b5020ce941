// An orthonormal basis of what the rows of a matrix span: Gram-Schmidt with pivoting, in float64 (a rank-revealing QR, as
// of Golub and Van Loan, Matrix Computations, 5.4).
import type { Float32Tensor } from '@fellrec/graph';

export interface RowSpace {
  /** Rows that are not zero. */
  readonly rows: number;
  readonly columns: number;
  /** Orthonormal; as many as the numerical rank. */
  readonly basis: readonly Float64Array[];
}

/**
 * What the rows of matrices [n, columns] span together. All rows are scaled to length 1 first, which does not change
 * the span: rounding errors are proportional to a row's length, so that `tolerance` then bounds them in every row. What
 * is left of all rows outside the basis is shorter than that.
 */
export function rowSpace(matrices: readonly Float32Tensor[], tolerance: number): RowSpace {
  const columns = matrices[0]?.dims[1] ?? 0;
  const rest = matrices.flatMap(({ data }) =>
    Array.from({ length: data.length / columns }, (_, row) =>
      Float64Array.from(data.subarray(row * columns, (row + 1) * columns)),
    ).filter((row) => row.some((x) => x !== 0)),
  );
  for (const row of rest) scaleBy(row, 1 / Math.sqrt(dot(row, row)));
  const squares = rest.map(() => 1);
  const basis: Float64Array[] = [];
  while (basis.length < Math.min(rest.length, columns)) {
    const pivot = squares.reduce((best, square, i) => (square > squares[best]! ? i : best), 0);
    if (squares[pivot]! < tolerance ** 2) break;
    const direction = rest[pivot]!.slice();
    // Once more: what rounding has left of the others' directions.
    for (const known of basis) addScaled(direction, known, -dot(direction, known));
    scaleBy(direction, 1 / Math.sqrt(dot(direction, direction)));
    basis.push(direction);
    for (const [i, row] of rest.entries()) {
      addScaled(row, direction, -dot(row, direction));
      squares[i] = dot(row, row);
    }
    squares[pivot] = 0;
  }
  return { rows: rest.length, columns, basis };
}

/** I - Q^T Q, [columns, columns]: takes a vector to what of it lies outside the space. */
export function complementProjector({ columns, basis }: RowSpace): Float32Array {
  const sums = new Float64Array(columns * columns);
  for (let i = 0; i < columns; i++) sums[i * columns + i] = 1;
  for (const direction of basis)
    for (let i = 0; i < columns; i++)
      addScaled(sums.subarray(i * columns, (i + 1) * columns), direction, -direction[i]!);
  return Float32Array.from(sums);
}

function dot(a: Float64Array, b: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i]! * b[i]!;
  return sum;
}

/** a += factor b, in place. */
function addScaled(a: Float64Array, b: Float64Array, factor: number): void {
  for (let i = 0; i < a.length; i++) a[i]! += factor * b[i]!;
}

function scaleBy(a: Float64Array, factor: number): void {
  for (let i = 0; i < a.length; i++) a[i]! *= factor;
}
