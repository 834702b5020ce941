// Which user belongs to which client: K-means on user vectors, at random, or by a column of the user's.
import { random } from '@fellrec/graph';
import { kmeans } from 'ml-kmeans';
import type { Dataset, User } from '../dataset.ts';
import { popularity } from '../floors.ts';
import { type BprOptions, userVectors } from './bpr.ts';

export type PartitionMethod =
  | { readonly method: 'kmeans' | 'random' }
  | { readonly method: 'column'; readonly column: string };

export type PartitionOptions = PartitionMethod & {
  /** Ignored by `column`, which makes a client of every value. */
  readonly clients: number;
  readonly seed: number;
  readonly bpr?: Omit<BprOptions, 'seed'>;
};

export interface Partition {
  /** 'groups': each group's users have a partition of their own. */
  readonly method: PartitionMethod['method'] | 'groups';
  readonly clients: readonly {
    readonly name: string;
    /** Users' and items' ids mean something within it only; none where all clients share one catalogue. */
    readonly group?: string;
    readonly users: readonly string[];
  }[];
  /**
   * Mean cosine between the training popularity of items at two clients with one catalogue: near 1 the partition says
   * nothing (users of the full Games data in five random parts: 0.94), 0.1 to 0.3 is a partition by taste. 1 if there are
   * no two such clients.
   */
  readonly popularityCosine: number;
  /** Between clients, in their order; not there in runs that are older than it. */
  readonly likeness?: Likeness;
}

/** How alike the training data of clients is. */
export interface Likeness {
  /** Cosine of the items' popularity. */
  readonly popularityCosine: readonly (readonly number[])[];
  /** Items that users of both trained on, as a share of those that users of either did (Jaccard). */
  readonly itemOverlap: readonly (readonly number[])[];
}

/** Every user belongs to exactly one client, no client is empty. @throws if there are too few users or no such column. */
export function partition(dataset: Dataset, options: PartitionOptions): Partition {
  const groups = groupUsers(dataset, options);
  const clients = [...groups].map(([name, users]) => ({ name, users: users.map(({ id }) => id) }));
  const likeness = likenessOf(dataset, [...groups.values()]);
  return {
    method: options.method,
    clients,
    popularityCosine: meanBetween(likeness.popularityCosine),
    likeness,
  };
}

/**
 * The clients of several groups, one group behind the other and called after it. Those of different groups have no item
 * in common. One without a group's name stays as it is. @throws if two clients would have one name.
 */
export function joinPartitions(
  parts: readonly { readonly group?: string; readonly partition: Partition }[],
): Partition {
  const [first] = parts;
  if (parts.length === 1 && first!.group === undefined) return first!.partition;
  const clients = parts.flatMap(({ group, partition }) =>
    partition.clients.map(({ name, users }) => ({
      name: partition.clients.length === 1 ? group! : `${group}-${name.replace(/^client-/, '')}`,
      group: group!,
      users,
    })),
  );
  const names = clients.map(({ name }) => name);
  const twice = names.find((name, i) => names.indexOf(name) !== i);
  if (twice !== undefined)
    throw new Error(`partition: two clients would be called ${twice}; name the groups otherwise`);
  const sizes = parts.map(({ partition }) => partition.clients.length);
  const blocks = (of: (likeness: Likeness) => readonly (readonly number[])[]) =>
    parts.flatMap(({ partition }, p) => {
      const before = sizes.slice(0, p).reduce((sum, size) => sum + size, 0);
      const after = clients.length - before - sizes[p]!;
      return of(partition.likeness!).map((row) => [...zeros(before), ...row, ...zeros(after)]);
    });
  const likeness = {
    popularityCosine: blocks(({ popularityCosine }) => popularityCosine),
    itemOverlap: blocks(({ itemOverlap }) => itemOverlap),
  };
  const isWithin = (a: number, b: number) => clients[a]!.group === clients[b]!.group;
  const popularityCosine = meanBetween(likeness.popularityCosine, isWithin);
  return { method: 'groups', clients, popularityCosine, likeness };
}

const zeros = (count: number) => new Array<number>(count).fill(0);

/** Mean over pairs of different clients that count; 1 if none does. */
function meanBetween(
  matrix: readonly (readonly number[])[],
  counts: (a: number, b: number) => boolean = () => true,
): number {
  const pairs = matrix.flatMap((row, a) => row.filter((_, b) => b > a && counts(a, b)));
  return pairs.length === 0 ? 1 : pairs.reduce((sum, value) => sum + value, 0) / pairs.length;
}

