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
  readonly method: PartitionMethod['method'];
  readonly clients: readonly { readonly name: string; readonly users: readonly string[] }[];
  /**
   * Mean cosine between the training popularity of items at two clients: near 1 the partition says nothing (users of
   * the full Games data in five random parts: 0.94), 0.1 to 0.3 is a partition by taste.
   */
  readonly popularityCosine: number;
}

/** Every user belongs to exactly one client, no client is empty. @throws if there are too few users or no such column. */
export function partition(dataset: Dataset, options: PartitionOptions): Partition {
  const groups = groupUsers(dataset, options);
  const clients = [...groups].map(([name, users]) => ({ name, users: users.map(({ id }) => id) }));
  return { method: options.method, clients, popularityCosine: meanCosine(dataset, [...groups.values()]) };
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

/** Users by client; a client is named after its label. @throws if two labels make one name. */
function group(users: readonly User[], labels: readonly string[]): Map<string, User[]> {
  const sorted = [...new Set(labels)].sort((a, b) => a.localeCompare(b, 'en', { numeric: true }));
  // Names become folders of a run.
  const names = new Map(sorted.map((label) => [label, label.replace(/[^\p{L}\p{N}_-]+/gu, '-') || '-']));
  const groups = new Map<string, User[]>([...names.values()].map((name) => [name, []]));
  if (groups.size < names.size)
    throw new Error(`partition: some of the values ${sorted.join(', ')} differ only in punctuation`);
  users.forEach((user, i) => {
    groups.get(names.get(labels[i]!)!)!.push(user);
  });
  return groups;
}

function meanCosine(dataset: Dataset, clients: readonly (readonly User[])[]): number {
  const vectors = clients.map((users) => popularity(users, dataset.catalogue.items.length));
  let sum = 0;
  let pairs = 0;
  for (let a = 0; a < vectors.length; a++)
    for (let b = a + 1; b < vectors.length; b++) {
      sum += cosine(vectors[a]!, vectors[b]!);
      pairs++;
    }
  return pairs === 0 ? 1 : sum / pairs;
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
