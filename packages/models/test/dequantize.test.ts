// Blocks by hand: bytes whose values follow from ggml's formulas.
import { describe, expect, test } from 'vitest';
import { encodings } from '../src/checkpoint/dequantize.ts';
import { half, nibbles } from './gguf-file.ts';

const decode = (type: number, bytes: readonly number[], elements: number) =>
  Array.from(encodings.get(type)!.decode(new DataView(Uint8Array.from(bytes).buffer), elements));
const places = Array.from({ length: 32 }, (_, i) => i);

test('F32, F16, BF16', () => {
  expect(decode(0, [0, 0, 0xc0, 0x3f, 0, 0, 0, 0xc0], 2)).toEqual([1.5, -2]);
  expect(decode(1, [0x00, 0x3e, 0x00, 0xc0, 0x01, 0x00], 3)).toEqual([1.5, -2, 2 ** -24]);
  expect(decode(30, [0xc0, 0x3f, 0x00, 0xc0, 0x80, 0x7f], 3)).toEqual([1.5, -2, Number.POSITIVE_INFINITY]);
});

test('Q8_0 is d q with signed q', () => {
  const q = places.map((i) => i * 8 - 128);
  const block = [...half(0.5), ...q.map((x) => x & 255)];
  expect(decode(8, block, 32)).toEqual(q.map((x) => 0.5 * x));
});

test('Q4_0 is d (q - 8), low halves first', () => {
  const q = places.map((i) => (i * 7) % 16);
  expect(decode(2, [...half(0.25), ...nibbles(q)], 32)).toEqual(q.map((x) => 0.25 * (x - 8)));
});

test('Q4_1 is d q + m, low halves first', () => {
  const q = places.map((i) => (i * 5 + 3) % 16);
  expect(decode(3, [...half(0.25), ...half(-3), ...nibbles(q)], 32)).toEqual(q.map((x) => 0.25 * x - 3));
});

describe.each([
  [8, 34],
  [2, 18],
  [3, 20],
])('type %i', (type, blockBytes) => {
  test('has a scale for each block', () => {
    expect(encodings.get(type)!.blockBytes).toBe(blockBytes);
    const block = (d: number) => [...half(d), ...new Array<number>(blockBytes - 2).fill(1)];
    const [one, two] = [decode(type, block(1), 32), decode(type, block(2), 32)];
    expect(two).not.toEqual(one);
    expect(decode(type, [...block(1), ...block(2)], 64)).toEqual([...one, ...two]);
  });
});
