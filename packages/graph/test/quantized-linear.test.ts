// The rounded product against its formula in float64, how far it is from the product that it stands for, and the way of
// its gradient; with signed integers where the processor has exact products of them, with unsigned ones everywhere.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { gradients } from '../src/gradients.ts';
import { input, mul, quantizedLinear, total, weight } from '../src/operations.ts';
import { print } from '../src/print.ts';
import { random } from '../src/random.ts';
import { nodeRuntime } from '../src/runtime/node.ts';
import { type Float32Tensor, float32, type StoredTensor } from '../src/tensor.ts';
import type { QuantizedMatrix } from '../src/value.ts';
import { largestError } from './closed-form.ts';

const folder = mkdtempSync(join(tmpdir(), 'fellrec-quantized-'));
afterAll(() => rmSync(folder, { recursive: true }));
const runtime = nodeRuntime({ threads: 2 });
const [n, in_, out] = [7, 24, 10];
const draw = random(3, 'quantized');

type Integers = 'int8' | 'uint8';
function store(
  name: string,
  data: Float32Array | Int8Array | Uint8Array,
  dims: readonly number[],
): StoredTensor {
  const file = join(folder, name);
  writeFileSync(file, new Uint8Array(data.buffer));
  const dtype = data instanceof Int8Array ? 'int8' : data instanceof Uint8Array ? 'uint8' : 'float32';
  return { dtype, dims, file, byteOffset: 0, byteLength: data.byteLength };
}
/** A matrix [rows, columns] and what it stands for, as an array of rows. */
function matrix(name: string, rows: number, columns: number) {
  const values = Int8Array.from({ length: rows * columns }, () => draw.integer(255) - 127);
  const scales = Float32Array.from({ length: columns }, () => 0.01 + 0.02 * draw.uniform());
  const quantized = (values: StoredTensor): QuantizedMatrix => ({
    name,
    values,
    scales: store(`${name}.scales`, scales, [columns]),
  });
  const at = (i: number, j: number) => values[i * columns + j]! * scales[j]!;
  return {
    at,
    int8: quantized(store(`${name}.int8`, values, [rows, columns])),
    uint8: quantized(
      store(
        `${name}.uint8`,
        Uint8Array.from(values, (value) => value + 128),
        [rows, columns],
      ),
    ),
  };
}
const forward = matrix('forward', in_, out);
const backward = matrix('backward', out, in_);
/** Rows of very different size, one of them zero. */
const rows: Float32Tensor = float32(
  Float32Array.from({ length: n * in_ }, (_, i) => {
    const row = Math.floor(i / in_);
    return row === 2 ? 0 : draw.normal() * 10 ** (row - 3);
  }),
  [n, in_],
);
const row = (i: number) => Array.from(rows.data.subarray(i * in_, (i + 1) * in_));
/** sum_i x_i W_ij for all rows. */
const product = (of: (i: number) => number[]) =>
  Array.from({ length: n }, (_, r) => r).flatMap((r) =>
    Array.from({ length: out }, (_, j) => of(r).reduce((sum, x, i) => sum + x * forward.at(i, j), 0)),
  );
const largest = (numbers: readonly number[]) => Math.max(...numbers.map(Math.abs));

const x = input('x', 'float32', ['n', in_]);
const run = async (integers: Integers, terms: 1 | 2, fed = rows) => {
  const y = quantizedLinear(x, { forward: forward[integers], backward: backward[integers], terms });
  const program = await runtime.compile({ y });
  const { y: found } = await program.run({ x: fed });
  await program.dispose();
  return found.data as Float32Array;
};
const ones = await run('int8', 1, float32(new Float32Array(in_).fill(1), [1, in_]));
const hasSignedProducts = ones.every((sum, j) => {
  const exact = Array.from({ length: in_ }, (_, i) => forward.at(i, j)).reduce((a, b) => a + b);
  return Math.abs(sum - exact) < 1e-4;
});

