// Every operation: its shape, its emission against a formula in float64, its gradient (and for the nonlinear ones the
// gradient's gradient) against central differences of that formula, and what it refuses.
import { rmSync } from 'node:fs';
import { afterAll, describe, expect, test } from 'vitest';
import type { Shape } from '../src/dim.ts';
import { gradients } from '../src/gradients.ts';
import * as op from '../src/operations.ts';
import { random } from '../src/random.ts';
import { nodeRuntime } from '../src/runtime/node.ts';
import { elementCount, float32, int64, type Tensor } from '../src/tensor.ts';
import { centralDifferences, largestError, type NdArray, sizeOf } from './closed-form.ts';
import { type Fed, folder, operations } from './operation-cases.ts';

afterAll(() => rmSync(folder, { recursive: true }));

const x = (...shape: Shape) => op.input('x', 'float32', shape);
const ids = (...shape: Shape) => op.input('ids', 'int64', shape);

const runtime = nodeRuntime({ threads: 2 });
/** One program serves them both. */
const bindings = [
  { batch: 2, time: 3, past: 2, n: 5, m: 2 },
  { batch: 3, time: 1, past: 4, n: 7, m: 3 },
];

function tensorFor({ shape, values }: Fed, sizes: Record<string, number>, stream: string): Tensor {
  const dims = shape.map((dim) => sizeOf(dim, sizes));
  const draw = random(1, stream, ...dims);
  const each = <T>(f: () => T) => Array.from({ length: elementCount(dims) }, f);
  if (values === 'mask') return { dtype: 'bool', dims, data: Uint8Array.from(each(() => draw.integer(2))) };
  if (typeof values === 'object')
    return int64(
      each(() => draw.integer(values.below)),
      dims,
    );
  const number = values === 'positive' ? () => 0.5 + 2 * draw.uniform() : draw.normal;
  return float32(each(number), dims);
}

const dtypeOf = ({ values }: Fed) =>
  values === 'mask' ? 'bool' : typeof values === 'object' ? 'int64' : 'float32';
const dot = (a: readonly number[], b: readonly number[]) =>
  a.reduce((sum, element, i) => sum + element * b[i]!, 0);
const asArray = ({ dims, data }: Tensor): NdArray => ({
  dims,
  data: [...data].map(Number),
});

