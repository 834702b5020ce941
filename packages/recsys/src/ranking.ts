// Full ranking: every item of the catalogue that the user has not seen, by score.
import { type Random, random } from '@fellrec/graph';
import type { Recommendation, RecommendOptions } from './recommender.ts';

export interface RankingOptions {
  readonly k: number;
  /** Items that are not ranked. */
  readonly exclude: readonly number[];
  /** Decides between items of equal score, so that neither targets nor low ids are favoured. */
  readonly random: Random;
}

interface Entry {
  readonly item: number;
  readonly score: number;
  /** Uniform: the larger one of two equal scores comes first. */
  readonly tie: number;
}

/**
 * The k best items by `scores` (one an item, higher is better), best first; all of them if there are fewer than k.
 * @throws on a score that is no number.
 */
export function rank(scores: ArrayLike<number>, { k, exclude, random }: RankingOptions): number[] {
  if (k <= 0) return [];
  const excluded = new Set(exclude);
  // Kept in order: k is small beside the catalogue, and most items fall below the worst kept.
  const best: Entry[] = [];
  let worst: Entry | undefined;
  for (let item = 0; item < scores.length; item++) {
    const score = scores[item]!;
    if (Number.isNaN(score)) throw new Error(`ranking: the score of item ${item} is not a number`);
    if ((worst && score < worst.score) || excluded.has(item)) continue;
    const entry = { item, score, tie: random.uniform() };
    if (worst && !above(entry, worst)) continue;
    let place = best.length;
    while (place > 0 && above(entry, best[place - 1]!)) place--;
    best.splice(place, 0, entry);
    if (best.length > k) best.pop();
    if (best.length === k) worst = best[k - 1];
  }
  return best.map(({ item }) => item);
}

/** The best items of query `index` by their scores; `seen` ones are left out unless the history is to be ranked. */
export function ranked(
  scores: ArrayLike<number>,
  seen: readonly number[],
  index: number,
  { k, seed, maskHistory = true }: RecommendOptions,
): Recommendation[] {
  const exclude = maskHistory ? seen : [];
  const items = rank(scores, { k, exclude, random: random(seed, 'ties', index) });
  return items.map((item) => ({ item, score: scores[item]! }));
}

function above(a: Entry, b: Entry): boolean {
  return a.score > b.score || (a.score === b.score && a.tie > b.tie);
}
