// What a round's mixing came to, in a few numbers.

type Matrix = readonly (readonly number[])[];

/** By row 1 / sum_j m_cj^2: 1 if a client keeps its own, n if it takes the same from n clients. */
export function effectiveClients(matrix: Matrix): number[] {
  return matrix.map((row) => 1 / row.reduce((sum, weight) => sum + weight * weight, 0));
}

export interface CosineMeans {
  readonly within?: number;
  readonly across?: number;
}

/**
 * Means over pairs of different clients of one group, and of two; without a mean where there is no such pair. Clients
 * without a group are left out. Undefined with less than two groups.
 */
export function cosineMeans(
  cosines: Matrix,
  groups: readonly (string | undefined)[],
): CosineMeans | undefined {
  if (new Set(groups.filter((group) => group !== undefined)).size < 2) return undefined;
  const pairs: { within: number[]; across: number[] } = { within: [], across: [] };
  for (const [i, row] of cosines.entries())
    for (const [j, cosine] of row.entries()) {
      if (i >= j || groups[i] === undefined || groups[j] === undefined) continue;
      pairs[groups[i] === groups[j] ? 'within' : 'across'].push(cosine);
    }
  const { within, across } = pairs;
  return {
    ...(within.length > 0 && { within: mean(within) }),
    ...(across.length > 0 && { across: mean(across) }),
  };
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
