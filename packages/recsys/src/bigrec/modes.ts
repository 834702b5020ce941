// Three ways to rank a catalogue with one language model: by grounding what it says, by beams along the titles, by the
// likelihood of a shortlist.
import { random } from '@fellrec/graph';
import {
  type Adapter,
  type Hypothesis,
  type LanguageModel,
  type TokenTree,
  tokenTree,
} from '@fellrec/models';
import { parseAnswer } from '../prompt.ts';
import { rank } from '../ranking.ts';
import type { ItemScorer, Query, RankingMode, Recommendation, Scored, ScoreOptions } from '../recommender.ts';
import { nearness, textVectors } from './grounding.ts';
import { answerTokens, promptTokens, type TextOptions } from './text.ts';

export interface ModesOptions {
  readonly model: LanguageModel;
  readonly text: TextOptions;
  /** Of what is generated freely; a tree has titles of so many tokens only. */
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
export function scoring({ model, text, maxNewTokens, beams, batch, vectors }: ModesOptions): Score {
  const { catalogue, tokenizer, eosIds } = text;
  let tokens: readonly (readonly number[])[] | undefined;
  const answers = () => {
    tokens ??= catalogue.items.map(({ title }) => answerTokens(title, text));
    return tokens;
  };
  let titles: TitleTree | undefined;
  const titleTree = () => {
    titles ??= treeOf(answers(), maxNewTokens);
    return titles;
  };

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
    const { tree, placesOf, itemsOf } = titleTree();
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
      // Nothing is left of the tree where the history has it all.
      if (best === undefined) yield { scores: new Float64Array(items.length), dropped };
      else
        yield {
          scores: nearness(items[best]!, items),
          first,
          answer: catalogue.items[best]!.title,
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
    const tooLong = [...answers().keys()].filter((item) => answers()[item]!.length > maxNewTokens);
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
        asked.map(({ listed }) => listed.map((item) => answers()[item]!)),
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

interface TitleTree {
  readonly tree: TokenTree;
  /** The tree's sequences of items, of those that it has. */
  placesOf(items: readonly number[]): number[];
  readonly itemsOf: readonly number[];
}

/** The titles that can be generated whole. @throws if there is none. */
function treeOf(answers: readonly (readonly number[])[], maxNewTokens: number): TitleTree {
  const itemsOf = [...answers.keys()].filter((item) => answers[item]!.length <= maxNewTokens);
  if (itemsOf.length === 0)
    throw new Error(
      `bigrec: no title has at most ${maxNewTokens} tokens, so beams cannot end at one; raise generation.maxNewTokens`,
    );
  const places = new Map(itemsOf.map((item, place) => [item, place]));
  return {
    tree: tokenTree(itemsOf.map((item) => answers[item]!)),
    placesOf: (items) => [...new Set(items)].flatMap((item) => places.get(item) ?? []),
    itemsOf,
  };
}

/** Of a beam: its log-probability by token orders it, as the search does. */
function recommendation(item: number, { ids, score }: Hypothesis): Recommendation {
  return { item, score, likelihood: { logProbability: score * ids.length, tokens: ids.length } };
}
