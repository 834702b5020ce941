// Items as tokens: the laws of an item sequence, whatever the items and the limits.
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { TextLimits } from '../src/recformer/config.ts';
import { itemSequence, type TokenisedItem } from '../src/recformer/sequence.ts';

const startId = 0;
const tokens = fc.array(fc.integer({ min: 3, max: 119 }), { maxLength: 4 });
const item = fc.array(fc.record({ name: tokens, value: tokens }), { maxLength: 4 });
const history = fc.array(item, { maxLength: 6 });
const anyLimits: fc.Arbitrary<TextLimits> = fc.record({
  maxAttributes: fc.integer({ min: 1, max: 4 }),
  maxAttributeLength: fc.integer({ min: 1, max: 9 }),
  maxItems: fc.integer({ min: 1, max: 6 }),
  maxTokens: fc.integer({ min: 1, max: 40 }),
});

interface Token {
  readonly id: number;
  readonly tokenType: number;
  readonly itemPosition: number;
}

/** The tokens of every item that may go in, newest first, before a sequence is cut. */
function tokensOf(items: readonly TokenisedItem[], limits: TextLimits): Token[][] {
  const newestFirst = [...items].reverse().filter((_, place) => place < limits.maxItems);
  return newestFirst.map((attributes, place) =>
    attributes
      .filter((_, i) => i < limits.maxAttributes)
      .flatMap(({ name, value }) =>
        [...name, ...value]
          .map((id, i) => ({ id, tokenType: i < name.length ? 1 : 2, itemPosition: place + 1 }))
          .filter((_, i) => i < limits.maxAttributeLength),
      ),
  );
}

describe('an item sequence', () => {
  test('is the first token, then names and values from the newest item on, cut to its length', () => {
    fc.assert(
      fc.property(history, anyLimits, (items, limits) => {
        const { ids, tokenTypes, itemPositions } = itemSequence(items, limits, startId).sequence;
        const first = { id: startId, tokenType: 0, itemPosition: 0 };
        const expected = [first, ...tokensOf(items, limits).flat()].slice(0, limits.maxTokens);
        expect(ids).toEqual(expected.map(({ id }) => id));
        expect(tokenTypes).toEqual(expected.map(({ tokenType }) => tokenType));
        expect(itemPositions).toEqual(expected.map(({ itemPosition }) => itemPosition));
      }),
    );
  });

  test('has as many types and positions as tokens, in their ranges', () => {
    fc.assert(
      fc.property(history, anyLimits, (items, limits) => {
        const { ids, tokenTypes, itemPositions } = itemSequence(items, limits, startId).sequence;
        expect([tokenTypes.length, itemPositions.length]).toEqual([ids.length, ids.length]);
        expect(ids.length).toBeLessThanOrEqual(limits.maxTokens);
        expect([ids[0], tokenTypes[0], itemPositions[0]]).toEqual([startId, 0, 0]);
        expect(tokenTypes.slice(1).every((type) => type === 1 || type === 2)).toBe(true);
        expect(itemPositions).toEqual(itemPositions.toSorted((a, b) => a - b));
        expect(itemPositions.slice(1).every((place) => place >= 1 && place <= limits.maxItems)).toBe(true);
      }),
    );
  });

  test('says of how many items tokens are missing', () => {
    // Of an item without tokens none can be missing.
    const withTokens = fc.array(
      item.filter((attributes) => attributes[0] !== undefined && attributes[0].name.length > 0),
      { maxLength: 6 },
    );
    fc.assert(
      fc.property(withTokens, anyLimits, (items, limits) => {
        const { sequence, dropped } = itemSequence(items, limits, startId);
        const whole = tokensOf(items, limits).filter(
          (all, place) => sequence.itemPositions.filter((found) => found === place + 1).length === all.length,
        );
        expect(dropped).toBe(items.length - whole.length);
      }),
    );
  });

  test('of a longer history has the same newest tokens', () => {
    fc.assert(
      fc.property(history, history, anyLimits, (older, newer, limits) => {
        const short = itemSequence(newer, limits, startId).sequence;
        const long = itemSequence([...older, ...newer], limits, startId).sequence;
        expect(long.ids.slice(0, short.ids.length)).toEqual(short.ids);
        expect(long.itemPositions.slice(0, short.ids.length)).toEqual(short.itemPositions);
      }),
    );
  });

  test('by hand: name and value are cut together, and an empty item uses up its number', () => {
    const limits = { maxAttributes: 2, maxAttributeLength: 3, maxItems: 3, maxTokens: 7 };
    const items: TokenisedItem[] = [
      [{ name: [70], value: [71] }], // one too many
      [
        { name: [10, 11], value: [12, 13] },
        { name: [20], value: [21] },
      ],
      [],
      [
        { name: [30], value: [] },
        { name: [40], value: [41] },
        { name: [50], value: [51] },
      ],
    ];
    expect(itemSequence(items, limits, 9)).toEqual({
      sequence: {
        ids: [9, 30, 40, 41, 10, 11, 12],
        tokenTypes: [0, 1, 1, 2, 1, 1, 2],
        itemPositions: [0, 1, 1, 1, 3, 3, 3],
      },
      dropped: 2,
    });
  });
});
