// Methods without rounds: the start as it is, floors, and recommenders that learn from everybody's histories at once.
import { join } from 'node:path';
import { placeWhole, writeWhole } from '@fellrec/federation';
import {
  type Baseline,
  evaluateBaseline,
  fitCooccurrence,
  fitSasrec,
  floorMetrics,
  type Metrics,
  type Sample,
} from '@fellrec/recsys';
import type { Config } from '../config.ts';
import { type Experiment, type Group, runtimeOf } from '../experiment.ts';
import { userKey } from '../groups.ts';
import type { Progress } from '../progress.ts';
import { readIfThere } from '../read-if-there.ts';
import type { Ranking } from './methods.ts';
import { writeUserMetrics } from './user-metrics.ts';

const file = 'ranking.json';

/** What is stored of a ranking, besides its metrics of each user. */
export interface StoredRanking {
  readonly ranking: Ranking;
  readonly settings: unknown;
  readonly seed: number;
  readonly data: { readonly name: string; readonly hash: string };
  readonly model?: { readonly path: string; readonly hash: string };
  readonly seconds: number;
}

/** What a ranking depends on. */
export function rankingSettings(ranking: Ranking, config: Config): unknown {
  const { seed, data, groups, evaluation, recommender, model, generation, recformer, domain } = config;
  const { trainSamples: _, ...tested } = data;
  const common = { seed, data: tested, groups, evaluation };
  return ranking === 'zero-shot' ? { ...common, recommender, model, generation, recformer, domain } : common;
}

/** Undefined if there is none. */
export async function readRanking(directory: string): Promise<StoredRanking | undefined> {
  const path = join(directory, file);
  const text = await readIfThere(path);
  if (text === undefined) return undefined;
  try {
    return JSON.parse(text) as StoredRanking;
  } catch (cause) {
    throw new Error(`compare: ${path} is damaged: ${(cause as Error).message}; delete its folder`, { cause });
  }
}

/** Ranks for all test users and writes what came of it, whole or not at all. */
export async function storeRanking(
  ranking: Ranking,
  directory: string,
  experiment: Experiment,
  progress: Progress,
): Promise<void> {
  const { config, data, groups, clients, modelHash } = experiment;
  const started = performance.now();
  const users = new Map<string, Metrics>();
  for (const group of groups) {
    const test = clients.filter((client) => client.group === group).flatMap((client) => client.test);
    const metrics = await metricsOf(ranking, test, group, config, progress);
    for (const [i, { user }] of test.entries()) users.set(userKey(group.name, user), metrics[i]!);
  }
  const stored: StoredRanking = {
    ranking,
    settings: rankingSettings(ranking, config),
    seed: config.seed,
    data,
    ...(ranking === 'zero-shot' && { model: { path: config.model.path, hash: modelHash } }),
    seconds: (performance.now() - started) / 1000,
  };
  await placeWhole(directory, async (aside) => {
    await writeUserMetrics(aside, users);
    await writeWhole(join(aside, file), `${JSON.stringify(stored, undefined, 2)}\n`);
  });
}

async function metricsOf(
  ranking: Ranking,
  test: readonly Sample[],
  { dataset, recommender }: Group,
  config: Config,
  progress: Progress,
): Promise<readonly Metrics[]> {
  const { seed, evaluation } = config;
  const options = {
    seed,
    maskHistory: evaluation.maskHistory,
    onProgress: (done: number, total: number) => progress.report(ranking, done, total),
  };
  const itemCount = dataset.catalogue.items.length;
  switch (ranking) {
    case 'zero-shot':
      return (await recommender.evaluate(test, await recommender.initialParameters(seed), options)).metrics;
    case 'random':
    case 'popularity':
      return floorMetrics(ranking, test, dataset.users, itemCount, seed);
    case 'cooccurrence':
      return evaluated(fitCooccurrence(dataset.users, itemCount));
    case 'sasrec':
      return evaluated(
        await fitSasrec(dataset.users, itemCount, runtimeOf(config), { seed }, ({ epoch, loss, ndcg }) =>
          progress.line(
            `  epoch ${epoch}: loss ${loss.toFixed(3)}, NDCG@10 of validation items ${ndcg.toFixed(4)}`,
          ),
        ),
      );
  }

  async function evaluated(baseline: Baseline): Promise<readonly Metrics[]> {
    try {
      return (await evaluateBaseline(baseline, test, options)).metrics;
    } finally {
      await baseline.dispose();
    }
  }
}
