import { Code, ConnectError } from '@connectrpc/connect';
import { type Float32Tensor, float32 } from '@fellrec/graph';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type Activations, ElementType } from '#proto/tensor_pb';
import {
  type ActivationsEncoding,
  decodeActivations,
  encodeActivations,
  encodingOf,
  payloadBytes,
} from '../src/protocol/activations.ts';

const encodings = ['float32', 'float16', 'int8'] as const satisfies readonly ActivationsEncoding[];

const matrix = (value: fc.Arbitrary<number>) =>
  fc
    .tuple(fc.integer({ min: 1, max: 5 }), fc.integer({ min: 1, max: 7 }))
    .chain(([rows, columns]) =>
      fc
        .array(value, { minLength: rows * columns, maxLength: rows * columns })
        .map((data) => float32(data, [rows, columns])),
    );
const finite = fc.float({ noNaN: true, noDefaultInfinity: true });
const tiny = fc.integer({ min: -200, max: 200 }).map((n) => n * 2 ** -149);
const ofOrderOne = fc.float({ min: -100, max: 100, noNaN: true });
/** Where float16 is normal, subnormal, between two, and too small or too large for it. */
const aroundFloat16 = fc.oneof(
  fc.float({ min: -70000, max: 70000, noNaN: true }),
  fc.float({ min: -Math.fround(1e-4), max: Math.fround(1e-4), noNaN: true }),
  fc.integer({ min: -4096, max: 4096 }).map((n) => n * 2 ** -25),
  fc.integer({ min: -4096, max: 4096 }).map((n) => 1 + n * 2 ** -12),
  finite,
);

function sent(tensor: Float32Tensor, encoding: ActivationsEncoding): Float32Tensor {
  const [rows, columns] = tensor.dims as [number, number];
  return decodeActivations('states', encodeActivations(tensor, encoding), { rows, columns });
}

/** The neighbour of x in binary16 by its definition: 11 digits, exponents from -14, ties to even, at most 65504. */
function nearestHalf(x: number): number {
  const unit = 2 ** (Math.max(Math.floor(Math.log2(Math.abs(x) || 1)), -14) - 10);
  const below = Math.floor(x / unit);
  const distance = x / unit - below;
  const up = distance > 0.5 || (distance === 0.5 && below % 2 !== 0);
  return Math.max(-65504, Math.min(65504, (below + (up ? 1 : 0)) * unit));
}

