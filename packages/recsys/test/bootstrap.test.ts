import { random } from '@fellrec/graph';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { bootstrap, pairedBootstrap, quantile } from '../src/bootstrap.ts';

describe('intervals', () => {
  test('quantiles are numpy.quantile', () => {
    const sorted = [0.1, 0.35, 0.4, 0.8];
    expect([0.025, 0.5, 0.975].map((q) => quantile(sorted, q))).toEqual([
      expect.closeTo(0.11875, 12),
      expect.closeTo(0.375, 12),
      expect.closeTo(0.77, 12),
    ]);
  });

  test('of a share, about the normal one: 1.96 sqrt(p (1 - p) / n)', () => {
    const values = Array.from({ length: 400 }, (_, i) => (i % 4 === 0 ? 1 : 0));
    const { mean, low, high } = bootstrap(values, 1);
    const half = 1.96 * Math.sqrt((0.25 * 0.75) / 400);
    expect(mean).toBe(0.25);
    expect(mean - low).toBeCloseTo(half, 2);
    expect(high - mean).toBeCloseTo(half, 2);
    expect(bootstrap(values, 1)).toEqual({ mean, low, high });
  });

  test('of equal values it is a point, of none an error', () => {
    expect(bootstrap([0.5, 0.5, 0.5], 1)).toEqual({ mean: 0.5, low: 0.5, high: 0.5 });
    expect(() => bootstrap([], 1)).toThrow('no users');
  });
});

describe('two methods on the same users', () => {
  /** All n^n resamples of n users, each as likely. */
  function everyDifference(method: readonly number[], baseline: readonly number[]): number[] {
    const n = method.length;
    return Array.from({ length: n ** n }, (_, resample) => {
      let sum = 0;
      for (let i = 0, rest = resample; i < n; i++, rest = Math.floor(rest / n))
        sum += method[rest % n]! - baseline[rest % n]!;
      return sum / n;
    });
  }

  test('as all resamples of five users say', () => {
    const [method, baseline] = [
      [0.9, 0.2, 0.5, 0.7, 0.1],
      [0.3, 0.4, 0.45, 0.2, 0.3],
    ];
    const all = everyDifference(method, baseline).sort((a, b) => a - b);
    const [found] = pairedBootstrap([method], [baseline], 1);
    expect(found!.difference.mean).toBeCloseTo(0.15, 12);
    expect(found!.difference.low).toBeCloseTo(quantile(all, 0.025), 1);
    expect(found!.difference.high).toBeCloseTo(quantile(all, 0.975), 1);
    const below = all.filter((d) => d <= 0).length / all.length;
    // A standard error of the share is below 0.01, and p is twice it.
    expect(Math.abs(found!.p - 2 * below)).toBeLessThan(0.04);
  });

  test('intervals and p of many users are those of the normal approximation', () => {
    const { uniform } = random(5, 'users');
    const users = Array.from({ length: 4000 }, () => [uniform() < 0.1 ? 1 : 0, uniform() < 0.08 ? 1 : 0]);
    const [method, baseline] = [users.map(([a]) => a!), users.map(([, b]) => b!)];
    const [{ difference, p }] = pairedBootstrap([method], [baseline], 1) as [
      ReturnType<typeof pairedBootstrap>[0],
    ];
    const each = users.map(([a, b]) => a! - b!);
    const mean = each.reduce((sum, d) => sum + d, 0) / each.length;
    const error = Math.sqrt(each.reduce((sum, d) => sum + (d - mean) ** 2, 0)) / each.length;
    expect(difference.mean).toBeCloseTo(mean, 12);
    expect(difference.low).toBeCloseTo(mean - 1.96 * error, 2.5);
    expect(difference.high).toBeCloseTo(mean + 1.96 * error, 2.5);
    expect(p).toBeLessThan(0.05);
  });

  test('a method differs from itself in nothing', () => {
    const [found] = pairedBootstrap([[0, 1, 0, 1]], [[0, 1, 0, 1]], 1);
    expect(found).toEqual({
      difference: { mean: 0, low: 0, high: 0 },
      p: 1,
      users: 4,
    });
  });

  test('the relative change is of the means, and left out where a baseline finds nothing', () => {
    const [found] = pairedBootstrap([[0.2, 0.4, 0.6, 0.8]], [[0.1, 0.2, 0.3, 0.4]], 1);
    expect(found!.relative).toEqual({
      mean: expect.closeTo(1, 12),
      low: expect.closeTo(1, 12),
      high: expect.closeTo(1, 12),
    });
    expect(pairedBootstrap([[1, 1]], [[0, 0]], 1)[0]!.relative).toBeUndefined();
  });

  test('a user tested twice counts twice, and is drawn as one', () => {
    const [method, baseline, weights] = [
      [1, 0, 0.5],
      [0, 0, 1],
      [2, 1, 1],
    ];
    const [found] = pairedBootstrap([method], [baseline], 1, weights);
    expect(found!.difference.mean).toBeCloseTo((2 * 1 + 0 - 0.5) / 4, 12);
    // All 27 resamples of three users.
    const all: number[] = [];
    for (const a of [0, 1, 2])
      for (const b of [0, 1, 2])
        for (const c of [0, 1, 2]) {
          const drawn = [a, b, c];
          const sum = drawn.reduce((s, u) => s + weights[u]! * (method[u]! - baseline[u]!), 0);
          all.push(sum / drawn.reduce((s, u) => s + weights[u]!, 0));
        }
    // One of 27 is more than 2.5 %.
    expect(found!.difference.low).toBeCloseTo(Math.min(...all), 12);
    expect(found!.difference.high).toBeCloseTo(Math.max(...all), 12);
  });

  test('exchanging the methods turns the sign and keeps p', () => {
    const values = fc.array(fc.tuple(fc.integer({ min: 0, max: 4 }), fc.integer({ min: 0, max: 4 })), {
      minLength: 1,
      maxLength: 20,
    });
    fc.assert(
      fc.property(values, (pairs) => {
        const [a, b] = [pairs.map(([x]) => x / 4), pairs.map(([, y]) => y / 4)];
        const [forth, back] = [pairedBootstrap([a], [b], 3)[0]!, pairedBootstrap([b], [a], 3)[0]!];
        expect(back.p).toBe(forth.p);
        expect(back.difference.low).toBeCloseTo(-forth.difference.high, 12);
        expect(back.difference.mean).toBeCloseTo(-forth.difference.mean, 12);
      }),
      { numRuns: 30 },
    );
  });

  test('users without a partner are an error', () => {
    expect(() => pairedBootstrap([[1, 0]], [[1]], 1)).toThrow('2 and 1 values');
    expect(() => pairedBootstrap([[]], [[]], 1)).toThrow('no users');
  });
});
