// Runs as they lie in their folders: where, with which settings, and opened again with what they were made of.
import { readFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import type { Partition } from '@fellrec/recsys';
import { type Config, completed, parseConfig } from './config.ts';
import { configSchema } from './config-schema.ts';
import { type Experiment, openExperiment, type Report } from './experiment.ts';
import { groupConfigs } from './groups.ts';

export function runDirectory(config: Config): string {
  return resolve(config.runs, config.name);
}

/** Settings of a stored run that are others now, and matter: with others its rounds would have computed something else. */
export function changesOf(stored: Readonly<Record<string, unknown>>, record: object): string[] {
  return differences(storedSettings(stored), record).filter(
    (key) => !changeable.has(key.replace(/\.\d+\./, '.')),
  );
}

/** A stored configuration, with defaults for settings that are younger than the run. */
function storedSettings(config: unknown): unknown {
  const { dataset, modelHash, ...settings } = config as Record<string, unknown>;
  const parsed = configSchema.safeParse(settings);
  return parsed.success ? { ...completed(parsed.data, 'config.json'), dataset, modelHash } : config;
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

/** A stored run's configuration and partition. */
export async function readRun(directory: string): Promise<StoredRun> {
  const file = join(directory, 'config.json');
  const text = await readFile(file, 'utf8').catch((cause) => {
    throw new Error(`run: ${directory} is no run (it has no config.json)`, { cause });
  });
  const stored = JSON.parse(text) as Record<string, unknown>;
  if (stored.clients === 'remote')
    throw new Error(
      `run: the clients of ${directory} are remote, and their data is with them; their best parameters are in ${join(directory, 'best')}`,
    );
  const { dataset: _, modelHash: __, ...config } = stored;
  return { config: parseConfig(config, file), partition: await readPartition(directory), stored };
}

export async function readPartition(directory: string): Promise<Partition> {
  const file = join(directory, 'clients.json');
  const text = await readFile(file, 'utf8').catch((cause) => {
    throw new Error(
      `run: ${directory} is no run that can go on (it has no clients.json); start it without --resume`,
      { cause },
    );
  });
  return JSON.parse(text) as Partition;
}
