// The floor that any recommender must beat: random order, and popularity in the training interactions.
import { random } from '@fellrec/graph';
import type { User } from './dataset.ts';
import { cutoffs, type Metrics, metricsOf } from './metrics.ts';
import { rank } from './ranking.ts';
import type { Sample } from './samples.ts';

export const floors = ['random', 'popularity'] as const;
export type Floor = (typeof floors)[number];

/** Interactions of each item in the users' training parts. */
export function popularity(users: readonly User[], itemCount: number): Float64Array {
  const counts = new Float64Array(itemCount);
  for (const { train } of users) for (const item of train) counts[item]!++;
  return counts;
}

/** Metrics of each sample under a ranking that ignores the history (but does not repeat it). */
export function floorMetrics(
  floor: Floor,
  samples: readonly Sample[],
  users: readonly User[],
  itemCount: number,
  seed: number,
  ks: readonly number[] = cutoffs,
): Metrics[] {
  const scores = floor === 'popularity' ? popularity(users, itemCount) : new Float64Array(itemCount);
  return samples.map(({ user, seen, targets }) => {
    const ranked = rank(scores, {
      k: Math.max(...ks),
      exclude: seen,
      random: random(seed, 'floor', floor, user),
    });
    return metricsOf(ranked, targets, ks);
  });
}
