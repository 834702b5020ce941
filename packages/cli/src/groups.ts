// Whose data a run is about: clients in groups, each with a catalogue of its own. Clients cut from one folder are the
// case of one group, which has no name.
import { createHash } from 'node:crypto';
import { type Dataset, type Domain, datasetHash, readDataset, subset } from '@fellrec/recsys';
import { type Config, ConfigError } from './config.ts';

export interface GroupConfig {
  readonly name?: string;
  readonly path: string;
  /** Of its users, those that there are. */
  readonly share: number;
  readonly domain: Domain;
  /** Attributes of an item in their order. */
  readonly attributes?: readonly string[];
  readonly partition: Config['partition'];
}

/** What names the data of a run. */
export interface DataFacts {
  readonly name: string;
  readonly hash: string;
}

export function groupConfigs({ data, groups, domain, partition, recformer }: Config): GroupConfig[] {
  const { attributes } = recformer;
  const common = { domain, partition, ...(attributes && { attributes }) };
  return groups?.map((group) => ({ ...common, ...group })) ?? [{ ...common, path: data.path!, share: 1 }];
}

/** The data of each group, of all its users. @throws ConfigError if two groups have the same. */
export async function readGroups(config: Config): Promise<Dataset[]> {
  const groups = groupConfigs(config);
  const datasets = await Promise.all(groups.map(({ path }) => readDataset(path)));
  const hashes = datasets.length > 1 ? datasets.map(sequencesHash) : [];
  for (const [i, hash] of hashes.entries()) {
    const first = hashes.indexOf(hash);
    if (first < i)
      throw new ConfigError(
        `groups: ${groups[first]!.path} and ${groups[i]!.path} hold the same users with the same items; give each group data of its own`,
      );
  }
  return datasets;
}

/** Of users and the ids of their items in their order, whatever the items are called and however they are split. */
function sequencesHash({ users, catalogue }: Dataset): string {
  const hash = createHash('sha256');
  for (const { id, train, validation, test } of users) {
    const items = [...train, ...validation, ...test].map((item) => catalogue.items[item]!.id);
    hash.update(JSON.stringify([id, ...items]));
  }
  return hash.digest('hex');
}

/** The users that a group's share leaves. @throws ConfigError if there is none. */
export function sharedUsers(dataset: Dataset, { name, share }: GroupConfig, seed: number): Dataset {
  if (share === 1) return dataset;
  const count = Math.round(share * dataset.users.length);
  if (count === 0)
    throw new ConfigError(
      `groups: a share of ${share} of the ${dataset.users.length} users of ${name} is none; take a larger one`,
    );
  return { ...dataset, users: subset(dataset.users, count, seed, `share of ${name}`) };
}

/** Does something for one group; an error says for which. @throws ConfigError where it has a name */
export function inGroup<T>({ name }: Pick<GroupConfig, 'name'>, work: () => T): T {
  try {
    return work();
  } catch (cause) {
    if (name === undefined) throw cause;
    throw new ConfigError(`groups: ${name}: ${(cause as Error).message}`, { cause });
  }
}

/** Of several data sets together. */
export function factsOf(datasets: readonly DataFacts[]): DataFacts {
  const [first] = datasets as [DataFacts];
  if (datasets.length === 1) return { name: first.name, hash: first.hash };
  const all = createHash('sha256');
  for (const { hash } of datasets) all.update(hash);
  return { name: datasets.map(({ name }) => name).join(' + '), hash: all.digest('hex') };
}

/** Names the data that is in the folders now, without reading it. */
export async function dataHash(config: Config): Promise<string> {
  const hashes = await Promise.all(groupConfigs(config).map(({ path }) => datasetHash(path)));
  return factsOf(hashes.map((hash) => ({ name: '', hash }))).hash;
}

/** Names a user among those of all groups: ids mean nothing outside a group. */
export function userKey(group: string | undefined, user: string): string {
  return group === undefined ? user : `${group}/${user}`;
}
