import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import {
  type DatasetStats,
  datasetStats,
  exportRecBole,
  importDataset,
  isDataset,
  readDataset,
  refuseExisting,
  writeUsers,
} from '@fellrec/recsys';
import { ConfigError, loadConfig } from '../config.ts';
import { partitionOf } from '../experiment.ts';
import { groupConfigs, readGroups, sharedUsers } from '../groups.ts';
import { print } from '../output.ts';
import { table } from '../table.ts';

interface Options {
  readonly interactions: string;
  readonly items: string;
  readonly output: string;
  readonly users?: string;
  readonly name?: string;
  readonly userColumn?: string;
  readonly itemColumn?: string;
  readonly timeColumn?: string;
  readonly sequenceColumn?: string;
  readonly itemIdColumn?: string;
  readonly titleColumn?: string;
  readonly userIdColumn?: string;
  readonly interactionsHeader?: readonly string[];
  readonly itemsHeader?: readonly string[];
  readonly minRating?: number;
  readonly ratingColumn: string;
  readonly dropUntitled?: boolean;
  readonly kCore: number;
  readonly split: string;
  readonly force?: boolean;
  readonly json?: boolean;
}

export async function runImport(options: Options): Promise<void> {
  const {
    userColumn: user,
    itemColumn: item,
    timeColumn: time,
    sequenceColumn: sequence,
    ratingColumn: rating,
    itemIdColumn: itemId,
    titleColumn: title,
    userIdColumn: userId,
    interactionsHeader,
    itemsHeader,
    split,
    ...rest
  } = options;
  if (split !== 'leave-one-out' && split !== 'global-time')
    throw new ConfigError(`data import: --split ${split}: use leave-one-out or global-time`);
  await importDataset({
    ...rest,
    split,
    headers: { interactions: interactionsHeader, items: itemsHeader },
    columns: { user, item, time, sequence, rating, itemId, title, userId },
  });
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
  const groups = groupConfigs(config);
  const datasets = (await readGroups(config)).map((one, i) => sharedUsers(one, groups[i]!, config.seed));
  const { clients } = partitionOf(config, datasets);
  refuseOthers(
    output,
    clients.map(({ name }) => name),
    force,
  );
  for (const { name, group, users } of clients) {
    const own = groups.findIndex((one) => one.name === group);
    await writeUsers(groups[own]!.path, join(output, name), {
      name: `${datasets[own]!.name}, ${name}`,
      users,
      force,
    });
  }
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

/** @throws before anything is written if a client's folder is there, or with `force` one of an earlier cut. */
function refuseOthers(output: string, clients: readonly string[], force: boolean): void {
  for (const name of clients) refuseExisting(join(output, name), force);
  if (!force || !existsSync(output)) return;
  const others = readdirSync(output).filter(
    (name) => !clients.includes(name) && isDataset(join(output, name)),
  );
  if (others.length > 0)
    throw new Error(
      `data: ${output} has data of ${others.join(', ')}, who are none of these clients, so that users would be at two of them; remove these folders, or choose another one`,
    );
}

export async function runExport(
  folder: string,
  { recbole, json }: { recbole: string; json?: boolean },
): Promise<void> {
  const written = await exportRecBole(folder, recbole);
  const rows = Object.entries(written).map(([file, count]) => [file, String(count)]);
  print({ folder: recbole, rows: written }, table(['file', 'rows'], rows), { json: json ?? false });
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
