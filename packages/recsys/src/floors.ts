// The floor that any recommender must beat: random order, and popularity in the training interactions.
import { type Random, random } from '@fellrec/graph';
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
  const counts = popularity(users, itemCount);
  return samples.map(({ user, seen, targets }) => {
    const options = { k: Math.max(...ks), exclude: seen, random: random(seed, 'floor', floor, user) };
    const ranked = floor === 'random' ? draw(itemCount, options) : rank(counts, options);
    return metricsOf(ranked, targets, ks);
  });
}

/** The first k places of a random order of the items that are not excluded, without ordering the others. */
function draw(
  itemCount: number,
  { k, exclude, random }: { k: number; exclude: readonly number[]; random: Random },
): number[] {
  const taken = new Set(exclude);
  const drawn: number[] = [];
  while (drawn.length < k && taken.size < itemCount) {
    const item = random.integer(itemCount);
    if (taken.has(item)) continue;
    taken.add(item);
    drawn.push(item);
  }
  return drawn;
}
