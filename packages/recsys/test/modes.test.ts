// BIGRec's ways to rank, on the embedded model, against what the model says of every title one by one.
import { join } from 'node:path';
import { float32, nodeRuntime, random } from '@fellrec/graph';
import {
  initialAdapter,
  type LanguageModel,
  languageModel,
  loadTokenizer,
  openCheckpoint,
  type Tokenizer,
} from '@fellrec/models';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { fitPopularity } from '../src/baselines/popularity.ts';
import { bigrec } from '../src/bigrec/recommender.ts';
import { answerTokens, promptTokens } from '../src/bigrec/text.ts';
import { catalogueTitles, type Titles } from '../src/bigrec/titles.ts';
import { type Catalogue, catalogue } from '../src/catalogue.ts';
import { readDataset } from '../src/data/folder.ts';
import { importDataset } from '../src/data/import.ts';
import { parseAnswer, videoGames } from '../src/prompt.ts';
import type { Query, RankingMode, Recommender, RecommendOptions, Scored } from '../src/recommender.ts';
import { gamesSample, temporaryFolder, user } from './shared.ts';

const folder = temporaryFolder();
const lora = { rank: 2, alpha: 4, dropout: 0, targetModules: ['q_proj', 'v_proj'] as const };
const maxTokens = 400;

let model: LanguageModel;
let tokenizer: Tokenizer;
let games: Catalogue;
let eosIds: readonly number[];
beforeAll(async () => {
  const checkpoint = await openCheckpoint(join(import.meta.dirname, '../../cli/quickstart/stories260k'), {
    cacheDir: folder,
  });
  tokenizer = await loadTokenizer(checkpoint.directory);
  eosIds = checkpoint.config.eosIds;
  model = languageModel(checkpoint, nodeRuntime({ threads: 1 }));
  const data = join(folder, 'data');
  await importDataset({
    interactions: join(gamesSample, 'sequences.tsv'),
    items: join(gamesSample, 'items.tsv'),
    columns: { sequence: 'items' },
    output: data,
  });
  games = (await readDataset(data)).catalogue;
});
afterAll(() => model?.release());

const titled = (...titles: string[]) =>
  catalogue(titles.map((title, i) => ({ id: `${i}`, title, attributes: {} })));
let caches = 0;
const recommender = (items: Catalogue, maxNewTokens = 48, titles?: Titles): Recommender =>
  bigrec({
    ...(titles && { titles }),
    model,
    tokenizer,
    catalogue: items,
    domain: videoGames,
    lora,
    lossOn: 'answer',
    maxTokens,
    beams: 2,
    maxNewTokens,
    generationBatch: 4,
    cacheDir: join(folder, `cache-${caches++}`),
  });

/** An adapter that does something, the same for all. */
function adapter() {
  const { uniform } = random(1, 'adapter');
  const start = initialAdapter(model.checkpoint.config, lora, 1);
  return new Map(
    [...start].map(([name, { data, dims }]) => [
      name,
      float32(
        data.map(() => uniform() / 2 - 0.25),
        dims,
      ),
    ]),
  );
}

const ask = async (
  of: Recommender,
  ranking: RankingMode,
  query: Query,
  more: Partial<RecommendOptions> = {},
) => (await of.recommend([query], adapter(), { k: 10, seed: 1, ranking, ...more }))[0]!;

const query = (...seen: number[]): Query => ({ history: seen.slice(-10), seen });
const items = ({ items: found }: { readonly items: readonly { readonly item: number }[] }) =>
  found.map(({ item }) => item);

/** log p(title | history) of every item, computed alone. */
async function likelihoods(of: Catalogue, { history }: Query) {
  const text = {
    catalogue: of,
    tokenizer,
    domain: videoGames,
    maxTokens,
    eosIds: model.checkpoint.config.eosIds,
  };
  const prompt = promptTokens(history, 48, text).value;
  const found = [];
  for (const { title } of of.items) {
    const [[one]] = (await model.likelihoods(
      [prompt],
      [[answerTokens(title, text)]],
      {},
      {
        config: lora,
        tensors: adapter(),
      },
    )) as [[{ logProbability: number; tokens: number }]];
    found.push(one);
  }
  return found;
}

