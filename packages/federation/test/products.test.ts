// The products in plain TypeScript against the formulas, over blocks and passes, and the cosines.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type Block, plainProducts, type Rows } from '../src/index.ts';
import { cosines } from '../src/similarity.ts';
import { stream } from './toy.ts';

async function cosinesIn(...blocks: readonly Block[]): Promise<number[][]> {
  const gram = await plainProducts.gram(stream(...blocks));
  return cosines([{ holders: [...gram.keys()], gram }], gram.length);
}
const dot = (a: readonly number[], b: readonly number[]) => a.reduce((sum, x, i) => sum + x * b[i]!, 0);

describe('cosines', () => {
  it('of a zero vector are 0 with everything but itself', async () => {
    const rows = [
      [0, 0],
      [1, 2],
      [0, 0],
    ].map((row) => Float32Array.from(row));
    expect(await cosinesIn({ rows })).toEqual([
      [1, 0, 0],
      [0, 1, 0],
      [0, 0, 1],
    ]);
  });

  it('of parallel and opposite vectors stay in [-1, 1], however they round', async () => {
    for (let seed = 1; seed < 40; seed++) {
      const vector = Float32Array.from({ length: 50 }, (_, k) => Math.sin(seed * (k + 1)));
      const rows = [1, 3, -1, -7].map((factor) => vector.map((x) => factor * x));
      const found = (await cosinesIn({ rows })).flat();
      expect([Math.min(...found) >= -1, Math.max(...found) <= 1]).toEqual([true, true]);
    }
  });

  it('of any number of clients are what the formula says, across blocks and passes', async () => {
    const vector = fc.array(fc.integer({ min: -5, max: 5 }), { minLength: 3, maxLength: 3 });
    await fc.assert(
      fc.asyncProperty(fc.array(fc.tuple(vector, vector), { minLength: 1, maxLength: 13 }), async (pairs) => {
        // Repeated, so that a block takes more than one pass.
        const long = (v: readonly number[]) =>
          Float32Array.from({ length: 8192 + 7 }, (_, i) => v[i % 3]! + (i === 8193 ? 9 : 0));
        const short = (v: readonly number[]) => Float32Array.from(v);
        const blocks = [long, short].map((cut) => ({
          rows: pairs.map(([, after]) => cut(after)),
          origins: pairs.map(([before]) => cut(before)),
        }));
        const actual = await cosinesIn(...blocks);
        const updates = pairs.map((_, c) =>
          blocks.flatMap(({ rows, origins }) => [...rows[c]!].map((x, i) => x - origins[c]![i]!)),
        );
        for (const [i, a] of updates.entries())
          for (const [j, b] of updates.entries()) {
            const norm = Math.sqrt(dot(a, a) * dot(b, b));
            const expected = i === j ? 1 : norm === 0 ? 0 : dot(a, b) / norm;
            expect(actual[i]![j]).toBeCloseTo(expected, 12);
          }
      }),
      { numRuns: 20 },
    );
  });
});

describe('weighted sums', () => {
  it('of long rows, by a number of clients that has no path of its own, and by five', async () => {
    for (const n of [3, 5, 7]) {
      const rows: Rows = Array.from({ length: n }, (_, c) =>
        Float32Array.from({ length: 2 * 4096 + 3 }, (_, k) => Math.sin(k * (c + 1))),
      );
      const matrix = rows.map((_, c) => rows.map((_, j) => ((c + j) % n) / ((n * (n - 1)) / 2)));
      for (const weights of [matrix, matrix.slice(1)])
        for await (const mixed of plainProducts.mix(weights, stream(rows)))
          for (const [c, row] of weights.entries()) {
            const expected = Float64Array.from(rows[0]!, (_, k) =>
              row.reduce((sum, w, j) => sum + w * rows[j]![k]!, 0),
            );
            expect(Math.max(...expected.map((value, k) => Math.abs(value - mixed[c]![k]!)))).toBeLessThan(
              1e-7,
            );
          }
    }
  });
});
