// Injection against its formula, and the gamma that validation chooses.
import { float32 } from '@fellrec/graph';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { fitPopularity } from '../src/baselines/popularity.ts';
import { chooseGammas, gammas } from '../src/gamma.ts';
import { combined } from '../src/injection.ts';
import { listOf } from '../src/lists.ts';
import type { Scored } from '../src/recommender.ts';
import { user } from './shared.ts';

const scored = (scores: number[], first?: Scored['first']): Scored => ({
  scores,
  ...(first && { first }),
  dropped: 0,
});
const order = (found: Scored, seen: number[] = [], k = 20) =>
  listOf(found, { seen }, 0, { k, seed: 1 }).map(({ item }) => item);
const values = fc.array(fc.integer({ min: -50, max: 50 }), { minLength: 2, maxLength: 12 });

describe('injection', () => {
  test('is (1 + c)^-gamma D, both between 0 and 1', () => {
    // D = (4 - s) / 4 and c = t / 10; by hand.
    const found = combined(scored([4, 2, 1, 0]), [0, 10, 5, 10], 2);
    expect([...(found.scores as Float64Array)]).toEqual([-0, -0.5 / 4, -0.75 / 1.5 ** 2, -1 / 4]);
  });

  test('of nothing leaves the order, of very much lets nothing but the best stay before what it likes', () => {
    fc.assert(
      fc.property(values, values, (scores, others) => {
        fc.pre(new Set(scores).size === scores.length && others.length >= scores.length);
        expect(order(combined(scored(scores), others, 0))).toEqual(order(scored(scores)));
      }),
    );
    expect(order(combined(scored([3, 2, 1, 0]), [0, 1, 2, 3], 99))).toEqual([0, 3, 2, 1]);
  });

  test('of items that come first is among these', () => {
    const first = [
      { item: 3, score: -1 },
      { item: 0, score: -2 },
      { item: 1, score: -3 },
    ];
    const found = combined(scored([0, 1, 9, 2], first), [0, 9, 9, 0], 3);
    expect(order(found)).toEqual([3, 1, 0, 2]);
    expect(found.first!.map(({ score }) => score)).toEqual([-0, -0.5, -1 / 8]);
  });

  test('of equal scores, or by equal ones, is defined', () => {
    const scores = (found: Scored) => Array.from(found.scores, (score) => score + 0);
    // All are as good as the best: nothing is far from it.
    expect(scores(combined(scored([1, 1, 1]), [0, 1, 2], 1))).toEqual([0, 0, 0]);
    // The other method prefers none, and changes nothing.
    expect(scores(combined(scored([3, 2, 1]), [7, 7, 7], 5))).toEqual([0, -0.5, -1]);
  });
});

describe('lists', () => {
  const first = [
    { item: 5, score: -1 },
    { item: 2, score: -1 },
    { item: 4, score: -7 },
  ];

  test('have what comes first before all others, each item once, best first', () => {
    const items = listOf(scored([9, 8, 7, 6, 5, 4], first), { seen: [0] }, 0, { k: 6, seed: 1 });
    expect(
      items
        .map(({ item }) => item)
        .slice(0, 2)
        .sort(),
    ).toEqual([2, 5]);
    expect(items.map(({ item }) => item).slice(2)).toEqual([4, 1, 3]);
    const scores = items.map(({ score }) => score);
    expect(scores).toEqual(scores.toSorted((a, b) => b - a));
    expect(order(scored([9, 8, 7, 6, 5, 4], first), [], 2)).toHaveLength(2);
  });

  test('leave ties to the seed', () => {
    const seeds = Array.from({ length: 20 }, (_, seed) =>
      listOf(scored([0, 0, 0, 0, 0, 0], first), { seen: [] }, 0, { k: 1, seed }).map(({ item }) => item),
    );
    expect(new Set(seeds.flat())).toEqual(new Set([2, 5]));
  });
});

describe('gamma', () => {
  const samples = [0, 1].map((target) => ({ user: `${target}`, history: [3], seen: [3], targets: [target] }));
  async function* found(scores: number[]) {
    for (const _ of samples) yield scored(scores);
  }

  test('is large where the other method knows better, and 0 where it does not, or nobody was asked', async () => {
    const likes = (items: number[]) => ({
      score: async () =>
        float32(
          Float32Array.from([0, 1, 2, 3], (item) => Number(items.includes(item))),
          [1, 4],
        ),
    });
    // The recommender likes 2 before 1 and 0 (3 is seen); with much of the other method these come first.
    const [better, useless] = await chooseGammas(samples, found([0, 1, 2, 3]), [likes([0, 1]), likes([2])], {
      seed: 1,
    });
    expect(gammas).toContain(better);
    expect(better).toBeGreaterThan(0);
    expect(useless).toBe(0);
    expect(await chooseGammas(samples, found([3, 3, 1, 0]), [likes([2])], { seed: 1 })).toEqual([0]);
    expect(await chooseGammas([], (async function* () {})(), [likes([])], { seed: 1 })).toEqual([0]);
  });
});

test('popularity counts training items', async () => {
  const users = [user('a', { train: [0, 1, 1] }), user('b', { train: [1], validation: [0] })];
  const { data, dims } = await fitPopularity(users, 3).score([{ history: [], seen: [] }]);
  expect([...data, ...dims]).toEqual([1, 3, 0, 1, 3]);
});
