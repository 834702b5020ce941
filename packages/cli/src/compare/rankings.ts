// What ranks without training: the start as it is, floors, recommenders that learn from everybody's histories at once, and
// a run's parameters when they rank otherwise than the run did.
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { openRun, placeWhole, type RoundRecord, writeWhole } from '@fellrec/federation';
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
import { type Experiment, type Group, rankerOf, runtimeOf, storeFormat } from '../experiment.ts';
import { userKey } from '../groups.ts';
import type { Progress } from '../progress.ts';
import { evaluateInjections, withRankingOptions } from '../ranking.ts';
import { readIfThere } from '../read-if-there.ts';
import { runDirectory } from '../stored-run.ts';
import { trainedClients } from '../train.ts';
import { type Ranked, type Ranking, unranked } from './methods.ts';
import { trainSamplesOf } from './samples.ts';
import { type UserMetrics, writeUserMetrics } from './user-metrics.ts';

const file = 'ranking.json';

/** What is stored of a ranking, besides its metrics of each user. */
export interface StoredRanking {
  readonly ranking: Ranking | Ranked;
  readonly settings: unknown;
  readonly seed: number;
  readonly data: { readonly name: string; readonly hash: string };
  readonly model?: { readonly path: string; readonly hash: string };
  readonly seconds: number;
  /** Of the run whose parameters rank, where it is one: what its rounds came to, and its training samples. */
  readonly run?: string;
  readonly trainSamples?: number;
  /** By client, where something is injected. */
  readonly gammas?: Readonly<Record<string, number>>;
}

/** What a ranking depends on. */
export function rankingSettings(ranking: Ranking, config: Config): unknown {
  const {
    seed,
    data,
    groups,
    evaluation,
    recommender,
    model,
    generation,
    recformer,
    domain,
    ranking: mode,
  } = config;
  const { trainSamples: _, ...tested } = data;
  const common = { seed, data: tested, groups, evaluation };
  return ranking === 'zero-shot'
    ? { ...common, recommender, model, generation, recformer, domain, mode }
    : common;
}

/** What ranking otherwise with a run's parameters depends on: all that the run does, and how it ranks. */
export function rankedSettings({
  name: _,
  runs: __,
  cache: ___,
  threads: ____,
  ...settings
}: Config): unknown {
  return settings;
}

/** What rounds came to, in a word: two runs that trained the same have the same. */
export function roundsHash(rounds: readonly Pick<RoundRecord, 'losses' | 'validation' | 'best'>[]): string {
  const trained = rounds.map(({ losses, validation, best }) => [losses, validation, best].map(sorted));
  return createHash('sha256').update(JSON.stringify(trained)).digest('hex').slice(0, 32);
}

const sorted = (byClient: object) => Object.entries(byClient).sort(([a], [b]) => (a < b ? -1 : 1));

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
  method: Ranking | Ranked,
  directory: string,
  experiment: Experiment,
  progress: Progress,
): Promise<void> {
  const { config, data, groups, clients, modelHash } = experiment;
  const ranking = unranked(method) as Ranking;
  const started = performance.now();
  const users = new Map<string, Metrics>();
  for (const group of groups) {
    const test = clients.filter((client) => client.group === group).flatMap((client) => client.test);
    const validation = clients
      .filter((client) => client.group === group)
      .flatMap((client) => client.validation);
    const metrics = await metricsOf(ranking, { test, validation, group, config, progress });
    for (const [i, { user }] of test.entries()) users.set(userKey(group.name, user), metrics[i]!);
  }
  await placeRanking(directory, users, {
    ranking: method,
    settings: rankingSettings(ranking, config),
    seed: config.seed,
    data,
    ...(ranking === 'zero-shot' && { model: { path: config.model.path, hash: modelHash } }),
    seconds: (performance.now() - started) / 1000,
  });
}

/** A method that ranks otherwise than the run whose parameters it has, and its configuration. */
export interface RankedMethod {
  readonly method: Ranked;
  readonly config: Config;
}

/** Ranks with the parameters of a run that was trained, by methods that differ in what they inject: by one scoring. */
export async function storeRanked(
  methods: readonly RankedMethod[],
  run: string,
  experiment: Experiment,
  progress: Progress,
): Promise<void> {
  const { config, data, modelHash, clients } = experiment;
  const total = clients.reduce((n, { test }) => n + test.length, 0);
  const found = methods.map(() => ({
    users: new Map<string, Metrics>(),
    gammas: {} as Record<string, number>,
    seconds: 0,
  }));
  const store = await openRun(run, storeFormat(experiment));
  let rounds: readonly RoundRecord[] = [];
  try {
    rounds = await store.history();
    for await (const { client, ...asked } of trainedClients(experiment, store)) {
      const { test: samples, group } = client;
      if (samples.length === 0) continue;
      const before = found[0]!.users.size;
      const injections = methods.map((one) => one.config.ranking.inject);
      const onProgress = (done: number) => progress.report('test users', before + done, total);
      const each = await evaluateInjections(config, rankerOf(client, progress.report), asked, {
        samples,
        injections,
        onProgress,
      });
      for (const [m, { metrics, seconds, gamma }] of each.entries()) {
        for (const [i, { user }] of samples.entries())
          found[m]!.users.set(userKey(group.name, user), metrics[i]!);
        found[m]!.seconds += seconds;
        if (gamma !== undefined) found[m]!.gammas[client.name] = gamma;
      }
    }
  } finally {
    await store.close();
  }
  for (const [m, { method, config: own }] of methods.entries())
    await placeRanking(runDirectory(own), found[m]!.users, {
      ranking: method,
      settings: rankedSettings(own),
      seed: own.seed,
      data,
      model: { path: own.model.path, hash: modelHash },
      seconds: found[m]!.seconds,
      run: roundsHash(rounds),
      trainSamples: trainSamplesOf(rounds[0]!),
      ...(own.ranking.inject && { gammas: found[m]!.gammas }),
    });
}

async function placeRanking(directory: string, users: UserMetrics, stored: StoredRanking): Promise<void> {
  await placeWhole(directory, async (aside) => {
    await writeUserMetrics(aside, users);
    await writeWhole(join(aside, file), `${JSON.stringify(stored, undefined, 2)}\n`);
  });
}

interface RankingTask {
  readonly test: readonly Sample[];
  readonly validation: readonly Sample[];
  readonly group: Group;
  readonly config: Config;
  readonly progress: Progress;
}

async function metricsOf(
  ranking: Ranking,
  { test, validation, group: { dataset, recommender }, config, progress }: RankingTask,
): Promise<readonly Metrics[]> {
  const { seed, evaluation } = config;
  const options = {
    seed,
    maskHistory: evaluation.maskHistory,
    onProgress: (done: number, total: number) => progress.report(ranking, done, total),
  };
  const itemCount = dataset.catalogue.items.length;
  switch (ranking) {
    case 'zero-shot': {
      const start = await recommender.initialParameters(seed);
      const { users, catalogue } = dataset;
      const ranker = { recommender, users, catalogue, validation, report: progress.report };
      const found = await withRankingOptions(config, ranker, { parameters: start }, (own) =>
        recommender.evaluate(test, start, { ...options, ...own }),
      );
      return found.metrics;
    }
    case 'random':
    case 'popularity':
      return floorMetrics(ranking, test, dataset.users, itemCount, options);
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
