import { random } from '@fellrec/graph';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { readDataset } from '../src/data/folder.ts';
import { importDataset } from '../src/data/import.ts';
import type { Dataset, User } from '../src/dataset.ts';
import { userVectors } from '../src/partition/bpr.ts';
import { joinPartitions, type PartitionOptions, partition } from '../src/partition/partition.ts';
import { dataset, sharedData, temporaryFolder, user } from './shared.ts';

const bpr = { dimension: 8, epochs: 30 };

/** Users of three tastes: each draws 8 of the 20 items of its taste. */
function tastes(count: number): Dataset {
  const users = Array.from({ length: count }, (_, i) => {
    const taste = i % 3;
    const items = random(1, 'taste', i).shuffle(Array.from({ length: 20 }, (_, item) => taste * 20 + item));
    return user(`user ${i}`, { train: items.slice(0, 8), attributes: { taste: `no. ${taste}` } });
  });
  return dataset(users, 60);
}

const arbitraryOptions: fc.Arbitrary<PartitionOptions> = fc.record({
  method: fc.constantFrom('kmeans' as const, 'random' as const),
  clients: fc.integer({ min: 1, max: 6 }),
  seed: fc.integer(),
  bpr: fc.constant({ dimension: 4, epochs: 2 }),
});

describe('partition', () => {
  it('puts every user in exactly one client and leaves none empty', () => {
    const data = tastes(40);
    const all = data.users.map(({ id }) => id).sort();
    fc.assert(
      fc.property(arbitraryOptions, (options) => {
        const { clients } = partition(data, options);
        expect(clients.map(({ name }) => name)).toEqual(
          Array.from({ length: options.clients }, (_, i) => `client-${i}`),
        );
        expect(clients.every(({ users }) => users.length > 0)).toBe(true);
        expect(clients.flatMap(({ users }) => users).sort()).toEqual(all);
      }),
      { numRuns: 40 },
    );
  });

  it('of several groups stands one behind the other, is alike within them only, and has the cosine of these pairs', () => {
    const parts = [
      { group: 'a', partition: partition(tastes(90), { method: 'random', clients: 3, seed: 1 }) },
      { group: 'b', partition: partition(tastes(30), { method: 'random', clients: 2, seed: 2 }) },
      { group: 'c', partition: partition(tastes(9), { method: 'random', clients: 1, seed: 3 }) },
    ];
    const joined = joinPartitions(parts);
    expect(joined.clients.map(({ name, group }) => [name, group])).toEqual([
      ...[0, 1, 2].map((i) => [`a-${i}`, 'a']),
      ...[0, 1].map((i) => [`b-${i}`, 'b']),
      ['c', 'c'],
    ]);
    const [a, b] = parts.map((part) => part.partition.likeness!);
    for (const of of ['popularityCosine', 'itemOverlap'] as const) {
      const found = joined.likeness![of];
      expect(found.slice(0, 3).map((row) => row.slice(0, 3))).toEqual(a![of]);
      expect(found.slice(3, 5).map((row) => row.slice(3, 5))).toEqual(b![of]);
      expect(found[5]).toEqual([0, 0, 0, 0, 0, 1]);
      expect(found[0]!.slice(3)).toEqual([0, 0, 0]);
    }
    const cosines = [
      ...[
        [0, 1],
        [0, 2],
        [1, 2],
      ].map(([i, j]) => a!.popularityCosine[i!]![j!]!),
      b!.popularityCosine[0]![1]!,
    ];
    expect(joined.popularityCosine).toBeCloseTo(cosines.reduce((x, y) => x + y) / 4, 12);
  });

  it('finds tastes by K-means: clients share no item', () => {
    const data = tastes(90);
    const found = partition(data, { method: 'kmeans', clients: 3, seed: 1, bpr });
    const tasteOf = new Map(data.users.map(({ id, attributes }) => [id, attributes.taste]));
    for (const { users } of found.clients) expect(new Set(users.map((id) => tasteOf.get(id))).size).toBe(1);
    expect(found.popularityCosine).toBe(0);
  });

  it('at random says nothing: clients like the same items, and are of equal size', () => {
    const found = partition(tastes(901), { method: 'random', clients: 5, seed: 1 });
    expect(found.popularityCosine).toBeGreaterThan(0.95);
    const sizes = found.clients.map(({ users }) => users.length);
    expect(Math.max(...sizes) - Math.min(...sizes)).toBeLessThanOrEqual(1);
  });

  it('is the same for the same seed, and survives JSON', () => {
    const data = tastes(60);
    for (const method of ['kmeans', 'random'] as const) {
      const of = (seed: number) => partition(data, { method, clients: 4, seed, bpr });
      expect(of(3)).toEqual(of(3));
      expect(of(3).clients).not.toEqual(of(4).clients);
      expect(JSON.parse(JSON.stringify(of(3)))).toEqual(of(3));
    }
  });

  it('by a column makes a client of every value, named so that it can be a folder', () => {
    const found = partition(tastes(9), { method: 'column', column: 'taste', clients: 0, seed: 1 });
    expect(found.clients).toEqual([
      { name: 'no-0', users: ['user 0', 'user 3', 'user 6'] },
      { name: 'no-1', users: ['user 1', 'user 4', 'user 7'] },
      { name: 'no-2', users: ['user 2', 'user 5', 'user 8'] },
    ]);
  });

  it('names a client that begins with a letter or a digit, whatever the value', () => {
    const users = ['<18', ' ', '18-24'].map((age, i) => user(String(i), { train: [0], attributes: { age } }));
    const found = partition(dataset(users, 1), { method: 'column', column: 'age', clients: 0, seed: 1 });
    expect(found.clients.map(({ name }) => name).sort()).toEqual(['18', '18-24', 'none']);
  });

  it('refuses impossible requests', () => {
    const data = tastes(4);
    expect(() => partition(data, { method: 'random', clients: 5, seed: 1 })).toThrow('5 clients for 4 users');
    expect(() => partition(data, { method: 'kmeans', clients: 0, seed: 1 })).toThrow('0 clients for 4 users');
    const byAge = { method: 'column', column: 'age', clients: 0, seed: 1 } as const;
    expect(() => partition(data, byAge)).toThrow('4 of 4 users have no "age"; columns: taste');
    const alike = dataset(
      [
        user('a', { train: [0], attributes: { age: '<18' } }),
        user('b', { train: [0], attributes: { age: '>18' } }),
      ],
      1,
    );
    expect(() => partition(alike, byAge)).toThrow('<18, >18 differ only in punctuation');
  });
});

