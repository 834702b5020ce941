// From a recommender's scores to lists of items, written once for all of them.
import { random } from '@fellrec/graph';
import { evaluated, evaluatedItems } from './evaluation.ts';
import { injected } from './injection.ts';
import { rank, ranked } from './ranking.ts';
import type {
  Evaluated,
  Injection,
  Query,
  Recommendation,
  Recommended,
  Recommender,
  RecommendOptions,
  Scored,
  ScoreOptions,
} from './recommender.ts';
import type { Sample } from './samples.ts';

/** What a recommender does with its scores. */
export function listing(score: Recommender['score']): Pick<Recommender, 'score' | 'recommend' | 'evaluate'> {
  return {
    score,
    recommend: async (queries, parameters, o) =>
      (await lists(score(queries, parameters, o), queries, [o.injection], o))[0]!,
    evaluate: async (samples, parameters, o) =>
      (await evaluatedEach(score(samples, parameters, o), samples, [o.injection], o))[0]!,
  };
}

/** What each of the injections, or none of them, makes of the same scores of the samples. */
export async function evaluatedEach(
  found: AsyncIterable<Scored>,
  samples: readonly Sample[],
  injections: readonly (Injection | undefined)[],
  o: Pick<ScoreOptions, 'seed' | 'maskHistory'>,
): Promise<Evaluated[]> {
  const ranked = await lists(found, samples, injections, { ...o, k: evaluatedItems });
  return ranked.map((own) => evaluated(own, samples));
}

async function lists(
  found: AsyncIterable<Scored>,
  queries: readonly Query[],
  injections: readonly (Injection | undefined)[],
  o: Pick<RecommendOptions, 'k' | 'seed' | 'maskHistory'>,
): Promise<Recommended[][]> {
  const ranked = injections.map((): Recommended[] => []);
  let index = 0;
  for await (const scored of found) {
    const query = queries[index]!;
    const { answer, dropped } = scored;
    for (const [i, injection] of injections.entries()) {
      const combined = injection ? await injected(scored, query, injection) : scored;
      const items = listOf(combined, query, index, o);
      ranked[i]!.push({ items, ...(answer !== undefined && { answer }), dropped });
    }
    index++;
  }
  return ranked;
}

/** The best items of query `index`: those that come first, then the others by their scores. */
export function listOf(
  { scores, first = [] }: Scored,
  { seen }: Pick<Query, 'seen'>,
  index: number,
  o: Pick<RecommendOptions, 'k' | 'seed' | 'maskHistory'>,
): Recommendation[] {
  if (first.length === 0) return ranked(scores, seen, index, o);
  const order = rank(
    first.map(({ score }) => score),
    { k: o.k, exclude: [], random: random(o.seed, 'ties', index, 'first') },
  );
  const listed = order.map((place) => first[place]!);
  const taken = first.map(({ item }) => item);
  const exclude = o.maskHistory === false ? taken : [...taken, ...seen];
  const rest = rank(scores, { k: o.k - listed.length, exclude, random: random(o.seed, 'ties', index) });
  // Below the last one that is listed, as far apart as their own scores.
  const [lowest, best] = [listed.at(-1)!.score, scores[rest[0] ?? 0]!];
  return [...listed, ...rest.map((item) => ({ item, score: lowest - (best - scores[item]!) }))];
}