describe('activations', () => {
  it('cross as float32 bit by bit, in the memory that they have', () => {
    fc.assert(
      fc.property(matrix(finite), (tensor) => {
        const found = sent(tensor, 'float32');
        expect(found.dims).toEqual(tensor.dims);
        expect(found.data).toEqual(tensor.data);
        expect(found.data.buffer).toBe(tensor.data.buffer);
      }),
    );
  });

  it('cross as the nearest float16', () => {
    fc.assert(
      fc.property(matrix(aroundFloat16), (tensor) => {
        const found = sent(tensor, 'float16').data;
        // -0 and 0 are one number here.
        expect([...found].map((x) => x + 0)).toEqual([...tensor.data].map((x) => nearestHalf(x) + 0));
      }),
      { numRuns: 1000 },
    );
  });

  it("cross as int8 within half of their row's scale", () => {
    fc.assert(
      fc.property(fc.oneof(matrix(ofOrderOne), matrix(finite), matrix(tiny)), (tensor) => {
        const found = sent(tensor, 'int8').data;
        const scales = new Float32Array(encodeActivations(tensor, 'int8').scales.buffer);
        const columns = tensor.dims[1]!;
        scales.forEach((scale, row) => {
          const own = tensor.data.subarray(row * columns, (row + 1) * columns);
          const exact = Math.max(...own.map(Math.abs)) / 127;
          expect(scale).toBeLessThanOrEqual(Math.max(exact * (1 + 1e-6), exact && 2 ** -126));
          own.forEach((x, i) => {
            expect(Math.abs(found[row * columns + i]! - x)).toBeLessThanOrEqual(scale * (0.5 + 1e-4));
          });
        });
      }),
      { numRuns: 1000 },
    );
  });

  it('have the scales max |x| / 127, 0 for a row of zeros', () => {
    const { scales } = encodeActivations(float32([1, -254, 0, 0, 63.5, 3], [3, 2]), 'int8');
    expect([...new Float32Array(scales.buffer)]).toEqual([2, 0, 0.5]);
  });

  it('shrink to a half, and to a quarter and 4 bytes a row', () => {
    const tensor = float32(new Float32Array(1024 * 576).fill(0.5), [1024, 576]);
    const bytes = (encoding: ActivationsEncoding) => {
      const states = encodeActivations(tensor, encoding);
      return payloadBytes({ $typeName: '', states });
    };
    expect(encodings.map(bytes)).toEqual([4 * 1024 * 576, 2 * 1024 * 576, 1024 * 576 + 4 * 1024]);
  });

  it('stay finite up to the largest number, and are refused if they were not', () => {
    const largest = 3.4028234663852886e38;
    for (const encoding of encodings) {
      const [first, second] = sent(float32([largest, -largest], [1, 2]), encoding).data;
      expect(first).toBeGreaterThanOrEqual(encoding === 'float16' ? 65504 : largest * 0.99);
      expect(second).toBe(-first!);
      for (const value of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
        const message = encodeActivations(float32([1, 2, 3, value], [2, 2]), encoding);
        expect(() => decodeActivations('states', message, { rows: 2, columns: 2 })).toThrow(/finite/);
      }
    }
  });

  it('are read wherever their bytes lie', () => {
    const tensor = float32([1, -2, 3, 127, 5, 6], [2, 3]);
    for (const encoding of encodings)
      for (const offset of [1, 2, 3, 4]) {
        const { data, scales, ...rest } = encodeActivations(tensor, encoding);
        const moved = { ...rest, data: movedBy(offset, data), scales: movedBy(offset, scales) };
        const found = decodeActivations('states', moved, { rows: 2, columns: 3 }).data;
        expect([...found].map(Math.round)).toEqual([...tensor.data]);
      }
  });

  const wrong: [string, ActivationsEncoding, Partial<Activations>, RegExp][] = [
    ['no type', 'float32', { type: ElementType.UNSPECIFIED }, /states\.type: .*FLOAT32.*UNSPECIFIED/],
    ['an unknown type', 'float32', { type: 9 as ElementType }, /states\.type: .*found 9/],
    ['other rows', 'float32', { rows: 3 }, /states\.rows: expected 2, found 3/],
    ['other columns', 'float16', { columns: 1 }, /states\.columns: expected 3, found 1/],
    ['as many elements in another shape', 'int8', { rows: 3, columns: 2 }, /states\.rows/],
    ['rows that overflow', 'float32', { rows: 2 ** 32 - 1, columns: 2 ** 32 - 1 }, /states\.rows/],
    [
      'bytes missing',
      'float32',
      { data: new Uint8Array(23) },
      /bytes of states\.data: expected 24, found 23/,
    ],
    ['bytes too many', 'float16', { data: new Uint8Array(13) }, /expected 12, found 13/],
    ['another type than its bytes', 'float32', { type: ElementType.FLOAT16 }, /expected 12, found 24/],
    ['scales missing', 'int8', { scales: new Uint8Array(4) }, /bytes of states\.scales: expected 8, found 4/],
    ['scales of nothing', 'float32', { scales: new Uint8Array(8) }, /bytes of states\.scales: expected 0/],
    ['a negative scale', 'int8', { scales: scales(1, -1) }, /states\.scales: .*found -1 in row 1/],
    ['a scale that is NaN', 'int8', { scales: scales(Number.NaN, 1) }, /found NaN in row 0/],
    ['an infinite scale', 'int8', { scales: scales(1, Number.POSITIVE_INFINITY) }, /found Infinity in row 1/],
    ['a scale that makes too much', 'int8', { scales: scales(1, 3e38) }, /row 1, column 0/],
  ];
  it.each(wrong)('are refused with %s', (_, encoding, change, message) => {
    const right = encodeActivations(float32([1, 2, 3, 4, 5, 6], [2, 3]), encoding);
    const decode = () => decodeActivations('states', { ...right, ...change }, { rows: 2, columns: 3 });
    expect(decode).toThrow(message);
    expect(decode).toThrow(expect.objectContaining({ code: Code.InvalidArgument }));
    expect(decode).toThrow(ConnectError);
  });

  it('are refused if they are missing', () => {
    expect(() => decodeActivations('gradient', undefined, { rows: 1, columns: 1 })).toThrow(
      'gradient: missing',
    );
  });

  it('say how they are written', () => {
    for (const encoding of encodings)
      expect(encodingOf('states', encodeActivations(float32([1], [1, 1]), encoding))).toBe(encoding);
  });
});

function scales(...values: number[]): Uint8Array {
  return new Uint8Array(Float32Array.from(values).buffer);
}

function movedBy(offset: number, bytes: Uint8Array): Uint8Array {
  const room = new Uint8Array(bytes.length + offset);
  room.set(bytes, offset);
  return room.subarray(offset);
}