describe('Bayesian personalised ranking', () => {
  it('learns from training items only', () => {
    const train = tastes(12).users;
    const withMore = train.map((u): User => ({ ...u, validation: [59], test: [58] }));
    const vectors = (users: readonly User[]) => userVectors(users, 60, { ...bpr, seed: 1 });
    expect(vectors(withMore)).toEqual(vectors(train));
  });

  it('reports every epoch', () => {
    const epochs: number[] = [];
    userVectors(tastes(6).users, 60, { ...bpr, epochs: 3, seed: 1, onEpoch: (done) => epochs.push(done) });
    expect(epochs).toEqual([1, 2, 3]);
  });
});

const games = sharedData('games');
it.skipIf(!games)(
  'K-means on the full Games data gives clients of different tastes',
  { timeout: 300_000 },
  async () => {
    const output = `${temporaryFolder()}/games`;
    const [interactions, items] = [`${games}/sequences.tsv`, `${games}/items.tsv`];
    await importDataset({ interactions, items, columns: { sequence: 'items' }, output });
    const data = await readDataset(output);
    const found = partition(data, { method: 'kmeans', clients: 5, seed: 1 });
    expect(found.popularityCosine).toBeLessThan(0.3);
    expect(Math.min(...found.clients.map(({ users }) => users.length))).toBeGreaterThan(2000);
    expect(partition(data, { method: 'random', clients: 5, seed: 1 }).popularityCosine).toBeGreaterThan(0.85);
  },
);
