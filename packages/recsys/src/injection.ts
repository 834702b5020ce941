// Injection (BIGRec, arXiv 2308.08434): what another method thinks of items, such as their popularity, pulls them up in a
// ranking.
import type { Injection, Query, Scored } from './recommender.ts';

/**
 * s'_i = -(1 + c_i)^-gamma D_i of D_i = (max s - s_i) / (max s - min s) and c_i = (t_i - min t) / (max t - min t), s being
 * a user's scores and t the other method's, over the whole catalogue. Items that come first are combined among each
 * other, D being over them, and stay first. Where all scores are the same, D or c is 0.
 */
export async function injected(scored: Scored, query: Query, { of, gamma }: Injection): Promise<Scored> {
  return combined(scored, (await of.score([query])).data, gamma);
}

/** The same with the other method's scores of every item. */
export function combined(
  { scores, first, ...rest }: Scored,
  others: ArrayLike<number>,
  gamma: number,
): Scored {
  const c = place(others, 0);
  const pull = (item: number, distance: number) => -((1 + c(others[item]!)) ** -gamma) * distance;
  const among = place(scores, 1);
  const own = Float64Array.from(scores, (score, item) => pull(item, 1 - among(score)));
  if (!first) return { ...rest, scores: own };
  const amongFirst = place(
    first.map(({ score }) => score),
    1,
  );
  return {
    ...rest,
    scores: own,
    first: first.map((one) => ({ ...one, score: pull(one.item, 1 - amongFirst(one.score)) })),
  };
}

/** Where a value lies between the smallest, 0, and the largest, 1; `alike` where all are the same. */
function place(values: ArrayLike<number>, alike: number): (value: number) => number {
  let [least, most] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
  for (let i = 0; i < values.length; i++) {
    least = Math.min(least, values[i]!);
    most = Math.max(most, values[i]!);
  }
  return most > least ? (value) => (value - least) / (most - least) : () => alike;
}
