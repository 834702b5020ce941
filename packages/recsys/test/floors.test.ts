import { describe, expect, it } from 'vitest';
import { floorMetrics, popularity } from '../src/floors.ts';
import { meanMetrics } from '../src/metrics.ts';
import { testSamples } from '../src/samples.ts';
import { user } from './shared.ts';

describe('floors', () => {
  // Item 0 is the most popular in training; item 9 would be, if validation or test counted.
  const users = [
    user('a', { train: [0, 1], validation: [9], test: [2] }),
    user('b', { train: [0, 2], validation: [3], test: [9] }),
    user('c', { train: [0, 2, 1], validation: [9], test: [4] }),
  ];

  it('count popularity in training parts only', () => {
    expect([...popularity(users, 10)]).toEqual([3, 2, 2, 0, 0, 0, 0, 0, 0, 0]);
  });

  it('rank by popularity what the user has not seen', () => {
    const [sample] = testSamples(users[0]!);
    // Seen: 0, 1, 9; so item 2, the target, is the most popular one left.
    const [metrics] = floorMetrics('popularity', [sample!], users, 10, { seed: 1, ks: [1] });
    expect(metrics!['recall@1']).toBe(1);
  });

  it('rank what was seen too, where histories are not left out', () => {
    const [sample] = testSamples(users[0]!);
    const [metrics] = floorMetrics('popularity', [sample!], users, 10, {
      seed: 1,
      maskHistory: false,
      ks: [1, 3],
    });
    // Items 0 and 1 are as popular as the target, or more.
    expect(metrics).toMatchObject({ 'recall@1': 0, 'recall@3': 1 });
  });

  it('rank at random: each unseen item is first as often as any other', () => {
    const draws = 7000;
    const samples = Array.from({ length: draws }, (_, i) => ({
      user: `user ${i}`,
      history: [0, 1],
      seen: [0, 1, 9],
      targets: [5],
    }));
    const mean = meanMetrics(floorMetrics('random', samples, users, 10, { seed: 1, ks: [1, 7] }));
    // One of 7 unseen items; standard deviation 0.0042.
    expect(Math.abs(mean['recall@1']! - 1 / 7)).toBeLessThan(0.02);
    // All unseen items are ranked, none twice.
    expect(mean['recall@7']).toBe(1);
  });

  it('give the same numbers for the same seed', () => {
    const samples = users.flatMap(testSamples);
    const of = (seed: number) => floorMetrics('random', samples, users, 10, { seed, ks: [3] });
    expect(of(1)).toEqual(of(1));
  });
});
