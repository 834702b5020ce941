// From a recommender's scores to lists of items, written once for all of them.
import { random } from '@fellrec/graph';
import { evaluated, evaluatedItems } from './evaluation.ts';
import { injected } from './injection.ts';
import { rank, ranked } from './ranking.ts';
import type {
  Query,
  Recommendation,
  Recommended,
  Recommender,
  RecommendOptions,
  Scored,
} from './recommender.ts';

/** What a recommender does with its scores. */
export function listing(score: Recommender['score']): Pick<Recommender, 'score' | 'recommend' | 'evaluate'> {
  const recommend: Recommender['recommend'] = async (queries, parameters, o) => {
    const found: Recommended[] = [];
    for await (const scored of score(queries, parameters, o)) {
      const index = found.length;
      const query = queries[index]!;
      const combined = o.injection ? await injected(scored, query, o.injection) : scored;
      const { answer, dropped } = scored;
      found.push({
        items: listOf(combined, query, index, o),
        ...(answer !== undefined && { answer }),
        dropped,
      });
    }
    return found;
  };
  return {
    score,
    recommend,
    evaluate: async (samples, parameters, o) =>
      evaluated(await recommend(samples, parameters, { ...o, k: evaluatedItems }), samples),
  };
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
