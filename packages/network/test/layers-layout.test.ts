import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { Code } from '@connectrpc/connect';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { DropoutSchema } from '#proto/layers_pb';
import type { TokenLayout as LayoutMessage } from '#proto/tensor_pb';
import { decodeDropout, decodeLayout, encodeDropout, encodeLayout, rowsOf } from '../src/protocol/layout.ts';
import { layoutOf } from './layers-toy.ts';

const layouts = fc
  .record({ prefix: fc.nat(20), time: fc.integer({ min: 1, max: 20 }) })
  .chain(({ prefix, time }) =>
    fc.record({
      prefix: fc.constant(prefix),
      time: fc.constant(time),
      lengths: fc.array(fc.integer({ min: prefix + 1, max: prefix + time }), { minLength: 1, maxLength: 9 }),
    }),
  );

describe('a layout', () => {
  it('crosses as it is', () => {
    fc.assert(
      fc.property(layouts, (layout) => {
        expect(decodeLayout('layout', encodeLayout(layout), rowsOf(layout))).toEqual(layout);
      }),
    );
  });

  it('has no more rows than are allowed', () => {
    fc.assert(
      fc.property(layouts, (layout) => {
        const rows = layout.prefix + layout.lengths.length * layout.time;
        expect(() => decodeLayout('layout', encodeLayout(layout), rows - 1)).toThrow(
          `layout: expected at most ${rows - 1} tokens`,
        );
      }),
    );
  });

  const most = 2 ** 32 - 1;
  const wrong: [string, LayoutMessage | undefined, RegExp][] = [
    ['nothing', undefined, /layout: missing/],
    ['no sequence', layoutOf([], 4), /layout\.lengths: expected a sequence/],
    ['no padded length', layoutOf([1], 0), /layout\.padded_length: .*found 0/],
    ['a sequence of nothing', layoutOf([1, 0], 4), /layout\.lengths\[1\]: expected 1 to 4, found 0/],
    [
      'a sequence of the prefix alone',
      layoutOf([3, 2], 4, 2),
      /layout\.lengths\[1\]: expected 3 to 6, found 2/,
    ],
    ['a sequence beyond the padding', layoutOf([5], 4), /layout\.lengths\[0\]: expected 1 to 4, found 5/],
    ['rows that overflow', layoutOf([most, most], most, most), /at most 100 tokens/],
    ['a prefix beyond the limit', layoutOf([101], 1, 100), /at most 100 tokens/],
  ];
  it.each(wrong)('is refused with %s', (_, message, expected) => {
    const decode = () => decodeLayout('layout', message, 100);
    expect(decode).toThrow(expected);
    expect(decode).toThrow(expect.objectContaining({ code: Code.InvalidArgument }));
  });
});

describe('the streams of dropout', () => {
  const names = fc.oneof(
    fc.maxSafeNat(),
    fc.string({ unit: 'grapheme', maxLength: 100 }),
    fc.nat().map((n) => `#${n}`),
    fc.string({ maxLength: 5 }).map((text) => `##${text}`),
  );
  const dropouts = fc.record({
    seed: fc
      .tuple(fc.maxSafeNat(), fc.array(names, { maxLength: 16 }))
      .map(([seed, stream]): [number, ...(string | number)[]] => [seed, ...stream]),
    sequences: fc.array(fc.nat(), { maxLength: 5 }),
  });

  it('cross as they are, numbers as numbers and strings as strings', () => {
    fc.assert(
      fc.property(dropouts, (dropout) => {
        expect(decodeDropout('dropout', encodeDropout(dropout), dropout.sequences.length)).toEqual(dropout);
      }),
    );
  });

  it('are written as digits behind "#", and as text', () => {
    const { seed, stream } = encodeDropout({ seed: [7, 'client-0', 12, '#12', '##'], sequences: [] });
    expect({ seed, stream }).toEqual({ seed: 7n, stream: ['client-0', '#12', '##12', '###'] });
  });

  it.each([-1, 0.5, Number.NaN, 2 ** 53])('are not named %d', (value) => {
    expect(() => encodeDropout({ seed: [1, value], sequences: [] })).toThrow(/whole number/);
    expect(() => encodeDropout({ seed: [value], sequences: [] })).toThrow(/whole number/);
  });

  const wrong: [string, Omit<MessageInitShape<typeof DropoutSchema>, '$typeName'>, RegExp][] = [
    ['too few sequences', { sequences: [0] }, /number of dropout\.sequences: expected 2, found 1/],
    ['too many sequences', { sequences: [0, 1, 2] }, /number of dropout\.sequences/],
    ['a seed that is no number here', { seed: 2n ** 53n }, /dropout\.seed/],
    ['no digits', { stream: ['a', '#'] }, /dropout\.stream\[1\]/],
    ['other digits', { stream: ['#012'] }, /dropout\.stream\[0\]/],
    ['a negative number', { stream: ['#-5'] }, /dropout\.stream\[0\]/],
    ['a fraction', { stream: ['#1.5'] }, /dropout\.stream\[0\]/],
    ['words', { stream: ['#one'] }, /dropout\.stream\[0\]/],
    ['too large a number', { stream: [`#${2n ** 53n}`] }, /dropout\.stream\[0\]/],
    ['too long a name', { stream: ['x'.repeat(257)] }, /dropout\.stream\[0\]: .*found 257/],
    ['too many names', { stream: new Array(17).fill('x') }, /dropout\.stream: .*found 17/],
  ];
  it.each(wrong)('are refused with %s', (_, change, expected) => {
    const decode = () =>
      decodeDropout('dropout', create(DropoutSchema, { seed: 1n, sequences: [0, 1], ...change }), 2);
    expect(decode).toThrow(expected);
    expect(decode).toThrow(expect.objectContaining({ code: Code.InvalidArgument }));
  });
});
