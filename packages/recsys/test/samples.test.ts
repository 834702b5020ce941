import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { historyLength, subset, testSamples, trainingSamples, validationSamples } from '../src/samples.ts';
import { arbitraryUser, user } from './shared.ts';

const range = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => from + i);

describe('training samples', () => {
  it('are one, the last item, for users with up to 11 items', () => {
    for (const n of range(2, 12))
      expect(trainingSamples(user('u', { train: range(0, n) }))).toEqual([
        { user: 'u', history: range(0, n - 1), targets: [n - 1], seen: range(0, n - 1) },
      ]);
  });

  it('slide a window of 10 over longer sequences', () => {
    const samples = trainingSamples(user('u', { train: range(0, 14) }));
    expect(samples.map(({ targets }) => targets)).toEqual([[10], [11], [12], [13]]);
    expect(samples[3]!.history).toEqual(range(3, 13));
    expect(samples[3]!.seen).toEqual(range(0, 13));
  });

  it('have as many targets a user as are asked for, each after what came before it', () => {
    const few = trainingSamples(user('u', { train: range(0, 6) }), { targets: 3 });
    expect(few.map(({ targets, history }) => [targets, history])).toEqual([
      [[3], range(0, 3)],
      [[4], range(0, 4)],
      [[5], range(0, 5)],
    ]);
    expect(trainingSamples(user('u', { train: range(0, 3) }), { targets: 9 })).toHaveLength(2);
    // The window gives more than that.
    const long = user('u', { train: range(0, 14) });
    expect(trainingSamples(long, { targets: 2 })).toEqual(trainingSamples(long));
  });

  it('are none without a history', () => {
    expect(trainingSamples(user('u', { train: [] }))).toEqual([]);
    expect(trainingSamples(user('u', { train: [1] }))).toEqual([]);
  });

  it('are max(n - 10, 1) for n of at least 2, and use nothing but the training part', () => {
    fc.assert(
      fc.property(arbitraryUser, (u) => {
        const samples = trainingSamples(u);
        const n = u.train.length;
        expect(samples).toHaveLength(n < 2 ? 0 : Math.max(n - historyLength, 1));
        for (const { history, targets, seen } of samples)
          for (const item of [...history, ...targets, ...seen]) expect(u.train).toContain(item);
      }),
    );
  });
});

describe('validation samples', () => {
  it('are one an item, after the training items and the earlier validation items', () => {
    const u = user('u', { train: range(0, 11), validation: [20, 21], test: [30] });
    expect(validationSamples(u)).toEqual([
      { user: 'u', history: range(1, 11), targets: [20], seen: range(0, 11) },
      { user: 'u', history: [...range(2, 11), 20], targets: [21], seen: [...range(0, 11), 20] },
    ]);
  });

  it('are none without training items', () => {
    expect(validationSamples(user('u', { validation: [1, 2] }))).toEqual([]);
  });
});

describe('test samples', () => {
  it('are one a user with all test items as targets', () => {
    const u = user('u', { train: range(0, 11), validation: [20], test: [30, 31] });
    expect(testSamples(u)).toEqual([
      { user: 'u', history: [...range(2, 11), 20], targets: [30, 31], seen: [...range(0, 11), 20] },
    ]);
  });

  it('skip users without earlier or without test items', () => {
    expect(testSamples(user('u', { test: [1] }))).toEqual([]);
    expect(testSamples(user('u', { train: [1] }))).toEqual([]);
    expect(testSamples(user('u', { validation: [1], test: [2] }))).toHaveLength(1);
  });
});

it('no sample knows its targets, and a history is the last 10 of what was seen', () => {
  fc.assert(
    fc.property(arbitraryUser, (u) => {
      for (const sample of [...trainingSamples(u), ...validationSamples(u), ...testSamples(u)]) {
        expect(sample.history).toEqual(sample.seen.slice(-historyLength));
        expect(sample.seen.filter((item) => sample.targets.includes(item))).toEqual([]);
      }
    }),
  );
});

describe('subset', () => {
  it('keeps the order, repeats nothing, and has the wanted size', () => {
    fc.assert(
      fc.property(fc.nat(50), fc.nat(60), fc.integer(), (n, count, seed) => {
        const chosen = subset(range(0, n), count, seed, 'train');
        expect(chosen).toHaveLength(Math.min(n, count));
        expect(chosen).toEqual([...new Set(chosen)].sort((a, b) => a - b));
      }),
    );
  });

  it('depends on seed and purpose only', () => {
    const draw = (seed: number, purpose: string) => subset(range(0, 1000), 20, seed, purpose);
    expect(draw(1, 'train')).toEqual(draw(1, 'train'));
    expect(draw(1, 'train')).not.toEqual(draw(2, 'train'));
    expect(draw(1, 'train')).not.toEqual(draw(1, 'test'));
  });

  it('draws every sample equally often', () => {
    const counts = new Array<number>(10).fill(0);
    for (let seed = 0; seed < 4000; seed++)
      for (const item of subset(range(0, 10), 3, seed, 'p')) counts[item]!++;
    // Expected 1200, standard deviation 29.
    for (const count of counts) expect(Math.abs(count - 1200)).toBeLessThan(150);
  });
});
