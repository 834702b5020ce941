import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { meanMetrics, metricsOf, spread } from '../src/metrics.ts';

type Expected = Record<string, Record<string, number>>;
const golden = JSON.parse(readFileSync(join(import.meta.dirname, 'fixtures/metrics.json'), 'utf8')) as {
  users: { ranked: number[]; targets: number[]; expected: Expected }[];
  mean: Expected;
};
const ks = [1, 5, 10, 20, 50];

/** `{"10": {recall: 1}}` as `{"recall@10": 1}`. */
const flat = (expected: Expected) =>
  Object.fromEntries(
    Object.entries(expected).flatMap(([k, values]) =>
      Object.entries(values).map(([name, value]) => [`${name}@${k}`, value] as const),
    ),
  );

function expectClose(found: Readonly<Record<string, number>>, expected: Record<string, number>): void {
  expect(Object.keys(found).sort()).toEqual(Object.keys(expected).sort());
  for (const [name, value] of Object.entries(expected)) expect(found[name], name).toBeCloseTo(value, 12);
}

describe('metrics', () => {
  it('equal those of an independent library for every user and cutoff', () => {
    expect(golden.users).toHaveLength(40);
    for (const { ranked, targets, expected } of golden.users)
      expectClose(metricsOf(ranked, targets, ks), flat(expected));
  });

  it('average without rounding', () => {
    const users = golden.users.map(({ ranked, targets }) => metricsOf(ranked, targets, ks));
    expectClose(meanMetrics(users), flat(golden.mean));
  });

  it('by hand: hits at ranks 2 and 4 of 3 targets', () => {
    const found = metricsOf([9, 1, 8, 2, 7], [1, 2, 3], [5]);
    const ideal = 1 + 1 / Math.log2(3) + 1 / 2;
    expectClose(found, {
      'recall@5': 2 / 3,
      'precision@5': 2 / 5,
      'mrr@5': 1 / 2,
      'hit@5': 1,
      'ndcg@5': (1 / Math.log2(3) + 1 / Math.log2(5)) / ideal,
    });
  });

  it('count the missing end of a short list as misses', () => {
    expectClose(metricsOf([1], [1, 2], [10]), {
      'recall@10': 1 / 2,
      'precision@10': 1 / 10,
      'mrr@10': 1,
      'hit@10': 1,
      'ndcg@10': 1 / (1 + 1 / Math.log2(3)),
    });
  });

  it('lie in [0, 1] and are 1 when all targets come first', () => {
    const items = fc.uniqueArray(fc.nat(60), { minLength: 1, maxLength: 20 });
    fc.assert(
      fc.property(items, items, (ranked, targets) => {
        for (const value of Object.values(metricsOf(ranked, targets))) {
          expect(value).toBeGreaterThanOrEqual(0);
          expect(value).toBeLessThanOrEqual(1);
        }
        const best = metricsOf(targets, targets, [20]);
        expect(best['recall@20']).toBe(1);
        expect(best['ndcg@20']).toBeCloseTo(1, 12);
      }),
    );
  });

  it('refuse a user without targets', () => {
    expect(() => metricsOf([1], [])).toThrow('a user without targets has no metrics');
  });
});

describe('the spread over clients', () => {
  const clients = new Map([
    ['a', { 'recall@10': 0.1 }],
    ['b', { 'recall@10': 0.4 }],
    ['c', { 'recall@10': 0.1 }],
  ]);

  it('is the standard deviation of the population and the worst client, the first of equals', () => {
    const { deviation, worst } = spread('recall@10', clients);
    expect(deviation).toBeCloseTo(Math.sqrt(0.02), 12);
    expect(worst).toEqual({ client: 'a', value: 0.1 });
  });
});