describe.each(['uint8', ...(hasSignedProducts ? (['int8'] as const) : [])] as const)('%s', (integers) => {
  test('one term rounds every row in 127 steps of its own', async () => {
    const expected = product((r) => {
      const step = largest(row(r)) / 127 || 1;
      return row(r).map((x) => Math.round(x / step) * step);
    });
    const found = await run(integers, 1);
    for (let r = 0; r < n; r++) {
      const range = [r * out, (r + 1) * out] as const;
      // A value on the edge of two steps may fall on either side.
      const edge = (largest(row(r)) / 127) * 127 * 0.03 * 1e-3;
      for (let i = range[0]; i < range[1]; i++)
        expect(Math.abs(found[i]! - expected[i]!)).toBeLessThanOrEqual(edge + 1e-6 * Math.abs(expected[i]!));
    }
    expect([...found.subarray(2 * out, 3 * out)]).toEqual(new Array(out).fill(0));
  });

  test('two terms are within 1/64516 of the largest value of their row', async () => {
    const found = await run(integers, 2);
    product(row).forEach((exact, i) => {
      const j = i % out;
      const halfStep = largest(row(Math.floor(i / out))) / 127 / 254 / 2;
      const spread = Array.from({ length: in_ }, (_, k) => Math.abs(forward.at(k, j))).reduce(
        (a, b) => a + b,
      );
      expect(Math.abs(found[i]! - exact)).toBeLessThanOrEqual(
        1.01 * halfStep * spread + 1e-6 * Math.abs(exact),
      );
    });
  });

  test('the gradient goes through the other matrix, and a second time through the first', async () => {
    const y = quantizedLinear(x, { forward: forward[integers], backward: backward[integers], terms: 2 });
    const r = input('r', 'float32', ['n', out]);
    const [dx] = gradients(total(mul(y, r)), [x]);
    const [dr] = gradients(total(mul(dx!, x)), [r]);
    const text = print({ dx: dx!, dr: dr! });
    expect(text).toContain(`forward: ${forward[integers].name}, backward: ${backward[integers].name}`);
    const program = await runtime.compile({ dx: dx!, dr: dr! });
    const ones = float32(new Float32Array(n * out).fill(1), [n, out]);
    const found = await program.run({ x: rows, r: ones });
    await program.dispose();
    // A row of ones is exact in 8 bits.
    const expected = Array.from({ length: n * in_ }, (_, k) =>
      Array.from({ length: out }, (_, o) => backward.at(o, k % in_)).reduce((a, b) => a + b),
    );
    expect(largestError(found.dx!, expected)).toBeLessThan(1e-6);
    expect(largestError(found.dr!, Array.from(await run(integers, 1)))).toBeLessThan(1e-6);
  });
});

test('two matrices of one name are an error', async () => {
  const [first, second] = [forward.uint8, { ...backward.uint8, name: 'forward' }];
  const h = quantizedLinear(x, { forward: first, backward: backward.uint8, terms: 1 });
  const y = quantizedLinear(h, { forward: second, backward: forward.uint8, terms: 1 });
  await expect(runtime.compile({ y })).rejects.toThrow(
    'two different stored tensors are named "forward.values"',
  );
});

test('without an 8-bit matrix for it, the gradient goes through float32', async () => {
  const w = Float32Array.from({ length: out * in_ }, draw.normal);
  const head = weight('head', store('head', w, [out, in_]));
  const y = quantizedLinear(x, { forward: forward.uint8, backward: head, terms: 1 });
  const r = input('r', 'float32', ['n', out]);
  const [dx] = gradients(total(mul(y, r)), [x]);
  const program = await runtime.compile({ dx: dx! });
  const drawn = float32(Float32Array.from({ length: n * out }, draw.normal), [n, out]);
  const found = await program.run({ r: drawn });
  await program.dispose();
  const expected = Array.from({ length: n * in_ }, (_, k) =>
    Array.from(
      { length: out },
      (_, o) => drawn.data[Math.floor(k / in_) * out + o]! * w[o * in_ + (k % in_)]!,
    ).reduce((a, b) => a + b),
  );
  expect(largestError(found.dx!, expected)).toBeLessThan(2e-6);
});
