// Recommendations from a stored run, or from what a client of a run elsewhere kept: its best adapter, a history in, ranked
// titles out.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { openRun } from '@fellrec/federation';
import { type Catalogue, historyLength, type Recommendation } from '@fellrec/recsys';
import { z } from 'zod';
import { type Config, withRanking } from './config.ts';
import {
  type ClientData,
  type Experiment,
  initialParameters,
  rankerOf,
  startOf,
  storeFormat,
} from './experiment.ts';
import { itemTables } from './item-tables.ts';
import { isJoined, joinedParameters, readJoined } from './joined.ts';
import { type Progress, silent } from './progress.ts';
import { type Asked, withRankingOptions } from './ranking.ts';
import { readJson } from './read-json.ts';
import { assertTrained, openStored, readRun, type StoredRun } from './stored-run.ts';
import { recommendingWith } from './strategy.ts';

export interface RecommendedTitle extends Omit<Recommendation, 'item'> {
  readonly id: string;
  readonly title: string;
}

export interface RecommendRequest {
  /** Of those that the run has; may be left out where that is one. */
  readonly client?: string | undefined;
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

/**
 * From a run's folder, or from what `join` wrote. @throws if the run has no such client, or the catalogue no such item.
 */
export async function recommend(
  directory: string,
  { client: named, history, k, set = [] }: RecommendRequest,
  progress: Progress = silent,
): Promise<RecommendedTitles> {
  const joined = isJoined(directory);
  const stored = await (joined ? readJoined(directory) : readRun(directory));
  if (!joined) await assertTrained(directory, progress);
  const client = clientOf(stored, named);
  const run = {
    ...stored,
    config: await withChosenGamma(withRanking(set)(stored.config), stored.config, directory, client),
  };
  const { config } = run;
  const experiment = await openStored(directory, run, progress.report);
  try {
    const own = experiment.clients.find(({ name }) => name === client)!;
    const { catalogue } = own.group.dataset;
    const items = history.map((text) => findItem(catalogue, text));
    const asked = await (joined
      ? joinedParameters(directory, experiment.format)
      : bestOf(own, experiment, directory));
    const query = { history: items.slice(-historyLength), seen: items };
    const ranker = rankerOf(own, progress.report);
    const [found] = await withRankingOptions(config, ranker, asked, (options) =>
      own.recommender.recommend([query], asked.parameters, { ...options, k }),
    );
    return {
      ...(found!.answer !== undefined && { answer: found!.answer }),
      ...(found!.items.length === 0 && {
        reason: `nothing is left to recommend: the history has all ${catalogue.items.length} items of the catalogue`,
      }),
      items: found!.items.map(({ item, ...scored }) => ({ ...pick(catalogue, item), ...scored })),
    };
  } finally {
    await experiment.dispose();
  }
}

/** @throws if there is no such client, or several and none is named */
function clientOf({ partition: { clients } }: StoredRun, named: string | undefined): string {
  const names = clients.map(({ name }) => name);
  if (named === undefined && names.length === 1) return names[0]!;
  if (named !== undefined && names.includes(named)) return named;
  const problem = named === undefined ? 'several clients; name one' : `no client "${named}"`;
  throw new Error(`recommend: the run has ${problem}; clients: ${names.join(', ')}`);
}

/** A client's best parameters in a run, or those that it began with. */
async function bestOf(own: ClientData, experiment: Experiment, directory: string): Promise<Asked> {
  const { config } = experiment;
  const initial = await initialParameters(experiment);
  const store = await openRun(directory, storeFormat(experiment));
  try {
    const best = await store.best(own.name);
    if (!best) return { parameters: startOf(own, initial) };
    return {
      parameters: recommendingWith(config, best.parameters),
      items: await itemTables(config, store, initial).of(own.name, best.round + 1),
    };
  } finally {
    await store.close();
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
