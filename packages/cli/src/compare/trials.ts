// What a method did with one seed, read from its folder: a run that was trained, or a ranking.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { Config } from '../config.ts';
import { dataHash } from '../groups.ts';
import { type RunFiles, readRunFiles } from '../report/run-files.ts';
import { changesOf, readRun, runDirectory } from '../stored-run.ts';
import type { Trial } from './compared.ts';
import { folderOf, isRanked, isRanking, type Method, unranked } from './methods.ts';
import { rankedSettings, rankingSettings, readRanking, roundsHash, type StoredRanking } from './rankings.ts';
import { apartBySamples, trainSamplesOf } from './samples.ts';
import { readUserMetrics } from './user-metrics.ts';

/** Whether a run has been made in this folder. */
export function hasBegun(directory: string): boolean {
  return existsSync(join(directory, 'config.json'));
}

/**
 * Whether a method's result is there, made with these settings on the data that is there now, and of one that ranks with
 * a run's parameters, with those of now.
 */
export async function isStored(directory: string, method: Method, config: Config): Promise<boolean> {
  const hash = await dataHash(config);
  const plain = unranked(method);
  if (isRanking(plain) || isRanked(method)) {
    const found = await readRanking(directory);
    const settings = isRanking(plain) ? rankingSettings(plain, config) : rankedSettings(config);
    if (found?.data.hash !== hash || !isSame(found.settings, settings)) return false;
    if (isRanking(plain)) return true;
    const trained = runDirectory({ ...config, name: folderOf(plain, config.seed) });
    return found.run === roundsHash((await readRunFiles(trained)).rounds);
  }
  if (!hasBegun(directory)) return false;
  const { stored } = await readRun(directory);
  const { dataset, modelHash } = stored as { dataset: Trial['data']; modelHash: string };
  // Of a model only the folder is compared: what is in it is read when it is opened.
  if (changesOf(stored, { ...config, dataset: { ...dataset, hash }, modelHash }).length > 0) return false;
  const { missing, rounds, users } = await readRunFiles(directory);
  if (missing !== undefined || !users) return false;
  const { rounds: wanted, patience } = config.federation;
  const stopped = rounds.findIndex((round) => round.roundsWithoutImprovement >= patience) + 1;
  return rounds.length === (stopped > 0 ? Math.min(stopped, wanted) : wanted);
}

/** `method`: what it is called; without it, what the folder says. @throws if there is neither a run nor a ranking. */
export async function readTrial(directory: string, method?: Method): Promise<Trial> {
  const ranking = await readRanking(directory);
  return ranking
    ? trialOfRanking(directory, ranking, method)
    : trialOfRun(await readRunFiles(directory), method);
}

/** Of several folders, each called as it says; with several numbers of training samples, each number is a method. */
export async function readTrials(directories: readonly string[]): Promise<Trial[]> {
  return apartBySamples(await Promise.all(directories.map((directory) => readTrial(directory))));
}

async function trialOfRanking(directory: string, stored: StoredRanking, method?: Method): Promise<Trial> {
  const { ranking, seed, data, model, seconds, trainSamples } = stored;
  const gammas = unranked(ranking) === 'centralized' ? undefined : stored.gammas;
  const users = await readUserMetrics(directory);
  return {
    method: method ?? ranking,
    seed,
    directory,
    data,
    ...(model && { model }),
    seconds,
    ...(trainSamples !== undefined && { trainSamples }),
    ...(gammas && { gammas }),
    ...(users ? { users } : { users: new Map(), missing: 'its metrics of users are not there' }),
  };
}

/** @throws if its clients were remote: they alone know their users. */
function trialOfRun(
  { directory, config, partition, rounds, result, users, missing }: RunFiles,
  method?: Method,
): Trial {
  const { dataset, modelHash } = config;
  if (!dataset || modelHash === undefined)
    throw new Error(
      `compare: the clients of ${directory} were remote, and what each user got is with them; compare runs of one process`,
    );
  const lacks = missing ?? (users ? undefined : 'it has no metrics of users: go on with --resume');
  const clients = partition.clients.map(({ name, group, users = [] }) => ({
    name,
    ...(group !== undefined && { group }),
    users,
  }));
  const { likeness } = partition;
  // The one client of `centralized` is none of the others'.
  const clientResults = config.federation.strategy === 'centralized' ? [] : (result?.clients ?? []);
  const gammas = Object.fromEntries(
    clientResults.flatMap(({ client, gamma }) => (gamma === undefined ? [] : [[client, gamma]])),
  );
  return {
    method: method ?? methodOf(config),
    seed: config.seed,
    directory,
    data: { name: dataset.name, hash: dataset.hash },
    model: { path: config.model.path, hash: modelHash },
    run: {
      strategy: config.federation.strategy,
      partition: { clients, ...(likeness && { likeness }) },
      rounds,
    },
    ...(rounds[0] && { trainSamples: trainSamplesOf(rounds[0]) }),
    ...(Object.keys(gammas).length > 0 && { gammas }),
    seconds: rounds.reduce((sum, { seconds }) => sum + seconds.total, 0),
    users: lacks === undefined ? users! : new Map(),
    ...(lacks !== undefined && { missing: lacks }),
  };
}

/** A run's name, without the seed at its end. */
function methodOf({ name, seed }: Pick<Config, 'name' | 'seed'>): string {
  return name.endsWith(`-${seed}`) ? name.slice(0, -`-${seed}`.length) : name;
}

function isSame(a: unknown, b: unknown): boolean {
  return JSON.stringify(a) === JSON.stringify(JSON.parse(JSON.stringify(b)));
}
