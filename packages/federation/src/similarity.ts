// Cosines between clients, over the tensors that both hold as one flat vector each.

/** Inner products between the clients `holders`, over tensors that all of them hold. */
export interface HeldProducts {
  readonly holders: readonly number[];
  /** `[r][c]`: x_i . x_j of i = holders[r], j = holders[c]. */
  readonly gram: readonly (readonly number[])[];
}

/**
 * s_ij = sum x_i . x_j / (sqrt(sum |x_i|^2) sqrt(sum |x_j|^2)), sums over the tensors that both hold. A zero vector has
 * cosine 0 with every other, as has one that shares no tensor; everything has cosine 1 with itself.
 */
export function cosines(parts: readonly HeldProducts[], clients: number): number[][] {
  const products = zeros(clients);
  /** `[i][j]`: |x_i|^2 over what j holds too. */
  const squares = zeros(clients);
  for (const { holders, gram } of parts)
    for (const [r, i] of holders.entries())
      for (const [c, j] of holders.entries()) {
        products[i]![j]! += gram[r]![c]!;
        squares[i]![j]! += gram[r]![r]!;
      }
  return products.map((row, i) =>
    row.map((product, j) => {
      if (i === j) return 1;
      const norm = Math.sqrt(squares[i]![j]!) * Math.sqrt(squares[j]![i]!);
      // Rounding may leave the range by a little, and a weight below 0 is none.
      return norm === 0 ? 0 : Math.max(-1, Math.min(1, product / norm));
    }),
  );
}

function zeros(clients: number): number[][] {
  return Array.from({ length: clients }, () => new Array<number>(clients).fill(0));
}
