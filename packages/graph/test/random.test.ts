// Streams: reproducible, apart from each other, of the right distribution.
import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import { type Random, random } from '../src/random.ts';

const draws = (count: number, draw: () => number) => Array.from({ length: count }, draw);
const mean = (numbers: readonly number[]) => numbers.reduce((sum, n) => sum + n, 0) / numbers.length;
const moment = (numbers: readonly number[], power: number) => mean(numbers.map((n) => n ** power));
const uniforms = (stream: Random, count = 8) => draws(count, stream.uniform);

test('a stream is reproducible, also by the next version', () => {
  const { integer, normal } = random(1, 'order', 3);
  expect([draws(8, () => integer(1000)), normal()]).toMatchInlineSnapshot(`
    [
      [
        48,
        568,
        999,
        208,
        709,
        688,
        599,
        8,
      ],
      0.3092763029833114,
    ]
  `);
  expect(uniforms(random(1, 'order', 3))).toEqual(uniforms(random(1, 'order', 3)));
});

test('seed, name and order of the name make a stream of their own', () => {
  const streams = [
    random(1),
    random(2),
    random(1, 'a'),
    random(1, 'a', 1),
    random(1, 'a', '1'),
    random(1, 1, 'a'),
    random(1, 'a1'),
    random(12),
    random(1, 2),
    random(1.5),
  ].map((stream) => uniforms(stream).join());
  expect(new Set(streams).size).toBe(streams.length);
});

test('the name is not cut to 32 bits', () => {
  // Their SHA-256 begin with the same 32 bits.
  expect(uniforms(random(0, 39016))).not.toEqual(uniforms(random(0, 82800)));
});

test('a stream does not depend on draws from another', () => {
  const expected = uniforms(random(1, 'a'));
  const [a, b] = [random(1, 'a'), random(1, 'b')];
  const interleaved = expected.map(() => {
    b.normal();
    return a.uniform();
  });
  expect(interleaved).toEqual(expected);
});

test('first draws of many streams are uniform and uncorrelated', () => {
  const count = 20_000;
  const streams = Array.from({ length: count }, (_, client) => uniforms(random(1, 'client', client), 4));
  for (let i = 0; i < 4; i++)
    for (let j = 0; j <= i; j++) {
      const covariance = mean(streams.map((draws) => 12 * (draws[i]! - 0.5) * (draws[j]! - 0.5)));
      expect(Math.abs(covariance - Number(i === j))).toBeLessThan(5 / Math.sqrt(count));
    }
  const neighbours = mean(streams.slice(1).map((s, i) => 12 * (s[0]! - 0.5) * (streams[i]![0]! - 0.5)));
  expect(Math.abs(neighbours)).toBeLessThan(5 / Math.sqrt(count));
});

test('uniform: [0, 1), moments 1/2, 1/3, 1/4, and all bits of a double', () => {
  const found = uniforms(random(1, 'uniform'), 100_000);
  expect(found.every((u) => u >= 0 && u < 1)).toBe(true);
  for (const power of [1, 2, 3]) expect(moment(found, power)).toBeCloseTo(1 / (power + 1), 2);
  expect(found.some((u) => !Number.isInteger(u * 2 ** 40))).toBe(true);
});

test('normal: moments 0, 1, 0, 3', () => {
  const found = draws(200_000, random(1, 'normal').normal);
  expect(moment(found, 1)).toBeCloseTo(0, 1.5);
  expect(moment(found, 2)).toBeCloseTo(1, 1.5);
  expect(Math.abs(moment(found, 3))).toBeLessThan(0.05);
  expect(Math.abs(moment(found, 4) - 3)).toBeLessThan(0.1);
});

test('integer: every value below the bound, equally often', () => {
  const { integer } = random(1, 'integer');
  const counts = [0, 0, 0, 0, 0, 0, 0];
  for (let i = 0; i < 70_000; i++) counts[integer(7)]!++;
  for (const count of counts) expect(Math.abs(count - 10_000)).toBeLessThan(500);
});

test('shuffle: a permutation, of a copy', () => {
  fc.assert(
    fc.property(fc.array(fc.integer()), fc.integer(), (items, seed) => {
      const before = [...items];
      const shuffled = random(seed).shuffle(items);
      expect(items).toEqual(before);
      expect(shuffled.toSorted((a, b) => a - b)).toEqual(before.toSorted((a, b) => a - b));
    }),
  );
});

test('shuffle: all orders, equally often', () => {
  const { shuffle } = random(1, 'shuffle');
  const counts = new Map<string, number>();
  for (let i = 0; i < 6000; i++) {
    const order = shuffle(['a', 'b', 'c']).join('');
    counts.set(order, (counts.get(order) ?? 0) + 1);
  }
  expect(counts.size).toBe(6);
  for (const count of counts.values()) expect(Math.abs(count - 1000)).toBeLessThan(150);
});
