// Three ways to rank a catalogue with one language model: by grounding what it says, by beams along the titles, by the
// likelihood of a shortlist.
import { random } from '@fellrec/graph';
import type { Adapter, Hypothesis, LanguageModel } from '@fellrec/models';
import { parseAnswer } from '../prompt.ts';
import { rank } from '../ranking.ts';
import type { ItemScorer, Query, RankingMode, Recommendation, Scored, ScoreOptions } from '../recommender.ts';
import { nearness, textVectors } from './grounding.ts';
import { promptTokens, type TextOptions } from './text.ts';
import type { Titles } from './titles.ts';

export interface ModesOptions {
  readonly model: LanguageModel;
  readonly text: TextOptions;
  readonly titles: Titles;
  /** Of what is generated; `titles` are made with the same. */
  readonly maxNewTokens: number;
  readonly beams: number;
  /** Users generated for at once. */
  readonly batch: number;
  /** Vectors of the catalogue's titles. */
  vectors(): Promise<readonly Float32Array[]>;
}

type Mode<Name extends RankingMode['mode']> = Extract<RankingMode, { mode: Name }>;

/** Shortlists whose titles are asked for one after the other, with what their prompts begin with computed once. */
const promptsAtOnce = 16;

type Score = (queries: readonly Query[], adapter: Adapter, options: ScoreOptions) => AsyncIterable<Scored>;

/** Ranks as the options say; what is said is in the queries' order. */
export function scoring({ model, text, titles, maxNewTokens, beams, batch, vectors }: ModesOptions): Score {
  const { catalogue, tokenizer, eosIds } = text;

  async function* grounded(
    queries: readonly Query[],
    adapter: Adapter,
    { from }: Pick<Mode<'grounded'>, 'from'>,
    { onProgress }: ScoreOptions,
  ): AsyncIterable<Scored> {
    const items = await vectors();
    const prompts = queries.map(({ history }) => promptTokens(history, maxNewTokens, text));
    const generated = await model.generate(
      prompts.map(({ value }) => value),
      { beams, maxNewTokens, eosIds, batch, ...(onProgress && { onProgress }) },
      adapter,
    );
    const said = generated.map((found) =>
      (from === 'best' ? found.slice(0, 1) : found).map(({ ids }) => parseAnswer(tokenizer.decode(ids))),
    );
    const places = await textVectors(said.flat(), model, tokenizer);
    let at = 0;
    for (const [i, own] of said.entries()) {
      const near = own.map(() => nearness(places[at++]!, items));
      const scores = near.reduce((best, one) => best.map((score, item) => Math.max(score, one[item]!)));
      yield { scores, answer: own[0]!, dropped: prompts[i]!.dropped };
    }
  }

  async function* constrained(
    queries: readonly Query[],
    adapter: Adapter,
    { beams: wide }: Mode<'constrained'>,
    { maskHistory = true, onProgress }: ScoreOptions,
  ): AsyncIterable<Scored> {
    const items = await vectors();
    const { tree, placesOf, itemsOf } = titles.tree();
    const prompts = queries.map(({ history }) => promptTokens(history, maxNewTokens, text));
    const found = await model.generate(
      prompts.map(({ value }) => value),
      {
        beams: wide,
        maxNewTokens,
        eosIds,
        batch,
        trees: queries.map(({ seen }) => (maskHistory ? tree.without(placesOf(seen)) : tree)),
        ...(onProgress && { onProgress }),
      },
      adapter,
    );
    for (const [i, hypotheses] of found.entries()) {
      const first = hypotheses.flatMap((one) =>
        one.sequences!.map((place) => recommendation(itemsOf[place]!, one)),
      );
      const { dropped } = prompts[i]!;
      const best = first[0]?.item;
      // Where the history has all of the tree, titles that are too long for it may be left: by their distance to its last.
      const place = best ?? queries[i]!.history.at(-1);
      yield {
        scores: place === undefined ? new Float64Array(items.length) : nearness(items[place]!, items),
        ...(best !== undefined && { first, answer: catalogue.items[best]!.title }),
        dropped,
      };
    }
  }

  async function* reranked(
    queries: readonly Query[],
    adapter: Adapter,
    { shortlist, size, perToken }: Mode<'rerank'>,
    o: ScoreOptions,
  ): AsyncIterable<Scored> {
    const { onProgress, ...quiet } = o;
    const answers = titles.tokens();
    const tooLong = titles.tooLong();
    const found = shortlist
      ? scoredBy(shortlist, queries)
      : grounded(queries, adapter, { from: 'best' }, quiet);
    let done = 0;
    for await (const part of inParts(found, promptsAtOnce)) {
      const asked = part.map((scored, at) => {
        const query = queries[done + at]!;
        return {
          ...scored,
          ...promptTokens(query.history, maxNewTokens, text),
          listed: shortlisted(scored.scores, query, done + at),
        };
      });
      const likelihoods = await model.likelihoods(
        asked.map(({ value }) => value),
        asked.map(({ listed }) => listed.map((item) => answers[item]!)),
        {},
        adapter,
      );
      done += part.length;
      onProgress?.(done, queries.length);
      for (const [at, { scores, answer, listed, dropped }] of asked.entries())
        yield {
          scores,
          first: listed.map((item, i): Recommendation => {
            const likelihood = likelihoods[at]![i]!;
            const { logProbability, tokens } = likelihood;
            return { item, score: perToken ? logProbability / tokens : logProbability, likelihood };
          }),
          ...(answer !== undefined && { answer }),
          dropped,
        };
    }

    /** The best items that can be generated, best first. */
    function shortlisted(scores: ArrayLike<number>, { seen }: Query, index: number): number[] {
      if (scores.length !== catalogue.items.length)
        throw new Error(
          `bigrec: the shortlist scores ${scores.length} items, the catalogue has ${catalogue.items.length}; are they of one data set?`,
        );
      const exclude = o.maskHistory === false ? tooLong : [...tooLong, ...seen];
      return rank(scores, { k: size, exclude, random: random(o.seed, 'shortlist', index) });
    }
  }

  return (queries, adapter, { ranking = { mode: 'grounded', from: 'best' }, ...o }) => {
    switch (ranking.mode) {
      case 'grounded':
        return grounded(queries, adapter, ranking, o);
      case 'constrained':
        return constrained(queries, adapter, ranking, o);
      case 'rerank':
        return reranked(queries, adapter, ranking, o);
    }
  };
}

async function* scoredBy(
  scorer: ItemScorer,
  queries: readonly Query[],
): AsyncIterable<Pick<Scored, 'scores' | 'answer'>> {
  for (const query of queries) yield { scores: (await scorer.score([query])).data };
}

async function* inParts<T>(all: AsyncIterable<T>, size: number): AsyncIterable<T[]> {
  let part: T[] = [];
  for await (const one of all) {
    part.push(one);
    if (part.length < size) continue;
    yield part;
    part = [];
  }
  if (part.length > 0) yield part;
}

/** Of a beam: its log-probability by token orders it, as the search does. */
function recommendation(item: number, { ids, score }: Hypothesis): Recommendation {
  return { item, score, likelihood: { logProbability: score * ids.length, tokens: ids.length } };
}
