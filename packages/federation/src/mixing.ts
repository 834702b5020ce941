// A mixing matrix over some of the clients, and its rows that have to be computed: equal ones share a result (FedAvg has
// one row in all).

type Matrix = readonly (readonly number[])[];

/** The rows and columns of `clients`. */
export function between(clients: readonly number[], matrix: Matrix): Matrix {
  return clients.length === matrix.length ? matrix : clients.map((c) => clients.map((j) => matrix[c]![j]!));
}

/** A matrix between `clients` as one between all `count`: the others keep their own, and nobody takes from them. */
export function amongAll(clients: readonly number[], matrix: Matrix, count: number): Matrix {
  if (clients.length === count) return matrix;
  const all = Array.from({ length: count }, (_, c) => oneHot(c, count));
  for (const [row, c] of clients.entries()) all[c] = rowAmongAll(clients, matrix[row]!, count);
  return all;
}

/** One row of it. */
export function rowAmongAll(clients: readonly number[], row: readonly number[], count: number): number[] {
  const all = new Array<number>(count).fill(0);
  for (const [column, j] of clients.entries()) all[j] = row[column]!;
  return all;
}

/** The matrix between those who hold a tensor: weights of others are dropped and the rest divided by its sum. */
export function amongHolders(holders: readonly number[], matrix: Matrix): Matrix {
  if (holders.length === matrix.length) return matrix;
  return holders.map((c) => rowAmongHolders(holders, matrix[c]!, c));
}

/** One row of it, of the holder `own`. */
export function rowAmongHolders(
  holders: readonly number[],
  row: readonly number[],
  own: number,
): readonly number[] {
  const weights = holders.map((j) => row[j]!);
  const held = new Set(holders);
  // What loses nothing sums to 1 already, and keeps its bits.
  if (row.every((weight, j) => weight === 0 || held.has(j))) return weights;
  const sum = weights.reduce((total, weight) => total + weight, 0);
  return sum === 0 ? oneHot(holders.indexOf(own), holders.length) : weights.map((weight) => weight / sum);
}

export function oneHot(place: number, length: number): number[] {
  return Array.from({ length }, (_, j) => (j === place ? 1 : 0));
}

export interface DistinctRows {
  readonly rows: readonly (readonly number[])[];
  /** For each row of the matrix its place in `rows`. */
  readonly places: readonly number[];
}

export function distinctRows(matrix: Matrix): DistinctRows {
  const rows: (readonly number[])[] = [];
  const places = matrix.map((row) => {
    const known = rows.findIndex((other) => isSameRow(other, row));
    return known >= 0 ? known : rows.push(row) - 1;
  });
  return { rows, places };
}

export function isSameRow(a: readonly number[], b: readonly number[]): boolean {
  return a === b || a.every((weight, j) => weight === b[j]);
}

/** The only client that a row takes anything from; undefined if there are several. */
export function onlySource(weights: readonly number[]): number | undefined {
  const only = weights.indexOf(1);
  return only >= 0 && weights.every((weight, j) => j === only || weight === 0) ? only : undefined;
}
