// Programs in ONNX Runtime: weights in files, feeds that do not fit, names, sizes, settings.
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { plus, type Shape, times } from '../src/dim.ts';
import { gradients } from '../src/gradients.ts';
import {
  add,
  expand,
  input,
  linear,
  mul,
  neg,
  reshape,
  sigmoid,
  sum,
  total,
  weight,
} from '../src/operations.ts';
import { random } from '../src/random.ts';
import { nodeRuntime } from '../src/runtime/node.ts';
import type { Feeds } from '../src/runtime/runtime.ts';
import type { Outputs } from '../src/segments.ts';
import { float32, int64, type StoredTensor, type Tensor, zeros } from '../src/tensor.ts';

const runtime = nodeRuntime({ threads: 2 });
async function run(outputs: Outputs, feeds: Feeds, on = runtime): Promise<Record<string, Tensor>> {
  const program = await on.compile(outputs);
  const found = await program.run(feeds);
  await program.dispose();
  return found;
}
const x = (...shape: Shape) => input('x', 'float32', shape);

describe('weights', () => {
  const folder = mkdtempSync(join(tmpdir(), 'fellrec-weights-'));
  afterAll(() => rmSync(folder, { recursive: true }));

  /** Writes `values` behind `before` bytes that are none of theirs, and some more after. */
  function stored(
    path: string,
    dtype: StoredTensor['dtype'],
    dims: readonly number[],
    values: Float32Array | Uint16Array,
    before: number,
  ): StoredTensor {
    const file = join(folder, path);
    mkdirSync(dirname(file), { recursive: true });
    const bytes = new Uint8Array(values.buffer);
    const contents = new Uint8Array(before + bytes.length + 5).fill(0xa5);
    contents.set(bytes, before);
    writeFileSync(file, contents);
    return { dtype, dims, file, byteOffset: before, byteLength: bytes.length };
  }
  // 1.5, -2, 0.333251953125, the largest, the smallest and the smallest normal of float16
  const half = Uint16Array.of(0x3e00, 0xc000, 0x3555, 0x7bff, 0x0001, 0x0400);
  const halfValues = [1.5, -2, 0.333251953125, 65504, 2 ** -24, 2 ** -14];
  // 1.5, -2, 3.140625, the largest, the smallest normal and 1 + 1/128 of bfloat16
  const brain = Uint16Array.of(0x3fc0, 0xc000, 0x4049, 0x7f7f, 0x0080, 0x3f81);
  const brainValues = [1.5, -2, 3.140625, (2 - 2 ** -7) * 2 ** 127, 2 ** -126, 1 + 2 ** -7];
  const single = Float32Array.of(1.5, -2, Math.PI, 3e38, 1e-30, 0);

  test.each([0, 1, 3, 4096])('of all types are read behind %i bytes', async (before) => {
    const weights = {
      single: stored(`${before}/single.bin`, 'float32', [2, 3], single, before),
      half: stored(`${before}/half.bin`, 'float16', [2, 3], half, before),
      brain: stored(`${before}/brain.bin`, 'bfloat16', [2, 3], brain, before),
    };
    const outputs = Object.fromEntries(
      Object.entries(weights).map(([name, where]) => [`${name}.out`, mul(weight(name, where), x())]),
    );
    const found = await run(outputs, { x: float32([1], []) });
    expect([...found['single.out']!.data]).toEqual([...single]);
    expect([...found['half.out']!.data]).toEqual(halfValues);
    expect([...found['brain.out']!.data]).toEqual(brainValues);
    expect(found['half.out']!.dims).toEqual([2, 3]);
  });

  test('large enough to be mapped, in a product, with and without prepacking', async () => {
    const draw = random(1, 'weights');
    const values = Float32Array.from({ length: 64 * 48 }, () => draw.normal());
    const w = weight('w', stored('large.bin', 'float32', [64, 48], values, 7));
    const row = float32(Array.from({ length: 48 }, draw.normal), [1, 48]);
    const expected = Array.from({ length: 64 }, (_, i) =>
      row.data.reduce((s, element, j) => s + element * values[i * 48 + j]!, 0),
    );
    for (const prepack of [true, false]) {
      const program = await runtime.compile({ y: linear(x('n', 48), w) }, { prepack });
      const { y } = await program.run({ x: row });
      expected.forEach((element, i) => {
        expect(Number(y.data[i])).toBeCloseTo(element, 4);
      });
      await program.dispose();
    }
  });

  test.each([
    ['siblings', 'a/one.bin', 'b/two.bin'],
    ['one inside the other', 'c/one.bin', 'c/d/e/two.bin'],
    ['the other way round', 'f/g/one.bin', 'f/two.bin'],
    ['names that begin alike', 'model/one.bin', 'model-2/two.bin'],
  ])('lie in different folders: %s', async (_, first, second) => {
    const one = weight('one', stored(first, 'float32', [2], Float32Array.of(1, 2), 3));
    const two = weight('two', stored(second, 'bfloat16', [2], Uint16Array.of(0x4040, 0x4080), 1));
    const { y } = await run({ y: add(one, two) }, {});
    expect([...y!.data]).toEqual([4, 6]);
  });

  test('take part in differentiation', async () => {
    const w = weight('w', stored('w.bin', 'float16', [2], Uint16Array.of(0x4000, 0x4200), 1)); // 2, 3
    const [dx, dw] = gradients(total(mul(x(2), mul(w, w))), [x(2), w]);
    const found = await run({ dx: dx!, dw: dw! }, { x: float32([5, 7], [2]) });
    expect([...found['dx']!.data, ...found['dw']!.data]).toEqual([4, 9, 20, 42]);
  });

  test('that are not there are an error', async () => {
    const absent: StoredTensor = {
      dtype: 'float32',
      dims: [2],
      file: join(folder, 'absent.bin'),
      byteOffset: 0,
      byteLength: 8,
    };
    await expect(runtime.compile({ y: neg(weight('w', absent)) })).rejects.toThrow('absent.bin');
  });
});

