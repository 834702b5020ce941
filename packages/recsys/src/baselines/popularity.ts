// Popularity as a baseline: the same order for everybody.
import { float32 } from '@fellrec/graph';
import type { User } from '../dataset.ts';
import { popularity } from '../floors.ts';
import { assertLearnable, type Baseline } from './baseline.ts';

/** score(j) = users' training interactions with j. @throws without users or items, and on items that the catalogue does not have. */
export function fitPopularity(users: readonly User[], itemCount: number): Baseline {
  assertLearnable('popularity', users, itemCount);
  const counts = Float32Array.from(popularity(users, itemCount));
  return {
    async score(queries) {
      const scores = new Float32Array(queries.length * itemCount);
      for (const query of queries.keys()) scores.set(counts, query * itemCount);
      return float32(scores, [queries.length, itemCount]);
    },
    dispose: async () => {},
  };
}
