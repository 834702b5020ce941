// Item-based nearest neighbours over co-occurrence (Sarwar et al., WWW 2001; Deshpande & Karypis, TOIS 2004).
import { float32 } from '@fellrec/graph';
import type { User } from '../dataset.ts';
import { assertItems, assertLearnable, type Baseline } from './baseline.ts';

/** The other items that have been with an item in a training part, and the share of its users who have each. */
interface Neighbours {
  readonly items: Int32Array;
  readonly shares: Float32Array;
}

/**
 * score(j | history) = sum over the items i of the history (at most its last 10) of c_ij / n_i: c_ij users have both i
 * and j in their training part, n_i have i, c_ii counts 0. It is Deshpande & Karypis's conditional probability with
 * alpha = 0, over all neighbours, however far.
 * @throws without users or items, and on items that the catalogue does not have.
 */
export function fitCooccurrence(users: readonly User[], itemCount: number): Baseline {
  assertLearnable('co-occurrence', users, itemCount);
  const neighbours = neighboursOf(users, itemCount);
  return {
    async score(queries) {
      const scores = new Float32Array(queries.length * itemCount);
      for (const [query, { history }] of queries.entries()) {
        assertItems(`co-occurrence: query ${query}`, history, itemCount);
        const row = scores.subarray(query * itemCount, (query + 1) * itemCount);
        for (const item of new Set(history)) addTo(row, neighbours[item]!);
      }
      return float32(scores, [queries.length, itemCount]);
    },
    dispose: async () => {},
  };
}

/** Of each item, by way of its users: as many steps as the squares of the training parts' lengths sum to. */
function neighboursOf(users: readonly User[], itemCount: number): Neighbours[] {
  const owned = users.map(({ train }) => Int32Array.from(new Set(train)));
  const owners: Int32Array[][] = Array.from({ length: itemCount }, () => []);
  for (const items of owned) for (const item of items) owners[item]!.push(items);
  const counts = new Int32Array(itemCount);
  return owners.map((sets, i) => {
    const met: number[] = [];
    for (const items of sets)
      for (const j of items) {
        if (counts[j] === 0 && j !== i) met.push(j);
        counts[j]!++;
      }
    counts[i] = 0;
    const items = Int32Array.from(met);
    const shares = Float32Array.from(items, (j) => counts[j]! / sets.length);
    for (const j of items) counts[j] = 0;
    return { items, shares };
  });
}

function addTo(row: Float32Array, { items, shares }: Neighbours): void {
  for (let k = 0; k < items.length; k++) row[items[k]!]! += shares[k]!;
}
