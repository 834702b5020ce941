// Runs as they lie in their folders: where, with which settings, and opened again with what they were made of.
import { existsSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { openRun, type ParametersFormat, type RunStore, writeWhole } from '@fellrec/federation';
import type { Partition } from '@fellrec/recsys';
import { z } from 'zod';
import { type Config, completed, parseConfig, remoteData } from './config.ts';
import { configSchema } from './config-schema.ts';
import { type Experiment, openExperiment, type Report } from './experiment.ts';
import { groupConfigs } from './groups.ts';
import type { Progress } from './progress.ts';
import { readJson } from './read-json.ts';

export function runDirectory(config: Config): string {
  return resolve(config.runs, config.name);
}

/** Settings of a stored run that are others now, and matter: with others its rounds would have computed something else. */
export function changesOf(stored: Readonly<Record<string, unknown>>, record: object): string[] {
  return differences(storedSettings(stored), record).filter(
    (key) => !changeable.has(key.replace(/\.\d+\./, '.')),
  );
}

/**
 * Opens a run that goes on, for one process; `record` is what its config.json says from now on. @throws if settings that
 * matter are others, or if it has more rounds than these ask for
 */
export async function reopenRun(
  directory: string,
  record: Pick<Config, 'federation'>,
  format: ParametersFormat,
): Promise<RunStore> {
  // Before the store is opened, which clears away what these settings do not keep.
  const different = changesOf(await storedConfig(directory), record);
  if (different.length > 0)
    throw new Error(
      `run: ${directory} was made with other settings: ${different.join(', ')}; take the same, or another name, or replace it with --force`,
    );
  const store = await openRun(directory, format);
  try {
    const done = (await store.state())?.nextRound ?? 0;
    const { rounds } = record.federation;
    if (done > rounds)
      throw new Error(
        `run: ${directory} has ${done} rounds, ${rounds} are asked for; take federation.rounds=${done} or more, or another name`,
      );
    await writeWhole(join(directory, configFile), `${JSON.stringify(record, undefined, 2)}\n`);
    return store;
  } catch (error) {
    await store.close();
    throw error;
  }
}

/** A stored configuration, with defaults for settings that are younger than the run. */
function storedSettings(config: Readonly<Record<string, unknown>>): object {
  const { dataset, modelHash, clients, ...settings } = config;
  const isRemote = clients === 'remote';
  const parsed = configSchema.safeParse(isRemote ? { ...settings, data: { path: remoteData } } : settings);
  if (!parsed.success) return config;
  const { data, ...others } = completed(parsed.data, 'config.json');
  return { ...others, ...(isRemote ? { clients } : { data, dataset }), modelHash };
}

/** Settings that may differ when a run goes on: they do not change what its rounds compute. */
const changeable = new Set([
  'training.microBatch',
  'generation.batch',
  'federation.rounds',
  'federation.patience',
  'threads',
  'cache',
  'runs',
  'data.path',
  'groups.path',
  'model.path',
]);

/** Keys (`training.learningRate`) at which two configurations differ. */
function differences(a: unknown, b: unknown, path = ''): string[] {
  if (typeof a !== 'object' || typeof b !== 'object' || a === null || b === null)
    return JSON.stringify(a) === JSON.stringify(b) ? [] : [path];
  const keys = new Set([...Object.keys(a), ...Object.keys(b)]);
  return [...keys].flatMap((key) =>
    differences(
      (a as Record<string, unknown>)[key],
      (b as Record<string, unknown>)[key],
      path ? `${path}.${key}` : key,
    ),
  );
}

export interface StoredRun {
  readonly config: Config;
  readonly partition: Partition;
  /** config.json as it is: settings, and what names data and model. */
  readonly stored: Record<string, unknown>;
}

/** Opens what a stored run was made with. @throws if the model or the data are others by now. */
export async function openStored(
  directory: string,
  { config, partition, stored }: StoredRun,
  report: Report,
): Promise<Experiment> {
  const experiment = await openExperiment(config, report, partition);
  const { modelHash, dataset } = stored as { modelHash?: string; dataset?: { hash?: string } };
  const other = [
    experiment.modelHash !== modelHash && `the model in ${config.model.path}`,
    experiment.data.hash !== dataset?.hash &&
      `the data in ${groupConfigs(config)
        .map(({ path }) => path)
        .join(', ')}`,
  ].filter((what) => typeof what === 'string');
  if (other.length === 0) return experiment;
  await experiment.dispose();
  throw new Error(
    `run: ${other.join(' and ')} changed since ${directory} was made; put back what it was made with, or train again`,
  );
}

const configFile = 'config.json';

/** config.json of a run as it is. @throws if it is no run */
async function storedConfig(directory: string): Promise<Record<string, unknown>> {
  const file = join(directory, configFile);
  if (!existsSync(file)) throw new Error(`run: ${directory} is no run (it has no ${configFile})`);
  return readJson(file, z.record(z.string(), z.unknown()));
}

/** Says what a run that is not complete lacks. @throws if it has no round */
export async function assertTrained(directory: string, progress: Progress): Promise<void> {
  const names = await readdir(join(directory, 'rounds')).catch(() => []);
  const done = names.filter((name) => /^\d+$/.test(name)).length;
  if (done === 0) throw new Error(`run: nothing is trained in ${directory} yet; go on with --resume`);
  const file = join(directory, 'result.json');
  const evaluated = existsSync(file) ? (await readJson(file, z.object({ rounds: z.number() }))).rounds : 0;
  if (evaluated !== done)
    progress.line(
      `${directory} is not complete: ${done} rounds are there, and a result of ${evaluated || 'none'}; go on with --resume`,
    );
}

/** A stored run's configuration and partition. */
export async function readRun(directory: string): Promise<StoredRun> {
  const stored = await storedConfig(directory);
  if (stored.clients === 'remote')
    throw new Error(
      `run: the clients of ${directory} are remote, and their data is with them; each recommends with what its "fellrec join -o" wrote; the best adapters are in ${join(directory, 'best')} too`,
    );
  const { dataset: _, modelHash: __, ...config } = stored;
  return {
    config: parseConfig(config, join(directory, configFile)),
    partition: await readPartition(directory),
    stored,
  };
}

/** @throws if there is nothing to go on with, or if the clients are remote */
export async function readPartition(directory: string): Promise<Partition> {
  const file = join(directory, 'clients.json');
  if (!existsSync(file))
    throw new Error(
      `run: ${directory} is no run that can go on (it has no clients.json); start it without --resume`,
    );
  const found = await readJson(file, clientsFile);
  if (found.method === 'remote')
    throw new Error(`run: the clients of ${directory} are remote; go on with "fellrec serve --resume"`);
  return found;
}

const matrix = z.array(z.array(z.number()));
const partitionFile = z.object({
  method: z.enum(['kmeans', 'random', 'column', 'groups']),
  clients: z
    .array(z.object({ name: z.string(), group: z.string().exactOptional(), users: z.array(z.string()) }))
    .min(1),
  popularityCosine: z.number(),
  likeness: z.object({ popularityCosine: matrix, itemOverlap: matrix }).exactOptional(),
});
const clientsFile = z.discriminatedUnion('method', [
  partitionFile,
  z.object({ method: z.literal('remote') }),
]);
