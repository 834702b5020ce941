// What a round computes with its clients' parameters, all of it: inner products, from which the cosines follow, and
// weighted sums. Parameters come in blocks, one row a client, so that they need not be in memory at once.
import { addInnerProducts } from './inner-products.ts';
import { weightedSums } from './weighted-sums.ts';

/** Equally long rows, one a client. */
export type Rows = readonly Float32Array[];

export interface Block {
  readonly rows: Rows;
  /** What is subtracted first. */
  readonly origins?: Rows | undefined;
}

export interface Products {
  /** `[i][j]`: the sum of x_i . x_j over all blocks, x = rows - origins, or x = rows. */
  gram(blocks: AsyncIterable<Block>): Promise<number[][]>;
  /** Of each block `sum_j matrix[c][j] rows[j]` for every row c of the matrix; the caller's own, maybe in one buffer. */
  mix(matrix: readonly (readonly number[])[], blocks: AsyncIterable<Rows>): AsyncIterable<Float32Array[]>;
}

/** In TypeScript, with sums in float64. The fastest for a few clients; the time grows with the square of their number. */
export const plainProducts: Products = {
  async gram(blocks) {
    let products: number[][] = [];
    for await (const block of blocks) {
      const n = block.rows.length;
      if (products.length === 0) products = block.rows.map(() => new Array<number>(n).fill(0));
      addInnerProducts(products, block);
    }
    return products.map((row, i) => row.map((product, j) => (j < i ? products[j]![i]! : product)));
  },
  async *mix(matrix, blocks) {
    for await (const rows of blocks) yield weightedSums(matrix, rows);
  },
};