describe('beams along titles', () => {
  test('wide enough, they are all titles in the order of their likelihood by token', async () => {
    const few = catalogue(games.items.filter(({ title }) => title.length < 40).slice(0, 40));
    const asked = query(1, 2, 3);
    const found = await ask(recommender(few), { mode: 'constrained', beams: 64 }, asked, { k: 40 });
    const all = await likelihoods(few, asked);
    const byToken = (item: number) => all[item]!.logProbability / all[item]!.tokens;
    const expected = [...all.keys()]
      .filter((item) => !asked.seen.includes(item))
      .sort((a, b) => byToken(b) - byToken(a));
    expect(items(found)).toEqual(expected);
    for (const { item, score, likelihood } of found.items) {
      expect(score).toBeCloseTo(byToken(item), 4);
      expect(likelihood!.logProbability).toBeCloseTo(all[item]!.logProbability, 3);
    }
    expect(found.answer).toBe(few.items[expected[0]!]!.title);
  });

  test('are followed by the others, near the best one first, each item once', async () => {
    const asked = query(0, 5, 9);
    const found = await ask(recommender(games), { mode: 'constrained', beams: 4 }, asked, {
      k: games.items.length,
    });
    expect(new Set(items(found)).size).toBe(games.items.length - 3);
    expect(items(found)).not.toContain(5);
    expect(found.items.slice(0, 4).every(({ likelihood }) => likelihood)).toBe(true);
    expect(found.items.slice(4).some(({ likelihood }) => likelihood)).toBe(false);
    const scores = found.items.map(({ score }) => score);
    expect(scores).toEqual(scores.toSorted((a, b) => b - a));
  });

  test('know equal titles, and such as begin others', async () => {
    const odd = titled('Halo', 'Halo 2', 'Halo', '', 'Halo 2: Map Pack');
    const found = await ask(recommender(odd), { mode: 'constrained', beams: 8 }, query(3), { k: 5 });
    expect(items(found).toSorted()).toEqual([0, 1, 2, 4]);
    const [one, other] = [0, 2].map((item) => found.items.find((each) => each.item === item)!);
    expect(one!.score).toBe(other!.score);
    // One of two equal titles was seen.
    expect(items(await ask(recommender(odd), { mode: 'constrained', beams: 8 }, query(0)))).toContain(2);
  });

  test('of one item, and of none that is left', async () => {
    const one = recommender(titled('Halo'));
    expect(items(await ask(one, { mode: 'constrained', beams: 4 }, query()))).toEqual([0]);
    const both = { mode: 'constrained', beams: 4 } as const;
    expect(items(await ask(one, both, query(0)))).toEqual([]);
    expect(items(await ask(one, both, query(0), { maskHistory: false }))).toEqual([0]);
    expect(items(await ask(one, { mode: 'rerank', size: 3, perToken: false }, query(0)))).toEqual([]);
  });

  test('leave out titles that are too long to be generated, which follow', async () => {
    const long = titled(
      'Halo',
      'The Legend of Zelda: Twilight Princess (Nintendo Selects) and so on',
      'Doom',
    );
    const found = await ask(recommender(long, 12), { mode: 'constrained', beams: 4 }, query());
    expect(items(found).slice(0, 2).toSorted()).toEqual([0, 2]);
    expect(items(found)[2]).toBe(1);
    // Once the history has all of the tree, these are left: the nearest to its last item is first.
    const [one, other] = ['Zelda', 'Mario'].map((name) => `${name} with everything that belongs to it`);
    const four = recommender(titled('Halo', one!, other!, one!), 12);
    for (const [last, nearest] of [
      [1, 3],
      [3, 1],
    ] as const) {
      const rest = await ask(four, { mode: 'constrained', beams: 4 }, query(0, last));
      expect(items(rest)).toEqual([nearest, 2]);
    }
    await expect(ask(recommender(long, 2), { mode: 'constrained', beams: 4 }, query())).rejects.toThrow(
      'no title has at most 2 tokens',
    );
  });
});

test('titles are read once, whoever ranks with them', async () => {
  const few = titled('Halo', 'Halo 2', 'Doom');
  let read = 0;
  const counted: Tokenizer = {
    ...tokenizer,
    encodeContinuation(text) {
      read++;
      return tokenizer.encodeContinuation(text);
    },
  };
  const text = { catalogue: few, tokenizer: counted, eosIds: model.checkpoint.config.eosIds };
  const titles = catalogueTitles(text, 48);
  for (const mode of [
    { mode: 'constrained', beams: 2 },
    { mode: 'rerank', size: 2, perToken: false },
  ] as const)
    for (let client = 0; client < 2; client++) await ask(recommender(few, 48, titles), mode, query(0));
  expect(read).toBe(3);
});

