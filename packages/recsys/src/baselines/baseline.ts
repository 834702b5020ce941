// What recommenders are compared with besides the floors: methods that learn from all users' training parts in one
// place and give every item of the catalogue a score.
import type { User } from '../dataset.ts';
import { evaluated, evaluatedItems } from '../evaluation.ts';
import { ranked } from '../ranking.ts';
import type { Evaluated, EvaluateOptions, ItemScorer, Recommended } from '../recommender.ts';
import type { Sample } from '../samples.ts';

/** One that has learned. */
export interface Baseline extends ItemScorer {
  /** Frees native memory, if any was taken. */
  dispose(): Promise<void>;
}

/** Queries whose scores are in memory at once. */
const queriesAtOnce = 256;

/** Metrics of each sample under full ranking, with ties and history treated as the recommenders' are. */
export async function evaluateBaseline(
  baseline: Baseline,
  samples: readonly Sample[],
  { onProgress, ...options }: Pick<EvaluateOptions, 'seed' | 'maskHistory' | 'onProgress'>,
): Promise<Evaluated> {
  const found: Recommended[] = [];
  while (found.length < samples.length) {
    const part = samples.slice(found.length, found.length + queriesAtOnce);
    const { data, dims } = await baseline.score(part);
    const itemCount = dims[1]!;
    for (const [row, { seen }] of part.entries()) {
      const scores = data.subarray(row * itemCount, (row + 1) * itemCount);
      found.push({
        items: ranked(scores, seen, found.length, { ...options, k: evaluatedItems }),
        dropped: 0,
      });
    }
    onProgress?.(found.length, samples.length);
  }
  return evaluated(found, samples);
}

/** @throws without users or items, and on training or validation items that the catalogue does not have. */
export function assertLearnable(name: string, users: readonly User[], itemCount: number): void {
  if (users.length === 0) throw new Error(`${name}: 0 users to learn from; pass those of a data set`);
  if (!(itemCount >= 1))
    throw new Error(
      `${name}: the catalogue has ${itemCount} items; pass the size of the data set's catalogue`,
    );
  for (const { id, train, validation } of users) {
    assertItems(`${name}: user "${id}"`, train, itemCount);
    assertItems(`${name}: user "${id}"`, validation, itemCount);
  }
}

/** @throws on an item that the catalogue does not have. */
export function assertItems(whose: string, items: readonly number[], itemCount: number): void {
  const wrong = items.find((item) => !(Number.isInteger(item) && item >= 0 && item < itemCount));
  if (wrong !== undefined)
    throw new Error(
      `${whose} has item ${wrong}, the catalogue has items 0 to ${itemCount - 1}; are they of one data set?`,
    );
}
