// What the round relies on wherever its parameters lie.
import type { NamedTensors } from '@fellrec/graph';
import fc from 'fast-check';
import { afterEach, describe, expect, it } from 'vitest';
import { type Products, plainProducts } from '../src/index.ts';
import type { RoundParameters, RoundParametersOptions } from '../src/parameters/round-parameters.ts';
import { cosinesOf, tensors } from './toy.ts';

/** Runs the suite on what `open` returns. */
export function describeRoundParameters(
  name: string,
  open: (options: RoundParametersOptions) => Promise<RoundParameters>,
): void {
  const opened: RoundParameters[] = [];
  afterEach(async () => {
    for (const parameters of opened.splice(0)) await parameters.close();
  });
  async function hold(
    starts: readonly NamedTensors[],
    trained: readonly NamedTensors[] = [],
    products: Products = plainProducts,
  ) {
    const parameters = await open({
      like: starts[0]!,
      starts: starts.map((start) => async () => start),
      products,
    });
    opened.push(parameters);
    for (const [c, own] of trained.entries()) await parameters.keep(c, own);
    return parameters;
  }
  const read = (parameters: RoundParameters) => Promise.all(parameters.starts().map((start) => start()));

  /** Longer than a block of a file, cut where no block is cut. */
  const wave = (phase: number): NamedTensors => {
    const value = (k: number) => Math.sin(phase * (k + 1)) + Math.cos(k / (phase + 2));
    const part = (from: number, length: number) => Float32Array.from({ length }, (_, k) => value(from + k));
    return tensors({ a: part(0, 3000), b: part(3000, 5200), c: part(8200, 1) });
  };
  const flat = (named: NamedTensors) => [...named.values()].flatMap(({ data }) => [...data]);
  const dot = (a: readonly number[], b: readonly number[]) => a.reduce((sum, x, k) => sum + x * b[k]!, 0);
  const largestError = (actual: readonly number[], expected: readonly number[]) => {
    expect(actual.length).toBe(expected.length);
    return expected.reduce((worst, value, k) => Math.max(worst, Math.abs(value - actual[k]!)), 0);
  };

  describe(`round parameters: ${name}`, () => {
    it('give back what each client starts from', async () => {
      const starts = [wave(1), wave(2), wave(1)];
      expect(await read(await hold(starts))).toEqual(starts);
    });

    it('give tensors in the order of the first, in whatever order they came', async () => {
      const [ab, ba] = [tensors({ a: [1, 2], b: [3] }), tensors({ b: [6], a: [4, 5] })];
      const parameters = await hold([ab, ba], [ba, ab]);
      expect((await read(parameters)).map((own) => [...own.keys()])).toEqual([
        ['a', 'b'],
        ['a', 'b'],
      ]);
      await parameters.mix([
        [0, 1],
        [1, 0],
      ]);
      expect((await read(parameters)).map((own) => [...own])).toEqual([
        [...ab],
        [...tensors({ a: [4, 5], b: [6] })],
      ]);
    });

    it('compare and mix as the formulas say, for several rounds, and leave what they were given as it is', async () => {
      const starts = [1, 2, 3, 4].map(wave);
      const parameters = await hold(starts);
      for (const round of [1, 2]) {
        const before = (await read(parameters)).map(flat);
        const trained = starts.map((_, c) => wave(5 + c + round / 8));
        const copies = structuredClone(trained);
        for (const [c, own] of trained.entries()) await parameters.keep(c, own);
        const vectors = trained.map(flat);
        const from = { update: before, displacement: starts.map(() => flat(starts[0]!)) };
        for (const on of ['update', 'parameters', 'displacement'] as const) {
          const x =
            on === 'parameters'
              ? vectors
              : vectors.map((v, c) => v.map((value, k) => value - from[on][c]![k]!));
          const expected = x.map((a, i) =>
            x.map((b, j) => (i === j ? 1 : dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b)))),
          );
          expect(largestError((await cosinesOf(parameters, on)).flat(), expected.flat())).toBeLessThan(1e-12);
        }
        const matrix = [
          [0.1, 0.2, 0.3, 0.4],
          [0, 0, 1, 0],
          [0.25, 0.25, 0.25, 0.25],
          [0.25, 0.25, 0.25, 0.25],
        ];
        await parameters.mix(matrix);
        const expected = matrix.map((row) =>
          vectors[0]!.map((_, k) => row.reduce((sum, weight, j) => sum + weight * vectors[j]![k]!, 0)),
        );
        expect(largestError((await read(parameters)).flatMap(flat), expected.flat())).toBeLessThan(1e-6);
        expect(trained).toEqual(copies);
      }
    });

    it('compare trained parameters with starts, from the common start on', async () => {
      const starts = [1, 2, 3].map(wave);
      const trained = [4, 5, 6].map(wave);
      const parameters = await hold(starts, trained);
      const common = flat(starts[0]!);
      const x = [...trained, ...starts].map((own) => flat(own).map((value, k) => value - common[k]!));
      const expected = x.map((a) => x.map((b) => dot(a, b)));
      expect(largestError((await parameters.gramWithStarts()).flat(), expected.flat())).toBeLessThan(1e-8);
    });

    it('give mixtures to the bit as mixing does, while the round goes on', async () => {
      const starts = [1, 2, 3].map(wave);
      const trained = [4, 5, 6].map(wave);
      const parameters = await hold(starts, trained);
      const rows = [
        [0.2, 0.3, 0.5],
        [0, 1, 0],
        [0.2, 0.3, 0.5],
      ];
      const others = [[0.5, 0.5, 0], rows[0]!];
      const first = await parameters.mixtures(rows);
      const second = await parameters.mixtures(others);
      const before = await parameters.gram('update');
      const found = await Promise.all([...first, ...second].map((own) => own()));
      expect(await read(parameters)).toEqual(starts);
      expect(await parameters.gram('update')).toEqual(before);
      expect(await parameters.mixtures([])).toEqual([]);
      await parameters.mix(rows);
      const mixed = await read(parameters);
      expect(found.slice(0, 3)).toEqual(mixed);
      expect(found[1]).toEqual(trained[1]);
      expect(found[4]).toEqual(mixed[0]);
      const half = flat(trained[0]!).map((value, k) => (value + flat(trained[1]!)[k]!) / 2);
      expect(largestError(flat(found[3]!), half)).toBeLessThan(1e-6);
    });

    it('compute equal mixtures once, and those of a single client not at all', async () => {
      const asked: number[] = [];
      const products: Products = {
        ...plainProducts,
        mix(matrix, blocks) {
          asked.push(matrix.length);
          return plainProducts.mix(matrix, blocks);
        },
      };
      const starts = [wave(1), wave(2)];
      const parameters = await hold(starts, starts, products);
      const half = [0.5, 0.5];
      await parameters.mixtures([half, [1, 0], [...half], [0.25, 0.75], [0, 1]]);
      await parameters.mixtures([[1, 0]]);
      expect(asked).toEqual([2]);
    });

    it('permuted, mix to the same permuted', async () => {
      const vector = fc.array(fc.float({ min: -9, max: 9, noNaN: true }), { minLength: 3, maxLength: 3 });
      const clients = fc.array(fc.record({ vector, weight: fc.nat(9) }), { minLength: 1, maxLength: 6 });
      const permuted = clients.chain((all) =>
        fc.tuple(
          fc.constant(all),
          fc.shuffledSubarray([...all.keys()], { minLength: all.length, maxLength: all.length }),
        ),
      );
      await fc.assert(
        fc.asyncProperty(permuted, async ([all, order]) => {
          const own = all.map((client) => tensors({ x: client.vector }));
          const total = (c: number) =>
            all.reduce((sum, { weight }, j) => sum + weight + (c === j ? 1 : 0), 0);
          const matrix = all.map((_, c) =>
            all.map(({ weight }, j) => (weight + (c === j ? 1 : 0)) / total(c)),
          );
          const straight = await hold(own, own);
          await straight.mix(matrix);
          const shuffled = order.map((c) => own[c]!);
          const other = await hold(shuffled, shuffled);
          await other.mix(order.map((c) => order.map((j) => matrix[c]![j]!)));
          const expected = await read(straight);
          expect(
            largestError(
              (await read(other)).flatMap(flat),
              order.flatMap((c) => flat(expected[c]!)),
            ),
          ).toBeLessThan(1e-5);
        }),
        { numRuns: 30 },
      );
    });

    it("return parameters that are the receiver's own: plain data", async () => {
      const parameters = await hold([wave(1), wave(2)]);
      const [first] = await read(parameters);
      expect(structuredClone(first)).toEqual(first);
      for (const { data } of first!.values()) expect(data.buffer.byteLength).toBe(data.byteLength);
    });

    it('close', async () => {
      const parameters = await hold([wave(1)]);
      await parameters.close();
      opened.pop();
    });
  });
}