describe('a shortlist by likelihood', () => {
  test('is in the order of the sums, or of the means, and is followed by its own order', async () => {
    const popularity = fitPopularity(
      [user('u', { train: games.items.map((_, i) => i).flatMap((i) => new Array(i % 7).fill(i)) })],
      games.items.length,
    );
    const asked = query(3, 4);
    const all = await likelihoods(games, asked);
    for (const perToken of [false, true]) {
      const mode = { mode: 'rerank', shortlist: popularity, size: 20, perToken } as const;
      const found = await ask(recommender(games), mode, asked, { k: 100 });
      const [listed, rest] = [found.items.slice(0, 20), found.items.slice(20)];
      for (const { item, likelihood, score } of listed) {
        expect(item % 7).toBe(6);
        expect(likelihood!.logProbability).toBeCloseTo(all[item]!.logProbability, 4);
        expect(score).toBeCloseTo(
          perToken ? likelihood!.logProbability / likelihood!.tokens : likelihood!.logProbability,
          12,
        );
      }
      const scores = listed.map(({ score }) => score);
      expect(scores).toEqual(scores.toSorted((a, b) => b - a));
      const counts = rest.map(({ item }) => item % 7);
      expect(counts).toEqual(counts.toSorted((a, b) => b - a));
    }
  });

  test('may be what grounding finds', async () => {
    const asked = query(3, 4);
    const grounded = await ask(recommender(games), { mode: 'grounded', from: 'best' }, asked, { k: 5 });
    const found = await ask(recommender(games), { mode: 'rerank', size: 5, perToken: false }, asked, {
      k: 5,
    });
    expect(items(found).toSorted()).toEqual(items(grounded).toSorted());
    expect(found.answer).toBe(grounded.answer);
  });

  test('is refused where no title can be said', async () => {
    const asked = ask(recommender(games, 2), { mode: 'rerank', size: 5, perToken: false }, query(0));
    await expect(asked).rejects.toThrow('no title has at most 2 tokens, so none can be said');
  });

  test('of another catalogue is refused', async () => {
    const other = fitPopularity([user('u', { train: [0] })], 3);
    const mode = { mode: 'rerank', shortlist: other, size: 2, perToken: false } as const;
    await expect(ask(recommender(games), mode, query())).rejects.toThrow('the shortlist scores 3 items');
  });
});

describe('grounding', () => {
  test('of one item is that item', async () => {
    expect(
      items(await ask(recommender(titled('Halo')), { mode: 'grounded', from: 'best' }, query())),
    ).toEqual([0]);
  });

  test('from all beams has the nearest of each', async () => {
    const of = recommender(games);
    const scored = async (from: 'best' | 'all') => {
      const found: Scored[] = [];
      for await (const one of of.score([query(1), query(2)], adapter(), {
        seed: 1,
        ranking: { mode: 'grounded', from },
      }))
        found.push(one);
      return found;
    };
    const [best, all] = [await scored('best'), await scored('all')];
    for (const [i, { scores }] of all.entries()) {
      expect(Array.from(scores).every((score, item) => score >= best[i]!.scores[item]!)).toBe(true);
      expect(scores).not.toEqual(best[i]!.scores);
    }
  });

  test('is by the distances of vectors that are computed one by one', async () => {
    const queries = [query(1), query(2, 7)];
    const vectorOf = async (title: string) => (await model.vectors([tokenizer.encode(title)])).data;
    const distance = (a: ArrayLike<number>, b: ArrayLike<number>) =>
      Math.hypot(...Array.from(a, (x, d) => x - b[d]!));
    const text = { catalogue: games, tokenizer, domain: videoGames, maxTokens, eosIds };
    const generated = await model.generate(
      queries.map(({ history }) => promptTokens(history, 48, text).value),
      { beams: 2, maxNewTokens: 48, eosIds },
      { config: lora, tensors: adapter() },
    );
    const places = [];
    for (const { title } of games.items) places.push(await vectorOf(title));
    const ranking = { mode: 'grounded', from: 'all' } as const;
    let at = 0;
    for await (const { scores } of recommender(games).score(queries, adapter(), { seed: 1, ranking })) {
      const said = [];
      for (const { ids } of generated[at++]!) said.push(await vectorOf(parseAnswer(tokenizer.decode(ids))));
      for (const [item, place] of places.entries())
        expect(scores[item]).toBeCloseTo(-Math.min(...said.map((one) => distance(one, place))), 4);
    }
    expect(at).toBe(2);
  });

  test('is pulled towards what is injected', async () => {
    const popular = fitPopularity([user('u', { train: [7, 7, 7] })], games.items.length);
    const place = async (gamma: number) =>
      items(
        await ask(recommender(games), { mode: 'grounded', from: 'best' }, query(1), {
          k: games.items.length,
          injection: { of: popular, gamma },
        }),
      ).indexOf(7);
    expect(await place(3)).toBeLessThan(await place(0));
    expect(await place(99)).toBeLessThanOrEqual(1);
  });
});
