// What a method did with one seed, read from its folder: a run that was trained, or a ranking.
import { existsSync } from 'node:fs';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { RoundRecord } from '@fellrec/federation';
import type { Config } from '../config.ts';
import { changesOf, readRun, type StoredRun } from '../train.ts';
import type { Trial } from './compared.ts';
import { isRanking, type Method } from './methods.ts';
import { rankingSettings, readRanking } from './rankings.ts';
import { readUserMetrics } from './user-metrics.ts';

/** Whether a run has been made in this folder. */
export async function hasBegun(directory: string): Promise<boolean> {
  return existsSync(join(directory, 'config.json'));
}

/** Whether a method's result is there, made with these settings. */
export async function isStored(directory: string, method: Method, config: Config): Promise<boolean> {
  if (isRanking(method)) {
    const found = await readRanking(directory);
    return found !== undefined && isSame(found.settings, rankingSettings(method, config));
  }
  if (!(await hasBegun(directory))) return false;
  const { stored } = await readRun(directory);
  const { dataset, modelHash } = stored;
  // Data and model are checked where they are opened.
  if (changesOf(stored, { ...config, dataset, modelHash }).length > 0) return false;
  return missingOf(directory, await readRounds(directory), config.federation) === undefined;
}

/** `method`: what it is called; without it, what the folder says. @throws if there is neither a run nor a ranking. */
export async function readTrial(directory: string, method?: Method): Promise<Trial> {
  const ranking = await readRanking(directory);
  if (ranking) {
    const { seed, data, model, seconds } = ranking;
    const users = await readUserMetrics(directory);
    return {
      method: ranking.ranking,
      seed,
      directory,
      data,
      ...(model && { model }),
      seconds,
      ...(users ? { users } : { users: new Map(), missing: 'its metrics of users are not there' }),
    };
  }
  const run = await readRun(directory);
  return trialOf(directory, run, await readRounds(directory), method);
}

async function trialOf(
  directory: string,
  { config, partition, stored }: StoredRun,
  rounds: readonly RoundRecord[],
  method: Method | undefined,
): Promise<Trial> {
  const { dataset, modelHash } = stored as { dataset: Trial['data']; modelHash: string };
  const users = await readUserMetrics(directory);
  const missing =
    missingOf(directory, rounds, config.federation) ??
    (users ? undefined : 'its metrics of users are not there: run "fellrec evaluate" on it');
  return {
    method: method ?? methodOf(config),
    seed: config.seed,
    directory,
    data: { name: dataset.name, hash: dataset.hash },
    model: { path: config.model.path, hash: modelHash },
    run: { strategy: config.federation.strategy, partition, rounds },
    seconds: rounds.reduce((sum, { seconds }) => sum + seconds.total, 0),
    users: missing === undefined ? users! : new Map(),
    ...(missing !== undefined && { missing }),
  };
}

/** A run's name, without the seed at its end. */
function methodOf({ name, seed }: Config): string {
  return name.endsWith(`-${seed}`) ? name.slice(0, -`-${seed}`.length) : name;
}

/** What a run lacks to be complete; undefined if nothing. */
function missingOf(
  directory: string,
  rounds: readonly RoundRecord[],
  { rounds: wanted, patience }: Config['federation'],
): string | undefined {
  const stopped = (rounds.at(-1)?.roundsWithoutImprovement ?? 0) >= patience;
  if (rounds.length < wanted && !stopped)
    return `${rounds.length} of ${wanted} rounds are done: go on with "fellrec train --resume"`;
  if (!existsSync(join(directory, 'result.json')))
    return 'its rounds are done, but it has not been evaluated: go on with "fellrec train --resume"';
  return undefined;
}

async function readRounds(directory: string): Promise<RoundRecord[]> {
  const names = await readdir(join(directory, 'rounds')).catch(() => []);
  const complete = names.filter((name) => /^\d+$/.test(name)).sort((a, b) => Number(a) - Number(b));
  return Promise.all(
    complete.map(async (name) => {
      const file = join(directory, 'rounds', name, 'round.json');
      return JSON.parse(await readFile(file, 'utf8')) as RoundRecord;
    }),
  );
}

function isSame(a: unknown, b: unknown): boolean {
  return JSON.stringify(a) === JSON.stringify(JSON.parse(JSON.stringify(b)));
}
