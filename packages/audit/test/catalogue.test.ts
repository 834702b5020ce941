import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { firstApart, type Match } from '../src/attacks/catalogue.ts';

const match = (title: number, from: number, to: number, score: number): Match => ({ title, from, to, score });

describe('which titles are taken', () => {
  test('the best at a place, then the best of the other places', () => {
    const matches = [match(0, 0, 4, 1.2), match(1, 1, 4, 1.9), match(2, 4, 6, 0.3), match(3, 5, 9, 0.1)];
    expect(firstApart(matches, 3).map(({ title }) => title)).toEqual([1, 2]);
    expect(firstApart(matches, 1).map(({ title }) => title)).toEqual([1]);
  });

  test('each title once', () => {
    expect(
      firstApart([match(0, 0, 2, 2), match(0, 4, 6, 1.9), match(1, 4, 6, 1)], 2).map(({ title }) => title),
    ).toEqual([0, 1]);
  });

  test('no two overlap, and what was left out is no better than what overlaps it', () => {
    const matches = fc.array(
      fc
        .record({
          title: fc.nat(6),
          from: fc.nat(12),
          length: fc.integer({ min: 1, max: 5 }),
          score: fc.double({ min: -1, max: 3, noNaN: true }),
        })
        .map(({ title, from, length, score }) => match(title, from, from + length, score)),
    );
    fc.assert(
      fc.property(matches, (all) => {
        const taken = firstApart(all, 100);
        const clash = (a: Match, b: Match) => a.title === b.title || (a.from < b.to && b.from < a.to);
        for (const [i, one] of taken.entries())
          expect(taken.slice(0, i).some((other) => clash(one, other))).toBe(false);
        for (const left of all.filter((one) => !taken.includes(one)))
          expect(taken.some((one) => clash(one, left) && one.score >= left.score)).toBe(true);
      }),
    );
  });
});
