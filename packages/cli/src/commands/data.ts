import { join } from 'node:path';
import {
  type DatasetStats,
  datasetStats,
  type ImportOptions,
  importDataset,
  partition,
  readDataset,
  writeUsers,
} from '@fellrec/recsys';
import { ConfigError, loadConfig } from '../config.ts';
import { partitionOptions } from '../experiment.ts';
import { print } from '../output.ts';
import { table } from '../table.ts';

interface Options {
  readonly interactions: string;
  readonly items: string;
  readonly output: string;
  readonly users?: string;
  readonly name?: string;
  readonly userColumn: string;
  readonly itemColumn: string;
  readonly timeColumn?: string;
  readonly sequenceColumn?: string;
  readonly itemIdColumn: string;
  readonly titleColumn: string;
  readonly userIdColumn: string;
  readonly kCore: number;
  readonly split: string;
  readonly force?: boolean;
  readonly json?: boolean;
}

export async function runImport(options: Options): Promise<void> {
  const {
    userColumn,
    itemColumn,
    timeColumn,
    sequenceColumn,
    itemIdColumn,
    titleColumn,
    userIdColumn,
    split,
    ...rest
  } = options;
  if (split !== 'leave-one-out' && split !== 'global-time')
    throw new ConfigError(`data import: --split ${split}: use leave-one-out or global-time`);
  const columns: ImportOptions['columns'] = {
    user: userColumn,
    item: itemColumn,
    itemId: itemIdColumn,
    title: titleColumn,
    userId: userIdColumn,
    ...(timeColumn && { time: timeColumn }),
    ...(sequenceColumn && { sequence: sequenceColumn }),
  };
  await importDataset({ ...rest, split, columns });
  await runStats(options.output, options);
}

interface PartitionFlags {
  readonly config: string;
  readonly set?: readonly string[];
  readonly output: string;
  readonly force?: boolean;
  readonly json?: boolean;
}

/** What clients of a run have when they are elsewhere. */
export async function runPartition({
  config: file,
  set,
  output,
  force = false,
  json,
}: PartitionFlags): Promise<void> {
  const config = await loadConfig(file, set);
  const dataset = await readDataset(config.data.path);
  const { clients } = partition(
    dataset,
    partitionOptions(config, () => {}),
  );
  for (const { name, users } of clients)
    await writeUsers(config.data.path, join(output, name), {
      name: `${dataset.name}, ${name}`,
      users,
      force,
    });
  const made = clients.map(({ name, users }) => ({
    client: name,
    folder: join(output, name),
    users: users.length,
  }));
  print(
    made,
    table(
      ['client', 'folder', 'users'],
      made.map((m) => [m.client, m.folder, String(m.users)]),
    ),
    {
      json: json ?? false,
    },
  );
}

export async function runStats(folder: string, options: { json?: boolean }): Promise<void> {
  const stats = datasetStats(await readDataset(folder));
  print(stats, describe(stats), options);
}

function describe(s: DatasetStats): string {
  return `users         ${s.users}
items         ${s.items}
interactions  ${s.interactions} (train ${s.train}, validation ${s.validation}, test ${s.test})
density       ${s.density.toPrecision(6)}
mean length   ${s.meanLength.toFixed(2)} (longest ${s.longest})`;
}
