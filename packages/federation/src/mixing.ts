// The rows of a mixing matrix that have to be computed: equal ones share a result (FedAvg has one row in all).

export interface DistinctRows {
  readonly rows: readonly (readonly number[])[];
  /** For each row of the matrix its place in `rows`. */
  readonly places: readonly number[];
}

export function distinctRows(matrix: readonly (readonly number[])[]): DistinctRows {
  const rows: (readonly number[])[] = [];
  const places = matrix.map((row) => {
    const known = rows.findIndex((other) => isSame(other, row));
    return known >= 0 ? known : rows.push(row) - 1;
  });
  return { rows, places };
}

function isSame(a: readonly number[], b: readonly number[]): boolean {
  return a === b || a.every((weight, j) => weight === b[j]);
}

/** The only client that a row takes anything from; undefined if there are several. */
export function onlySource(weights: readonly number[]): number | undefined {
  const only = weights.indexOf(1);
  return only >= 0 && weights.every((weight, j) => j === only || weight === 0) ? only : undefined;
}
