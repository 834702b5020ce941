// What clients' parameters are to each other, over the tensors that both hold as one flat vector each.

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

/** x_i . x_j. */
export function innerProducts(parts: readonly HeldProducts[], clients: number): number[][] {
  const products = zeros(clients);
  for (const { holders, gram } of parts)
    for (const [r, i] of holders.entries())
      for (const [c, j] of holders.entries()) products[i]![j]! += gram[r]![c]!;
  return products;
}

/** |x_i - x_j|^2 = |x_i|^2 + |x_j|^2 - 2 x_i . x_j; infinite between two that share no tensor. */
export function squaredDistances(parts: readonly HeldProducts[], clients: number): number[][] {
  const squares = Array.from({ length: clients }, () =>
    new Array<number | undefined>(clients).fill(undefined),
  );
  for (const { holders, gram } of parts)
    for (const [r, i] of holders.entries())
      for (const [c, j] of holders.entries()) {
        const squared = gram[r]![r]! + gram[c]![c]! - 2 * gram[r]![c]!;
        squares[i]![j] = (squares[i]![j] ?? 0) + squared;
      }
  // Rounding may leave a little less than 0.
  return squares.map((row, i) =>
    row.map((squared = Number.POSITIVE_INFINITY, j) => (i === j ? 0 : Math.max(0, squared))),
  );
}

/**
 * `[i][j]`: |y - s_i|^2 of i's start s_i, y being x_j in the tensors that both hold and x_i in the others that i holds.
 * `gram` is of the holders' x and then of their starts.
 */
export function squaredMoves(parts: readonly HeldProducts[], clients: number): number[][] {
  const moves = zeros(clients);
  for (const { holders, gram } of parts) {
    const places = new Map(holders.map((client, place) => [client, place]));
    for (const [r, i] of holders.entries()) {
      const start = holders.length + r;
      for (let j = 0; j < clients; j++) {
        const c = places.get(j) ?? r;
        moves[i]![j]! += gram[c]![c]! + gram[start]![start]! - 2 * gram[c]![start]!;
      }
    }
  }
  return moves.map((row) => row.map((squared) => Math.max(0, squared)));
}

function zeros(clients: number): number[][] {
  return Array.from({ length: clients }, () => new Array<number>(clients).fill(0));
}