function groupUsers(dataset: Dataset, options: PartitionOptions): Map<string, User[]> {
  const { users } = dataset;
  const { clients, seed } = options;
  if (options.method !== 'column' && (clients < 1 || clients > users.length))
    throw new Error(
      `partition: ${clients} clients for ${users.length} users; there must be one at least, each with one user`,
    );
  switch (options.method) {
    case 'column': {
      const labels = users.flatMap(({ attributes }) => attributes[options.column] ?? []);
      if (labels.length < users.length) {
        const known = [...new Set(users.flatMap(({ attributes }) => Object.keys(attributes)))];
        throw new Error(
          `partition: ${users.length - labels.length} of ${users.length} users have no "${options.column}"; columns: ${known.join(', ') || 'none'}`,
        );
      }
      return group(users, labels);
    }
    case 'random': {
      const order = random(seed, 'partition').shuffle(users.map((_, i) => i));
      const labels: string[] = [];
      order.forEach((user, i) => {
        labels[user] = clientName(i % clients);
      });
      return group(users, labels);
    }
    case 'kmeans': {
      const vectors = userVectors(users, dataset.catalogue.items.length, { ...options.bpr, seed }).map(
        (vector) => Array.from(vector),
      );
      return group(users, cluster(vectors, clients, seed).map(clientName));
    }
  }
}

const clientName = (index: number) => `client-${index}`;

/** The clustering of least inertia of five K-means++ starts. */
function cluster(vectors: readonly (readonly number[])[], clients: number, seed: number): number[] {
  if (clients === 1) return vectors.map(() => 0);
  let best: { clusters: number[]; inertia: number } | undefined;
  const data = vectors as number[][];
  for (let start = 0; start < 5; start++) {
    const drawn = random(seed, 'kmeans', start).integer(2 ** 31);
    const { clusters, centroids } = kmeans(data, clients, { seed: drawn, initialization: 'kmeans++' });
    const inertia = data.reduce(
      (sum, vector, i) => sum + squaredDistance(vector, centroids[clusters[i]!]!),
      0,
    );
    const complete = new Set(clusters).size === clients;
    if (complete && (!best || inertia < best.inertia)) best = { clusters, inertia };
  }
  if (!best) throw new Error(`partition: K-means found fewer than ${clients} clusters; use fewer clients`);
  return best.clusters;
}

/** Clients' names become folders of a run, which begin with a letter, a digit or "_". */
function folderName(label: string): string {
  return label.replace(/[^\p{L}\p{N}_-]+/gu, '-').replace(/^-+/, '') || 'none';
}

/** Users by client; a client is named after its label. @throws if two labels make one name. */
function group(users: readonly User[], labels: readonly string[]): Map<string, User[]> {
  const sorted = [...new Set(labels)].sort((a, b) => a.localeCompare(b, 'en', { numeric: true }));
  const names = new Map(sorted.map((label) => [label, folderName(label)]));
  const groups = new Map<string, User[]>([...names.values()].map((name) => [name, []]));
  if (groups.size < names.size)
    throw new Error(`partition: some of the values ${sorted.join(', ')} differ only in punctuation`);
  users.forEach((user, i) => {
    groups.get(names.get(labels[i]!)!)!.push(user);
  });
  return groups;
}

function likenessOf(dataset: Dataset, clients: readonly (readonly User[])[]): Likeness {
  const counts = clients.map((users) => popularity(users, dataset.catalogue.items.length));
  const between = (measure: (a: Float64Array, b: Float64Array) => number) =>
    counts.map((a, i) => counts.map((b, j) => (i === j ? 1 : measure(a, b))));
  return { popularityCosine: between(cosine), itemOverlap: between(jaccard) };
}

function jaccard(a: Float64Array, b: Float64Array): number {
  let [both, either] = [0, 0];
  for (let i = 0; i < a.length; i++) {
    if (a[i]! > 0 && b[i]! > 0) both++;
    if (a[i]! > 0 || b[i]! > 0) either++;
  }
  return either === 0 ? 0 : both / either;
}

function cosine(a: Float64Array, b: Float64Array): number {
  let [ab, aa, bb] = [0, 0, 0];
  for (let i = 0; i < a.length; i++) {
    ab += a[i]! * b[i]!;
    aa += a[i]! ** 2;
    bb += b[i]! ** 2;
  }
  return aa === 0 || bb === 0 ? 0 : ab / Math.sqrt(aa * bb);
}

function squaredDistance(a: readonly number[], b: readonly number[]): number {
  return a.reduce((sum, x, i) => sum + (x - b[i]!) ** 2, 0);
}
