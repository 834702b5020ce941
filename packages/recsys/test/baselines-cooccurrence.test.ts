import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { evaluateBaseline } from '../src/baselines/baseline.ts';
import { fitCooccurrence } from '../src/baselines/cooccurrence.ts';
import type { User } from '../src/dataset.ts';
import { testSamples } from '../src/samples.ts';
import { user } from './shared.ts';

const itemCount = 8;
const query = (...seen: number[]) => ({ history: seen.slice(-10), seen });

/** Of the users who have item a, the share of those who have b. */
function share(users: readonly User[], a: number, b: number): number {
  const having = users.filter(({ train }) => train.includes(a));
  return a === b || having.length === 0
    ? 0
    : having.filter(({ train }) => train.includes(b)).length / having.length;
}

const items = (maxLength: number) => fc.array(fc.nat(itemCount - 1), { maxLength });

describe('co-occurrence', () => {
  it('sums shares of users over the last items, for any users and histories with repetitions', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(items(12), { minLength: 1, maxLength: 8 }),
        fc.array(items(15), { minLength: 1, maxLength: 3 }),
        async (trains, histories) => {
          const users = trains.map((train, i) => user(`${i}`, { train }));
          const { data, dims } = await fitCooccurrence(users, itemCount).score(
            histories.map((h) => query(...h)),
          );
          expect(dims).toEqual([histories.length, itemCount]);
          histories.forEach((seen, row) => {
            for (let j = 0; j < itemCount; j++) {
              const expected = [...new Set(seen.slice(-10))].reduce((sum, i) => sum + share(users, i, j), 0);
              expect(data[row * itemCount + j]).toBeCloseTo(expected, 5);
            }
          });
        },
      ),
    );
  });

  it('learns from training parts only', async () => {
    const users = [user('a', { train: [0, 1], validation: [2], test: [3] })];
    const { data } = await fitCooccurrence(users, itemCount).score([query(0)]);
    expect([...data]).toEqual([0, 1, 0, 0, 0, 0, 0, 0]);
  });

  it('is evaluated without the history, with all of it unless asked not to', async () => {
    const users = [
      user('a', { train: [0, 1], validation: [2], test: [3] }),
      user('b', { train: [0, 1, 2, 3] }),
    ];
    const samples = users.flatMap(testSamples);
    const baseline = fitCooccurrence(users, itemCount);
    const masked = await evaluateBaseline(baseline, samples, { seed: 1 });
    // Of items that are left only 3 was with 0, 1 and 2.
    expect(masked.metrics[0]!['mrr@10']).toBe(1);
    const whole = await evaluateBaseline(baseline, samples, { seed: 1, maskHistory: false });
    expect(whole.metrics[0]!['mrr@10']).toBeLessThan(1);
  });

  it('says what is wrong with what it is given', async () => {
    expect(() => fitCooccurrence([], 3)).toThrow(
      'co-occurrence: 0 users to learn from; pass those of a data set',
    );
    expect(() => fitCooccurrence([user('a', { train: [0] })], 0)).toThrow(
      "co-occurrence: the catalogue has 0 items; pass the size of the data set's catalogue",
    );
    expect(() => fitCooccurrence([user('a', { train: [0, 3] })], 3)).toThrow(
      'co-occurrence: user "a" has item 3, the catalogue has items 0 to 2; are they of one data set?',
    );
    const baseline = fitCooccurrence([user('a', { train: [0, 1] })], 3);
    await expect(baseline.score([query(0), query(4)])).rejects.toThrow('co-occurrence: query 1 has item 4');
  });
});
