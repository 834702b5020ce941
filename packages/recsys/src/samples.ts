// What the recommender learns from and is asked: a history and its targets.
import { random } from '@fellrec/graph';
import type { User } from './dataset.ts';

export interface Sample {
  readonly user: string;
  /** The last items before the targets, oldest first. */
  readonly history: readonly number[];
  readonly targets: readonly number[];
  /** All earlier items of the user: never recommended again. */
  readonly seen: readonly number[];
}

/** Longest history in a prompt, as in the paper. */
export const historyLength = 10;

const recent = (items: readonly number[]) => items.slice(-historyLength);

/**
 * A window that slides over the user's training items: users with at most 11 give one sample, their last item. With more
 * than one target at least so many of the last items are targets, of those that have something before them.
 */
export function trainingSamples(
  { id, train }: User,
  { targets = 1 }: { readonly targets?: number } = {},
): Sample[] {
  const samples: Sample[] = [];
  const first = Math.max(1, Math.min(historyLength, train.length - targets));
  for (let i = first; i < train.length; i++) {
    const seen = train.slice(0, i);
    if (seen.length > 0) samples.push({ user: id, history: recent(seen), targets: [train[i]!], seen });
  }
  return samples;
}

/** One a validation item, after the training items and the earlier validation items. */
export function validationSamples({ id, train, validation }: User): Sample[] {
  return validation.flatMap((item, i) => {
    const seen = [...train, ...validation.slice(0, i)];
    return train.length === 0 ? [] : [{ user: id, history: recent(seen), targets: [item], seen }];
  });
}

/** One a user: all test items after everything else; none for a user without earlier items. */
export function testSamples({ id, train, validation, test }: User): Sample[] {
  const seen = [...train, ...validation];
  return seen.length === 0 || test.length === 0
    ? []
    : [{ user: id, history: recent(seen), targets: test, seen }];
}

/** At most `count` samples, uniformly drawn, in their order; all if there are no more. */
export function subset<T>(
  samples: readonly T[],
  count: number | undefined,
  seed: number,
  purpose: string,
): T[] {
  if (count === undefined || samples.length <= count) return [...samples];
  const chosen = random(seed, 'subset', purpose).shuffle(samples.map((_, i) => i));
  return chosen
    .slice(0, count)
    .sort((a, b) => a - b)
    .map((i) => samples[i]!);
}
