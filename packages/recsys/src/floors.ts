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

export interface FloorOptions {
  readonly seed: number;
  /** Whether a user's history is left out (default true), as of what it is compared with. */
  readonly maskHistory?: boolean;
  readonly ks?: readonly number[];
}

/** Metrics of each sample under a ranking that does not look at what the history says. */
export function floorMetrics(
  floor: Floor,
  samples: readonly Sample[],
  users: readonly User[],
  itemCount: number,
  { seed, maskHistory = true, ks = cutoffs }: FloorOptions,
): Metrics[] {
  const counts = popularity(users, itemCount);
  return samples.map(({ user, seen, targets }) => {
    const exclude = maskHistory ? seen : [];
    const options = { k: Math.max(...ks), exclude, random: random(seed, 'floor', floor, user) };
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