describe('feeds that do not fit', () => {
  const outputs = {
    y: mul(
      sum(add(x('batch', 3), input('bias', 'float32', ['batch', 1])), [1]),
      input('scale', 'float32', []),
    ),
    kept: input('ids', 'int64', ['batch']),
  };
  const right = {
    x: zeros([2, 3]),
    bias: zeros([2, 1]),
    scale: zeros([]),
    ids: int64([1, 2], [2]),
  };
  const program = runtime.compile(outputs);
  afterAll(async () => (await program).dispose());

  test.each<[string, Feeds, string[]]>([
    ['missing', { x: right.x, bias: right.bias, scale: right.scale }, ['"ids" is missing']],
    ['unknown', { ...right, extra: zeros([1]) }, ['"extra" is not an input']],
    ['type', { ...right, ids: zeros([2]) }, ['"ids" is float32, the graph wants int64']],
    ['rank', { ...right, x: zeros([6]) }, ['"x" is [6], the graph wants [batch, 3]']],
    ['fixed size', { ...right, x: zeros([2, 4]) }, ['"x" is [2, 4], the graph wants [batch, 3]']],
    [
      'sizes that disagree',
      { ...right, bias: zeros([5, 1]) },
      ['"bias" is [5, 1], the graph wants [batch, 1]'],
    ],
    [
      'all at once',
      { y: zeros([1]), x: zeros([2, 4]), bias: int64([1, 2], [2, 1]), ids: right.ids },
      ['"y" is not an input', '"x" is [2, 4]', '"bias" is int64', '"scale" is missing'],
    ],
  ])('are named: %s', async (_, feeds, messages) => {
    const error = await (await program).run(feeds).catch(String);
    expect(error).toContain('graph: what is fed does not fit the program: ');
    for (const message of messages) expect(error).toContain(message);
    expect(`${error}`.split(';')).toHaveLength(messages.length);
  });

  test('do not spoil the program', async () => {
    const { y, kept } = await (await program).run(right);
    expect([y.dims, kept.dtype, [...kept.data]]).toEqual([[2, 1], 'int64', [1n, 2n]]);
  });
});

test('sizes that one product names are one size', async () => {
  const shape = ['batch*time'];
  const program = await runtime.compile({
    y: mul(input('a', 'float32', shape), input('b', 'float32', shape)),
  });
  await expect(program.run({ a: zeros([6]), b: zeros([1]) })).rejects.toThrow(
    '"b" is [1], the graph wants [batch*time]',
  );
  expect((await program.run({ a: zeros([6]), b: zeros([6]) })).y.dims).toEqual([6]);
  await program.dispose();
});

