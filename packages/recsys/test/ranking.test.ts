import { random } from '@fellrec/graph';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { rank } from '../src/ranking.ts';

const scoresWithTies = fc.array(fc.integer({ min: 0, max: 5 }), { minLength: 1, maxLength: 60 });

describe('rank', () => {
  it('orders by score, best first, and leaves the excluded out', () => {
    const scores = Float32Array.from([0.1, 0.9, 0.5, 0.7, -1]);
    expect(rank(scores, { k: 3, exclude: [1], random: random(1) })).toEqual([3, 2, 0]);
  });

  it('returns all items if there are fewer than k', () => {
    expect(rank([3, 1, 2], { k: 10, exclude: [0], random: random(1) })).toEqual([2, 1]);
    expect(rank([3, 1, 2], { k: 0, exclude: [], random: random(1) })).toEqual([]);
  });

  it('is the beginning of a full sort by score, without repetition', () => {
    fc.assert(
      fc.property(scoresWithTies, fc.integer({ min: 1, max: 70 }), fc.integer(), (scores, k, seed) => {
        const exclude = scores.flatMap((_, item) => (item % 3 === 0 ? [item] : []));
        const ranked = rank(scores, { k, exclude, random: random(seed) });
        const left = scores.filter((_, item) => item % 3 !== 0).sort((a, b) => b - a);
        expect(ranked.map((item) => scores[item])).toEqual(left.slice(0, k));
        expect(new Set(ranked).size).toBe(ranked.length);
        expect(ranked.filter((item) => exclude.includes(item))).toEqual([]);
      }),
    );
  });

  it('orders equal scores at random: each item is as often at each place', () => {
    const draws = 6000;
    const counts = Array.from({ length: 4 }, () => [0, 0]);
    for (let draw = 0; draw < draws; draw++)
      rank(new Float64Array(4), { k: 2, exclude: [], random: random(draw) }).forEach((item, place) => {
        counts[item]![place]!++;
      });
    // Expected 1500 each, standard deviation 34.
    for (const count of counts.flat()) expect(Math.abs(count - draws / 4)).toBeLessThan(170);
  });

  it('draws the same order from the same seed', () => {
    const order = (seed: number) =>
      rank(new Float64Array(50), { k: 50, exclude: [], random: random(seed, 'ties') });
    expect(order(7)).toEqual(order(7));
    expect(order(7)).not.toEqual(order(8));
  });

  it('refuses scores that are no numbers, whether excluded or not', () => {
    const options = { k: 1, exclude: [2], random: random(1) };
    expect(() => rank([1, Number.NaN, 3], options)).toThrow('the score of item 1 is not a number');
    expect(() => rank([1, 2, Number.NaN], options)).toThrow('the score of item 2 is not a number');
  });

  it('ranks infinite scores', () => {
    const scores = [Number.NEGATIVE_INFINITY, 0, Number.POSITIVE_INFINITY];
    expect(rank(scores, { k: 3, exclude: [], random: random(1) })).toEqual([2, 1, 0]);
  });
});
