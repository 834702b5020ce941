// Recommendations from a stored run: a client's best adapter, a history in, ranked titles out.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { openRun } from '@fellrec/federation';
import { type Catalogue, historyLength, type Recommendation } from '@fellrec/recsys';
import { z } from 'zod';
import { type Config, withRanking } from './config.ts';
import { initialParameters, rankerOf, startOf, storeFormat } from './experiment.ts';
import { itemTables } from './item-tables.ts';
import { type Progress, silent } from './progress.ts';
import { withRankingOptions } from './ranking.ts';
import { readJson } from './read-json.ts';
import { assertTrained, openStored, readRun } from './stored-run.ts';
import { recommendingWith } from './strategy.ts';

export interface RecommendedTitle extends Omit<Recommendation, 'item'> {
  readonly id: string;
  readonly title: string;
}

export interface RecommendRequest {
  readonly client: string;
  /** Item ids or exact titles, oldest first. */
  readonly history: readonly string[];
  readonly k: number;
  /** Settings of how to rank, such as `ranking.mode=constrained`. */
  readonly set?: readonly string[];
}

export interface RecommendedTitles {
  readonly items: readonly RecommendedTitle[];
  /** Why there are none. */
  readonly reason?: string;
  /** What the model said, where it generates. */
  readonly answer?: string;
}

/** @throws if the run has no such client, or the catalogue no such item. */
export async function recommend(
  directory: string,
  { client, history, k, set = [] }: RecommendRequest,
  progress: Progress = silent,
): Promise<RecommendedTitles> {
  const stored = await readRun(directory);
  await assertTrained(directory, progress);
  const run = {
    ...stored,
    config: await withChosenGamma(withRanking(set)(stored.config), stored.config, directory, client),
  };
  const { config, partition } = run;
  if (!partition.clients.some(({ name }) => name === client))
    throw new Error(
      `recommend: the run has no client "${client}"; clients: ${partition.clients.map(({ name }) => name).join(', ')}`,
    );
  const experiment = await openStored(directory, run, progress.report);
  const store = await openRun(directory, storeFormat(experiment));
  try {
    const best = await store.best(client);
    const initial = await initialParameters(experiment);
    const own = experiment.clients.find(({ name }) => name === client)!;
    const { catalogue } = own.group.dataset;
    const items = history.map((text) => findItem(catalogue, text));
    const parameters = best ? recommendingWith(config, best.parameters) : startOf(own, initial);
    const table = best && (await itemTables(config, store, initial).of(client, best.round + 1));
    const query = { history: items.slice(-historyLength), seen: items };
    const ranker = rankerOf(own, progress.report);
    const [found] = await withRankingOptions(config, ranker, { parameters, items: table }, (options) =>
      own.recommender.recommend([query], parameters, { ...options, k }),
    );
    return {
      ...(found!.answer !== undefined && { answer: found!.answer }),
      ...(found!.items.length === 0 && {
        reason: `nothing is left to recommend: the history has all ${catalogue.items.length} items of the catalogue`,
      }),
      items: found!.items.map(({ item, ...scored }) => ({ ...pick(catalogue, item), ...scored })),
    };
  } finally {
    await store.close();
    await experiment.dispose();
  }
}

/**
 * With the gamma that a finished run chose for a client, where it injects something and ranks as it did then: to choose
 * it again is to ask for all validation samples.
 */
async function withChosenGamma(
  config: Config,
  before: Config,
  directory: string,
  client: string,
): Promise<Config> {
  const { ranking, generation } = config;
  const isSame =
    JSON.stringify([ranking, generation]) === JSON.stringify([before.ranking, before.generation]);
  if (ranking.inject === undefined || ranking.gamma !== 'validation' || !isSame) return config;
  const file = join(directory, 'result.json');
  if (!existsSync(file)) return config;
  const { clients } = await readJson(file, chosenGammas);
  const gamma = clients.find((one) => one.client === client)?.gamma;
  return gamma === undefined ? config : { ...config, ranking: { ...ranking, gamma } };
}

const chosenGammas = z.object({
  clients: z.array(z.object({ client: z.string(), gamma: z.number().optional() })),
});

/** @throws if there is no such item, or if several have the title */
function findItem({ items }: Catalogue, text: string): number {
  const byId = items.findIndex(({ id }) => id === text);
  if (byId >= 0) return byId;
  const wanted = text.trim();
  const titled = [...items.keys()].filter((item) => items[item]!.title.trim() === wanted);
  if (titled.length === 1) return titled[0]!;
  if (titled.length > 1)
    throw new Error(
      `recommend: ${titled.length} items have the title "${text}"; name one by its id: ${titled.map((item) => items[item]!.id).join(', ')}`,
    );
  const near = items.filter(({ title }) => title.toLowerCase().includes(wanted.toLowerCase())).slice(0, 3);
  throw new Error(
    `recommend: none of the client's ${items.length} items has the id or title "${text}"${near.map(({ id, title }) => `\n  is it ${id}, "${title}"?`).join('')}`,
  );
}

function pick(catalogue: Catalogue, item: number): { id: string; title: string } {
  const { id, title } = catalogue.items[item]!;
  return { id, title };
}