test('a product is that of the sizes that its names have', async () => {
  const product = mul(x('batch', 'time'), expand(total(input('a', 'float32', ['batch*time'])), []));
  const program = await runtime.compile({ product });
  const feeds = (count: number) => ({ x: zeros([2, 3]), a: zeros([count]) });
  await expect(program.run(feeds(5))).rejects.toThrow('batch*time is 5, by the sizes of its names it is 6');
  expect((await program.run(feeds(6))).product.dims).toEqual([2, 3]);
  await program.dispose();
});

test('a named size that no input binds is an error', async () => {
  const y = expand(x(1, 3), ['batch', 3]);
  await expect(runtime.compile({ y })).rejects.toThrow('graph: no input has the dimension "batch"');
  // An expression binds itself, none of its names.
  const folded = reshape(x('batch*time', 4), ['batch', 'time', 4]);
  await expect(runtime.compile({ y: folded })).rejects.toThrow('no input has the dimension "batch"');
  const bound = await run({ y, kept: input('b', 'float32', ['batch']) }, { x: zeros([1, 3]), b: zeros([4]) });
  expect(bound['y']!.dims).toEqual([4, 3]);
  const sized = expand(x(1), [plus(times(2, 'batch', 'time'), 'batch', 3)]);
  const ids = input('ids', 'int64', ['batch', 'time']);
  const grown = await run({ sized, kept: ids }, { x: zeros([1]), ids: int64(Array(10).fill(0), [5, 2]) });
  expect(grown['sized']!.dims).toEqual([2 * 5 * 2 + 5 + 3]);
  const product = mul(expand(input('b', 'float32', [1]), ['batch*time']), x('batch*time'));
  const whole = await run({ product }, { b: float32([2], [1]), x: float32([1, 2, 3], [3]) });
  expect([...whole['product']!.data]).toEqual([2, 4, 6]);
});

test('two different leaves of one name are an error', async () => {
  const twice = add(x(2), x(1));
  await expect(runtime.compile({ twice })).rejects.toThrow('graph: two different leaves are named "x"');
});

test('any name does for inputs and outputs', async () => {
  const name = 'base_model.model.layers.0/q proj';
  const found = await run(
    { v0: neg(input('v1', 'float32', [1])), [name]: input('v2', 'float32', [1]) },
    {
      v1: float32([1], [1]),
      v2: float32([2], [1]),
    },
  );
  expect([...found['v0']!.data, ...found[name]!.data]).toEqual([-1, 2]);
});

test('types that are fed come back: bool, int64, empty', async () => {
  const mask: Tensor = { dtype: 'bool', dims: [2], data: Uint8Array.of(0, 1) };
  const found = await run(
    {
      m: input('mask', 'bool', ['n']),
      i: reshape(input('ids', 'int64', [2, 'n']), ['2*n']),
      z: neg(x('k', 3)),
    },
    { mask, ids: int64([1, -2, 3, 4], [2, 2]), x: zeros([0, 3]) },
  );
  expect(found['m']).toEqual(mask);
  expect(found['i']).toEqual(int64([1, -2, 3, 4], [4]));
  expect(found['z']!.dims).toEqual([0, 3]);
});

test('runtimes with different numbers of threads agree', async () => {
  const draw = random(1, 'threads');
  const feeds = {
    x: float32(Array.from({ length: 64 * 32 }, draw.normal), [64, 32]),
    w: float32(Array.from({ length: 16 * 32 }, draw.normal), [16, 32]),
  };
  const outputs = { y: sigmoid(linear(x('n', 32), input('w', 'float32', [16, 32]))) };
  const [one, two, all] = await Promise.all(
    [nodeRuntime({ threads: 1 }), nodeRuntime({ threads: 2 }), nodeRuntime()].map((on) =>
      run(outputs, feeds, on),
    ),
  );
  one!['y']!.data.forEach((element: number | bigint, i: number) => {
    expect(Number(two!['y']!.data[i])).toBeCloseTo(Number(element), 6);
    expect(Number(all!['y']!.data[i])).toBeCloseTo(Number(element), 6);
  });
});

test('one program serves concurrent runs', async () => {
  const program = await runtime.compile({ y: neg(x('n')) });
  const found = await Promise.all([1, 2, 3].map((n) => program.run({ x: float32([n], [1]) })));
  expect(found.map(({ y }) => [...y.data])).toEqual([[-1], [-2], [-3]]);
  await program.dispose();
});

test('a program that is disposed of does not run', async () => {
  const program = await runtime.compile({ y: neg(x(1)) });
  await program.dispose();
  await expect(program.run({ x: zeros([1]) })).rejects.toThrow();
});
