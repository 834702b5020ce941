// Cosines between clients, over all their tensors as one flat vector each.
import type { Block, Products } from './products/products.ts';

/**
 * s_ij = cos(x_i, x_j) of x = rows - origins, or x = rows. A zero vector has cosine 0 with every other, and everything
 * has cosine 1 with itself.
 */
export async function cosines(blocks: AsyncIterable<Block>, products: Products): Promise<number[][]> {
  const gram = await products.gram(blocks);
  const norms = gram.map((row, i) => Math.sqrt(row[i]!));
  return gram.map((row, i) =>
    row.map((product, j) => {
      if (i === j) return 1;
      const norm = norms[i]! * norms[j]!;
      // Rounding may leave the range by a little, and a weight below 0 is none.
      return norm === 0 ? 0 : Math.max(-1, Math.min(1, product / norm));
    }),
  );
}
