import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { quantise, roundToFloat16, roundToInt8 } from '../src/defences/bits.ts';

const f32 = (...numbers: number[]) => Float32Array.from(numbers);
const finite = fc.float({ noNaN: true, noDefaultInfinity: true });
const ofOrderOne = fc.float({ min: -100, max: 100, noNaN: true });
const rows = (value: fc.Arbitrary<number>) =>
  fc
    .record({ width: fc.integer({ min: 1, max: 9 }), tokens: fc.integer({ min: 1, max: 4 }) })
    .chain(({ width, tokens }) =>
      fc
        .array(value, { minLength: width * tokens, maxLength: width * tokens })
        .map((numbers) => ({ width, states: Float32Array.from(numbers) })),
    );
const bitCounts = fc.integer({ min: 2, max: 8 });

/** The number of a binary16 pattern: sign, 5 bits of exponent with bias 15, 10 bits of fraction. */
function ofPattern(pattern: number): number {
  const exponent = (pattern >> 10) & 31;
  const fraction = pattern & 1023;
  const size = exponent === 0 ? fraction * 2 ** -24 : (1024 + fraction) * 2 ** (exponent - 25);
  return pattern >> 15 ? -size : size;
}

describe('float16', () => {
  it('rounds to nearest, ties to even', () => {
    const table = [
      [1 + 2 ** -11, 1],
      [1 + 2 ** -11 + 2 ** -20, 1 + 2 ** -10],
      [1 + 3 * 2 ** -11, 1 + 2 ** -9],
      [0.1, 0.0999755859375],
      [-1 / 3, -0.333251953125],
      [2049, 2048],
      [2051, 2052],
      [2 ** -24, 2 ** -24],
      [2 ** -25, 0],
      [1.5 * 2 ** -25, 2 ** -24],
      [65519, 65504],
      [65520, 65504],
      [-1e30, -65504],
    ] as const;
    expect([...roundToFloat16(f32(...table.map(([x]) => x)))]).toEqual(table.map(([, rounded]) => rounded));
  });

  it('keeps every binary16 and rounds the middle of two to the even one', () => {
    const patterns = Array.from({ length: 0x7bff }, (_, i) => i); // from 0 to the last but the largest
    for (const sign of [1, -1]) {
      const below = patterns.map((pattern) => sign * ofPattern(pattern));
      const middles = patterns.map((pattern) => (sign * (ofPattern(pattern) + ofPattern(pattern + 1))) / 2);
      expect(roundToFloat16(f32(...below))).toEqual(f32(...below));
      const even = patterns.map((pattern) => sign * ofPattern(pattern + (pattern & 1)));
      expect(roundToFloat16(f32(...middles))).toEqual(f32(...even));
    }
  });

  it('changes nothing a second time', () => {
    fc.assert(
      fc.property(fc.array(finite), (numbers) => {
        const once = roundToFloat16(f32(...numbers));
        expect(once.every(Number.isFinite)).toBe(true);
        expect(roundToFloat16(once)).toEqual(once);
      }),
    );
  });
});

describe('quantisation', () => {
  it('gives multiples of the scale of a token', () => {
    expect(quantise(f32(127, -64, 0.5, -0.5, 0.4), { width: 5, bits: 8 })).toEqual(f32(127, -64, 1, 0, 0));
    expect(quantise(f32(7, 3.4, -3.6, -0.6), { width: 4, bits: 4 })).toEqual(f32(7, 3, -4, -1));
    expect(quantise(f32(4, 1.9, 2, -2, -2.1), { width: 5, bits: 2 })).toEqual(f32(4, 0, 4, 0, -4));
    const scale = Math.fround(0.02); // of a row whose scale is no binary fraction
    expect(roundToInt8(f32(2.54, 1, -0.013), 3)).toEqual(f32(127 * scale, 50 * scale, -scale));
  });

  it('has a scale of its own for every token, and none for zeros', () => {
    expect(quantise(f32(3, 1.1, 0, 0, 300, 110), { width: 2, bits: 3 })).toEqual(f32(3, 1, 0, 0, 300, 100));
  });

  it('is int8 with 8 bits', () => {
    fc.assert(
      fc.property(rows(finite), ({ states, width }) => {
        expect(roundToInt8(states, width)).toEqual(quantise(states, { width, bits: 8 }));
      }),
    );
  });

  it('stays finite at the ends of float32', () => {
    const largest = 3.4028234663852886e38;
    const found = roundToInt8(f32(largest, -largest, 1), 3);
    expect(found[0]! / largest).toBeCloseTo(1, 6);
    expect(found[1]).toBe(-found[0]!);
    // Scales stay normal, 2^-126 at least: smaller numbers become 0.
    expect(roundToInt8(f32(2 ** -149, 2 ** -126), 2)).toEqual(f32(0, 2 ** -126));
  });

  it('is off by half a scale at most, with 2^bits - 1 values at most', () => {
    fc.assert(
      fc.property(rows(ofOrderOne), bitCounts, ({ states, width }, bits) => {
        const levels = 2 ** (bits - 1) - 1;
        const found = quantise(states, { width, bits });
        for (let from = 0; from < states.length; from += width) {
          const row = states.subarray(from, from + width);
          const scale = Math.max(...row.map(Math.abs)) / levels;
          found.subarray(from, from + width).forEach((x, i) => {
            expect(Math.abs(x - row[i]!)).toBeLessThanOrEqual((scale / 2) * (1 + 1e-4) + 2 ** -126);
            const integer = scale < 2 ** -120 ? 0 : x / scale;
            expect(Math.abs(integer - Math.round(integer))).toBeLessThan(1e-4);
            expect(Math.abs(integer)).toBeLessThan(levels + 1e-4);
          });
        }
      }),
    );
  });

  it('changes nothing a second time but the last digit of the scale', () => {
    fc.assert(
      fc.property(rows(finite), bitCounts, ({ states, width }, bits) => {
        const once = quantise(states, { width, bits });
        quantise(once, { width, bits }).forEach((x, i) => {
          expect(Math.abs(x - once[i]!)).toBeLessThanOrEqual(Math.abs(once[i]!) * 2 ** -22);
        });
      }),
    );
  });
});

describe('refused', () => {
  it.each<[string, () => unknown]>([
    ['states: expected finite numbers, found NaN in token 1', () => roundToInt8(f32(1, 2, Number.NaN, 3), 2)],
    [
      'states: expected finite numbers, found -Infinity in token 2',
      () => roundToFloat16(f32(1, 2, -Infinity)),
    ],
    ['states: 3 numbers are not whole rows of 2; is the width right?', () => roundToInt8(f32(1, 2, 3), 2)],
    ['width: expected an integer from 1, found 0', () => roundToInt8(f32(1), 0)],
    ['bits: expected an integer from 2 to 8, found 1', () => quantise(f32(1), { width: 1, bits: 1 })],
  ])('%s', (message, call) => expect(call).toThrow(message));
});