describe.each(Object.entries(operations))('%s', (_, { cases, misfits }) => {
  test.each(cases.map((each) => [each.inputs.map(({ shape }) => `[${shape}]`).join(' '), each] as const))(
    'equals its formula, and gradients its differences: %s',
    async (_, { inputs, build, shape, formula, secondOrder }) => {
      const values = inputs.map((fed, i) => op.input(`x${i}`, dtypeOf(fed), fed.shape));
      const y = build(...values);
      expect(y.shape).toEqual(shape);
      expect(y.dtype).toBe('float32');

      // L = sum(r y); M = sum over inputs of q dL/dx, a slope of L along q
      const wrt = inputs.flatMap((fed, i) => (dtypeOf(fed) === 'float32' && !fed.frozen ? [i] : []));
      const loss = op.total(op.mul(y, op.input('r', 'float32', shape)));
      const variables = wrt.map((i) => values[i]!);
      const first = wrt.length > 0 ? gradients(loss, variables) : [];
      const slopes = variables.map((variable, k) =>
        op.total(op.mul(first[k]!, op.input(`q${wrt[k]}`, 'float32', variable.shape))),
      );
      const second = secondOrder ? gradients(slopes.reduce(op.add), variables) : [];
      wrt.forEach((i, k) => {
        expect(first[k]!.shape).toEqual(inputs[i]!.shape);
      });
      const program = await runtime.compile({
        y,
        ...(wrt.length > 0 && { loss }),
        ...Object.fromEntries(first.map((gradient, k) => [`first${wrt[k]}`, gradient])),
        ...Object.fromEntries(second.map((gradient, k) => [`second${wrt[k]}`, gradient])),
      });

      for (const sizes of bindings) {
        const x = inputs.map((fed, i) => tensorFor(fed, sizes, `x${i}`));
        const r = tensorFor({ shape }, sizes, 'r');
        const q = wrt.map((i) => tensorFor({ shape: inputs[i]!.shape }, sizes, `q${i}`));
        const found = (await program.run({
          ...Object.fromEntries(x.map((tensor, i) => [`x${i}`, tensor])),
          ...(wrt.length > 0 && { r }),
          ...(secondOrder && Object.fromEntries(wrt.map((i, k) => [`q${i}`, q[k]!]))),
        })) as Record<string, Tensor>;

        const arrays = x.map(asArray);
        const expected = formula(...arrays);
        expect(found.y!.dims).toEqual(expected.dims);
        expect(largestError(found.y!, expected.data)).toBeLessThan(2e-6);

        const weights = asArray(r).data;
        const lossAt = (moved: readonly NdArray[]) => dot(formula(...moved).data, weights);
        const replaced = (i: number, data: readonly number[]) =>
          arrays.map((array, j) => (i === j ? { ...array, data } : array));
        const along = (by: number, from: readonly NdArray[]) =>
          from.map((array, i) => {
            const direction = q[wrt.indexOf(i)];
            return direction
              ? { ...array, data: array.data.map((element, j) => element + by * Number(direction.data[j])) }
              : array;
          });
        const slopeAt = (from: readonly NdArray[]) =>
          (lossAt(along(3e-4, from)) - lossAt(along(-3e-4, from))) / 6e-4;
        for (const i of wrt) {
          const slope = centralDifferences((data) => lossAt(replaced(i, data)), arrays[i]!.data, 1e-4);
          expect(found[`first${i}`]!.dims).toEqual(x[i]!.dims);
          expect(largestError(found[`first${i}`]!, slope)).toBeLessThan(5e-6);
          if (!secondOrder) continue;
          const curvature = centralDifferences((data) => slopeAt(replaced(i, data)), arrays[i]!.data, 3e-4);
          expect(largestError(found[`second${i}`]!, curvature)).toBeLessThan(2e-5);
        }
      }
      await program.dispose();
    },
  );

  if (misfits.length > 0)
    test('says what does not fit', () => {
      for (const [message, misfit] of misfits) expect(misfit).toThrow(message);
    });
});

test('scatter adds all rows that go to one place, on several threads', async () => {
  const program = await runtime.compile({ y: op.scatter(x('n', 64), ids('n'), 3) });
  const n = 6000;
  const feeds = {
    x: float32(new Float32Array(n * 64).fill(1), [n, 64]),
    ids: int64(
      Array.from({ length: n }, (_, i) => i % 3),
      [n],
    ),
  };
  const { y } = await program.run(feeds);
  expect(new Set(y.data as Float32Array)).toEqual(new Set([n / 3]));
  await program.dispose();
});

describe('what is made of operations', () => {
  test('does nothing where there is nothing to do', () => {
    const a = x('batch', 3);
    expect([op.scale(a, 1), op.sum(a, []), op.expand(a, ['batch', 3]), op.reshape(a, ['batch', 3])]).toEqual([
      a,
      a,
      a,
      a,
    ]);
    expect(op.concat([a], 0)).toBe(a);
    expect(op.sumTo(a, ['batch', 3])).toBe(a);
  });

  test('has the right shapes', () => {
    expect(op.linear(x('batch', 3), x(5, 3)).shape).toEqual(['batch', 5]);
    expect(op.sumLast(x('batch', 'time', 3)).shape).toEqual(['batch', 'time', 1]);
    expect(op.total(x('batch', 'time', 3)).shape).toEqual([]);
    expect(op.sumTo(x('batch', 'time', 3), [1, 3]).shape).toEqual([1, 3]);
    expect(op.offsets(['past', 'time', 2])).toEqual([0, 'past', 'time+past']);
  });

  test('dropout keeps the expectation', async () => {
    const program = await runtime.compile({ y: op.dropout(op.input('mask', 'bool', ['n']), x('n'), 0.75) });
    const { y } = await program.run({
      mask: { dtype: 'bool', dims: [4], data: Uint8Array.of(1, 0, 0, 0) },
      x: float32([2, 2, 2, 2], [4]),
    });
    expect([...y.data]).toEqual([8, 0, 0, 0]);
    await program.dispose();
  });
});
