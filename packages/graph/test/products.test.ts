// Products of many rows on the engine against the plain sums in float64.
import { afterAll, describe, expect, test } from 'vitest';
import { rowProducts } from '../src/products.ts';
import { random } from '../src/random.ts';
import { nodeRuntime } from '../src/runtime/node.ts';

const products = rowProducts(nodeRuntime({ threads: 2 }));
afterAll(() => products.dispose());

const draw = random(1, 'products');
const matrix = (rows: number, columns: number) =>
  Array.from({ length: rows }, () => Float32Array.from({ length: columns }, draw.normal));
/** The same rows as views of one buffer, where `order` says. */
function lyingTogether(rows: readonly Float32Array[], order: readonly number[]): Float32Array[] {
  const width = rows[0]!.length;
  const buffer = new Float32Array(rows.length * width + 1);
  return rows.map((row, c) => {
    const place = order[c]! * width + 1;
    buffer.set(row, place);
    return buffer.subarray(place, place + width);
  });
}
async function* stream<T>(...blocks: readonly T[]): AsyncGenerator<T> {
  yield* blocks;
}
/** The largest error beside the largest value. */
function relativeError(
  actual: readonly ArrayLike<number>[],
  expected: readonly (readonly number[])[],
): number {
  expect(actual.map(({ length }) => length)).toEqual(expected.map(({ length }) => length));
  let [worst, largest] = [0, 0];
  for (const [c, row] of expected.entries())
    for (const [k, value] of row.entries()) {
      worst = Math.max(worst, Math.abs(value - actual[c]![k]!));
      largest = Math.max(largest, Math.abs(value));
    }
  return worst / largest;
}

// One row; fewer rows than groups; a last group that is smaller; blocks narrower and wider than a piece.
describe.each([
  [1, [5]],
  [3, [4096, 1]],
  [19, [100, 4097, 100]],
  [40, [2 * 4096 + 7]],
])('of %i rows in blocks of %j columns', (n, widths) => {
  const blocks = widths.map((width) => ({ rows: matrix(n, width), origins: matrix(n, width) }));
  const flat = (of: readonly Float32Array[][]) =>
    Array.from({ length: n }, (_, c) => of.flatMap((rows) => [...rows[c]!]));
  const rows = flat(blocks.map((block) => block.rows));
  const origins = flat(blocks.map((block) => block.origins));
  const dots = (x: readonly number[][]) =>
    x.map((a) => x.map((b) => a.reduce((sum, value, k) => sum + value * b[k]!, 0)));

  test('the Gram matrix', async () => {
    expect(
      relativeError(
        await products.gram(stream(...blocks)),
        dots(rows.map((row, c) => row.map((value, k) => value - origins[c]![k]!))),
      ),
    ).toBeLessThan(1e-6);
    const plain = stream(...blocks.map((block) => ({ rows: block.rows })));
    expect(relativeError(await products.gram(plain), dots(rows))).toBeLessThan(1e-6);
  });

  test('the same where rows lie together, in order or not', async () => {
    const together = (order: readonly number[]) =>
      blocks.map((block) => ({
        rows: lyingTogether(block.rows, order),
        origins: lyingTogether(block.origins, order),
      }));
    const expected = await products.gram(stream(...blocks));
    const inOrder = [...rows.keys()];
    for (const order of [inOrder, inOrder.toReversed()])
      expect(await products.gram(stream(...together(order)))).toEqual(expected);
    const weights = [rows.map((_, j) => j / n)];
    const mixed = async (streamed: readonly { rows: Float32Array[] }[]) => {
      const found: Float32Array[][] = [];
      for await (const block of products.mix(weights, stream(...streamed.map((block) => block.rows))))
        found.push(block);
      return found;
    };
    expect(await mixed(together(inOrder.toReversed()))).toEqual(await mixed(blocks));
  });

  test('weighted sums, by as many rows of weights, and by others', async () => {
    for (const m of [n, 1, n + 3]) {
      const weights = matrix(m, n).map((row) => [...row]);
      const mixed: Float32Array[][] = [];
      for await (const block of products.mix(weights, stream(...blocks.map((block) => block.rows))))
        mixed.push(block);
      expect(mixed.map(([first]) => first!.length)).toEqual(widths);
      const expected = weights.map((row) =>
        rows[0]!.map((_, k) => row.reduce((sum, weight, j) => sum + weight * rows[j]![k]!, 0)),
      );
      const together = weights.map((_, c) => mixed.flatMap((block) => [...block[c]!]));
      expect(relativeError(together, expected)).toBeLessThan(1e-6);
    }
  });
});

test("leave the rows as they are, and return the receiver's own", async () => {
  const [rows, origins] = [matrix(4, 30), matrix(4, 30)];
  const before = structuredClone([rows, origins]);
  await products.gram(stream({ rows, origins }));
  for await (const mixed of products.mix([[1, 0, 0, 0]], stream(rows, rows))) {
    expect([...mixed[0]!]).toEqual([...rows[0]!]);
    mixed[0]!.fill(7);
  }
  expect([rows, origins]).toEqual(before);
});

test('weights for another number of rows are an error', async () => {
  const mix = async () => {
    for await (const _ of products.mix([[1]], stream([Float32Array.of(1), Float32Array.of(2)])));
  };
  await expect(mix()).rejects.toThrow('"rows" is [2, 1], the graph wants [n, columns]');
});
