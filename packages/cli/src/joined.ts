// What a client of a run elsewhere keeps of it (`join -o`): its best parameters, and all that recommending with them needs.
//
//   adapter_config.json, ...   the parameters, as in a run's best/<client>/
//   items/                     those of its item vectors, where they are others
//   client.json                its name, the run's settings with its own folders, and what names its data and model
import { existsSync } from 'node:fs';
import { readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type ParametersFormat, placeWhole } from '@fellrec/federation';
import { type Dataset, type Partition, readDataset } from '@fellrec/recsys';
import { z } from 'zod';
import { type Config, parseConfig } from './config.ts';
import type { Asked } from './ranking.ts';
import { readJson } from './read-json.ts';
import type { StoredRun } from './stored-run.ts';

const file = 'client.json';
const itemsFolder = 'items';

/** All that may stand in such a folder: an adapter, or an encoder. */
const ours = [
  ...['adapter_config.json', 'adapter_model.safetensors', 'config.json', 'model.safetensors'],
  ...[itemsFolder, file],
];

/** @throws if something is there that is not of an earlier run: what is written replaces the folder */
export async function assertReplaceable(directory: string): Promise<void> {
  const names = await readdir(directory).catch((cause: NodeJS.ErrnoException) => {
    if (cause.code === 'ENOENT') return [];
    throw new Error(`join: cannot write to ${directory}: ${cause.message}`, { cause });
  });
  const foreign = names.filter((name) => !ours.includes(name));
  if (foreign.length > 0)
    throw new Error(
      `join: ${directory} holds other files (${foreign.slice(0, 3).join(', ')}), and what is written replaces the folder; choose another one`,
    );
}

export interface JoinedClient {
  readonly client: string;
  /** The run's, with data and model of its own. */
  readonly config: Config;
  readonly modelHash: string;
  readonly dataset: Dataset;
}

export async function writeJoined(
  directory: string,
  { client, config, modelHash, dataset }: JoinedClient,
  { parameters, items }: Asked,
  format: ParametersFormat,
): Promise<void> {
  await placeWhole(directory, async (aside) => {
    await format.write(aside, parameters);
    if (items) await format.write(join(aside, itemsFolder), items);
    // From here on it is alone: of the strategy, which may need groups, nothing is left.
    const alone = { ...config, federation: { ...config.federation, strategy: 'local' } };
    const stored = { client, modelHash, dataset: { hash: dataset.hash }, config: alone };
    await writeFile(join(aside, file), `${JSON.stringify(stored, undefined, 2)}\n`);
  });
}

export function isJoined(directory: string): boolean {
  return existsSync(join(directory, file));
}

/** As a run of one client that has all users of its data. @throws if a server has some of what it learned */
export async function readJoined(directory: string): Promise<StoredRun> {
  const path = join(directory, file);
  const { client, config: settings, ...stored } = await readJson(path, joinedFile);
  const config = parseConfig(settings, path);
  if (config.split.k !== undefined && config.split.adapters === 'all-layers')
    throw new Error(
      `recommend: the middle layers of ${client} learned on the server (split.adapters: all-layers), and what they learned is there`,
    );
  const users = (await readDataset(config.data.path!)).users.map(({ id }) => id);
  const partition: Partition = {
    method: 'random',
    clients: [{ name: client, users }],
    popularityCosine: 1,
  };
  return { config, partition, stored };
}

export async function joinedParameters(directory: string, format: ParametersFormat): Promise<Asked> {
  const items = join(directory, itemsFolder);
  return {
    parameters: await format.read(directory),
    ...(existsSync(items) && { items: await format.read(items) }),
  };
}

const joinedFile = z.object({
  client: z.string(),
  modelHash: z.string(),
  dataset: z.object({ hash: z.string() }),
  config: z.record(z.string(), z.unknown()),
});
