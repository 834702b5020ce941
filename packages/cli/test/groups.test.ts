// Organisations with users and a catalogue each: ids mean nothing outside their group.
import { readFile, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { createKeys, writeKeys } from '@fellrec/network';
import { floorMetrics, importDataset, meanMetrics, readDataset, testSamples } from '@fellrec/recsys';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import type { Comparison } from '../src/compare/result.ts';
import { loadConfig } from '../src/config.ts';
import { join as joinRun } from '../src/join.ts';
import type { RunResult } from '../src/train.ts';
import { rowsOf } from './markup.ts';
import { writeTinyEncoder } from './recformer-config.ts';
import { servedHere } from './served.ts';
import { embeddedModel, fellrec, filesOf, readJson, type Workspace, workspace } from './shared.ts';

vi.setConfig({ testTimeout: 120_000, hookTimeout: 120_000 });

const shops = ['nintendo', 'playstation'] as const;

let place: Workspace;
let result: RunResult;
const folder = (shop: string) => join(place.folder, shop);
const groups = (...more: object[]) => [
  ...shops.map((name) => ({ name, path: name, partition: { method: 'random', clients: 2 } })),
  ...more,
];

const sampleOf = (shop: string, file: string) =>
  fileURLToPath(new URL(`../quickstart/shops/${shop}/${file}`, import.meta.url));
const words = (shop: string) => ({ items: `${shop} things`, item: `${shop} thing`, used: 'bought' });

/** A configuration whose data are the shops. */
async function config(settings: object = {}): Promise<string> {
  const base = {
    runs: join(place.folder, 'runs'),
    cache: join(place.folder, 'cache'),
    threads: 1,
    groups: groups(),
    data: { trainSamples: 12, validationSamples: 6, testUsers: 20 },
    model: { path: embeddedModel, maxTokens: 288 },
    lora: { rank: 2, alpha: 4 },
    training: { batchSize: 4, learningRate: 0.003 },
    generation: { beams: 1, maxNewTokens: 8, batch: 4 },
    federation: { rounds: 2 },
  };
  const file = join(place.folder, `groups-${files++}.json`);
  await writeFile(file, JSON.stringify({ ...base, ...settings }));
  return file;
}
let files = 0;

beforeAll(async () => {
  place = await workspace();
  for (const shop of shops) {
    await importDataset({
      interactions: sampleOf(shop, 'sequences.tsv'),
      items: sampleOf(shop, 'items.tsv'),
      columns: { sequence: 'items' },
      output: folder(shop),
    });
  }
  const { stdout, stderr, code } = await fellrec('train', '-c', await config({ name: 'shops' }), '--json');
  expect(stderr).not.toContain('fellrec:');
  expect(code).toBe(0);
  result = JSON.parse(stdout);
});
afterAll(() => place?.remove());

test('each shop draws its own samples, is ranked over its own catalogue, and has floors of its own', async () => {
  expect(result.clients.map(({ client }) => client)).toEqual([
    'nintendo-0',
    'nintendo-1',
    'playstation-0',
    'playstation-1',
  ]);
  for (const [i, shop] of shops.entries()) {
    const { catalogue, users } = await readDataset(folder(shop));
    const found = result.groups![i]!;
    expect(found).toMatchObject({ group: shop, items: catalogue.items.length, testUsers: 20 });
    const clients = result.clients.filter(({ client }) => client.startsWith(shop));
    expect(clients.reduce((sum, { trainSamples }) => sum + trainSamples, 0)).toBe(12);
    const tested = await testedUsers('shops');
    const own = users.filter(({ id }) => tested.has(`${shop}/${id}`)).flatMap(testSamples);
    const floor = floorMetrics('popularity', own, users, catalogue.items.length, { seed: 1 });
    expect(found.floors.popularity!['ndcg@20']).toBeCloseTo(meanMetrics(floor)['ndcg@20']!, 12);
  }
  const [a, b] = result.groups!;
  expect(result.pooled['recall@20']).toBeCloseTo(
    (a!.metrics['recall@20']! + b!.metrics['recall@20']!) / 2,
    12,
  );
});

test('a client recommends what its own shop sells, though ids are the same elsewhere', async () => {
  const [nintendo, playstation] = await Promise.all(shops.map((shop) => readDataset(folder(shop))));
  const [first] = nintendo!.catalogue.items;
  const same = playstation!.catalogue.items.find(({ id }) => id === first!.id)!;
  expect(same.title).not.toBe(first!.title);
  for (const [client, { catalogue }] of [
    ['nintendo-1', nintendo!],
    ['playstation-0', playstation!],
  ] as const) {
    const asked = ['--client', client, '--history', first!.id, '-k', '5', '--json'];
    const { stdout } = await fellrec('recommend', place.run('shops'), ...asked);
    const { items } = JSON.parse(stdout) as { items: { id: string; title: string }[] };
    const titles = new Map(catalogue.items.map(({ id, title }) => [id, title]));
    expect(items.map(({ id }) => titles.get(id))).toEqual(items.map(({ title }) => title));
    expect(items).toHaveLength(5);
  }
  const elsewhere = ['--client', 'nintendo-1', '--history', same.title, '-k', '5'];
  const { stderr } = await fellrec('recommend', place.run('shops'), ...elsewhere);
  expect(stderr).toContain(`items has the id or title "${same.title}"`);
});

test('goes on, and is evaluated again, with the same numbers', async () => {
  const parts = (rounds: number) => config({ name: 'parts', federation: { rounds } });
  await fellrec('train', '-c', await parts(1));
  const { stdout } = await fellrec('train', '-c', await parts(2), '--resume', '--json');
  expect(JSON.parse(stdout).groups).toEqual(result.groups);
  const again = await fellrec('evaluate', place.run('shops'), '--json');
  expect(JSON.parse(again.stdout).groups).toEqual(result.groups);
  const report = await readFile(join(place.run('shops'), 'report.html'), 'utf8');
  expect(report).toContain('Groups, each over its own catalogue');
});

test('methods and rankings are compared per shop', async () => {
  const file = await config({ name: 'both', federation: { rounds: 1 } });
  const methods = ['--methods', 'fellrec,fedavg,popularity,cooccurrence,centralized'];
  const { stdout, stderr } = await fellrec('compare', '-c', file, ...methods, '--json');
  const found = JSON.parse(stdout) as Comparison;
  const of = (name: string) => found.methods.find(({ method }) => method === name)!;
  expect(of('popularity').metrics['recall@10']).toBeCloseTo(result.floors.popularity!['recall@10']!, 12);
  expect(
    of('cooccurrence')
      .clients.map(({ testUsers }) => testUsers)
      .reduce((a, b) => a + b),
  ).toBe(40);
  expect(of('cooccurrence').users).toBe(40);
  expect(of('fellrec').clients.map(({ client }) => client)).toEqual(
    result.clients.map(({ client }) => client),
  );
  expect(
    of('popularity').groups!.map(({ group, users, metrics }) => [group, users, metrics['recall@10']]),
  ).toEqual(
    result.groups!.map(({ group, testUsers, floors }) => [group, testUsers, floors.popularity!['recall@10']]),
  );
  expect(of('fellrec').groups![1]!.against!['recall@10']!.users).toBe(20);
  const { stdout: text } = await fellrec('compare', '-c', file, ...methods);
  expect(text).toMatch(/^R@10 +nintendo +against fedavg, % +p +playstation/m);
  expect(stderr).toContain('centralized: the groups have catalogues of their own');
  expect(of('centralized').incomplete).toHaveLength(1);
});

test('remote shops end where shops in one process do', async () => {
  // All samples of few users: nothing is drawn, so that clients that draw for themselves have the same.
  const small = await Promise.all(
    shops.map(async (shop) => {
      const lines = (await readFile(sampleOf(shop, 'sequences.tsv'), 'utf8')).split('\n');
      const file = join(place.folder, `few-${shop}.tsv`);
      await writeFile(file, lines.slice(0, 7).join('\n'));
      const output = join(place.folder, `few-${shop}`);
      const columns = { sequence: 'items' };
      await importDataset({
        interactions: file,
        items: sampleOf(shop, 'items.tsv'),
        columns,
        kCore: 0,
        output,
      });
      return { name: shop, path: output, partition: { method: 'random', clients: 1 }, domain: words(shop) };
    }),
  );
  const settings = {
    data: {},
    domain: words('other'),
    generation: { beams: 1, maxNewTokens: 40, batch: 4 },
    // With statistics of the shop's own users, and a gamma of its own.
    ranking: { mode: 'constrained', beams: 4, inject: 'popularity' },
    federation: {
      rounds: 2,
      strategy: 'chosen',
      similarity: { form: 'relative' },
      candidates: ['fedavg', 'fellrec', 'groups', 'local'],
    },
  };
  const here = await config({ ...settings, name: 'here', groups: small });
  expect((await fellrec('train', '-c', here)).code).toBe(0);

  const keys = await createKeys({ clients: [...shops], hosts: ['127.0.0.1'], days: 1 });
  await writeKeys(join(place.folder, 'keys'), keys, { force: false });
  const key = (name: string) => join(place.folder, 'keys', name);
  const there = await config({ ...settings, name: 'there', groups: small });
  const remote = await loadConfig(there, [], { remote: true });
  const { served, address } = await servedHere(remote, key('tokens.json'));
  const joined = small.map(({ name, path, domain }) =>
    joinRun({
      server: address,
      token: key(`${name}.token`),
      data: path,
      model: embeddedModel,
      group: name,
      set: Object.entries(domain).map(([word, text]) => `domain.${word}=${text}`),
      activations: 'float32',
      cache: join(place.folder, 'cache'),
      threads: 1,
      giveUpSeconds: 60,
      output: join(place.folder, 'kept', name),
    }),
  );
  await Promise.all(joined);
  await served;
  const best = (name: string) => filesOf(join(place.run(name), 'best'));
  expect(await best('there')).toEqual(await best('here'));
  const metrics = async (name: string) =>
    ((await readJson(place.run(name), 'result.json')) as RunResult).clients.map((client) => client.metrics);
  expect(await metrics('there')).toEqual(await metrics('here'));
  const { cosineMeans, mixing } = await readJson(place.run('there'), 'rounds', '0001', 'round.json');
  expect(cosineMeans.across).toBeTypeOf('number');
  expect(mixing.chosen).toHaveLength(2);
  expect(Object.keys(mixing.candidateLosses[0])).toEqual(['fedavg', 'fellrec', 'groups', 'local']);
  // Of each shop as here, but for what only the shop knows.
  const [of, elsewhere] = await Promise.all(
    ['here', 'there'].map(async (name) => (await readJson(place.run(name), 'result.json')) as RunResult),
  );
  expect(elsewhere!.groups).toEqual(
    of!.groups!.map(({ group, testUsers, metrics }) => ({ group, testUsers, metrics, floors: {} })),
  );
  const [first] = elsewhere!.mixing;
  expect(first!.cosine).toBe(of!.mixing[0]!.cosine);
  expect(first!.candidateSeconds).toBeGreaterThan(0);
  expect(Object.keys(first!.clients)).toEqual([...shops]);
  // With what a shop keeps it recommends as the run in one process does.
  for (const { name, path } of small) {
    const [first, , third] = (await readDataset(path)).catalogue.items;
    const asked = ['--history', first!.id, third!.title, '-k', '5', '--set', 'ranking.gamma=3', '--json'];
    const kept = await fellrec('recommend', join(place.folder, 'kept', name), ...asked);
    expect(kept.code, kept.stderr).toBe(0);
    expect(JSON.parse(kept.stdout).items).toHaveLength(5);
    const one = await fellrec('recommend', place.run('here'), '--client', name, ...asked);
    expect(kept.stdout).toBe(one.stdout);
  }
  const report = join(place.folder, 'there.html');
  expect((await fellrec('report', place.run('there'), '-o', report)).code).toBe(0);
  const markup = await readFile(report, 'utf8');
  expect(rowsOf(markup, 'Groups, each').map(([group]) => group)).toEqual(['', ...shops]);
  expect(rowsOf(markup, 'Clients (remote)').map(([client, group]) => [client, group])).toContainEqual([
    'nintendo',
    'nintendo',
  ]);
});

test('averages inside groups need clients that say theirs', async () => {
  await expect(
    loadConfig(
      await config({ name: 'leaks', federation: { strategy: 'fedamp', fedamp: { alpha: 5, sigma: 2 } } }),
      [],
      {
        remote: true,
      },
    ),
  ).rejects.toThrow("with alpha above sigma a client's mixture can be another's adapter as it is");
  const keys = await createKeys({ clients: ['alone'], hosts: ['127.0.0.1'], days: 1 });
  await writeKeys(join(place.folder, 'alone'), keys, { force: false });
  const remote = await loadConfig(await config({ name: 'nowhere', federation: { strategy: 'groups' } }), [], {
    remote: true,
  });
  const stop = new AbortController();
  const { served, address } = await servedHere(remote, join(place.folder, 'alone', 'tokens.json'), {
    signal: stop.signal,
  });
  const joined = joinRun({
    server: address,
    token: join(place.folder, 'alone', 'alone.token'),
    data: folder('nintendo'),
    model: embeddedModel,
    activations: 'float32',
    cache: join(place.folder, 'cache'),
    threads: 1,
    giveUpSeconds: 1,
  });
  await expect(joined).rejects.toThrow(
    'averages are inside groups, and this client said none; join with --group',
  );
  stop.abort();
  await expect(served).rejects.toThrow('serve: stopped');
});

test('the example of the documentation trains', async () => {
  const example = fileURLToPath(new URL('../../../configs/shops.yaml', import.meta.url));
  const { stdout, stderr, code } = await fellrec(
    ...['train', '-c', example, '--json', '--set', 'name=example', 'threads=1', 'federation.rounds=1'],
    ...shops.map((shop, i) => `groups.${i}.path=${folder(shop)}`),
    ...['data.trainSamples=8', 'data.validationSamples=4', 'data.testUsers=4'],
    ...[`runs=${join(place.folder, 'runs')}`, `cache=${join(place.folder, 'cache')}`],
  );
  expect(code, stderr).toBe(0);
  const found = JSON.parse(stdout) as RunResult;
  expect(found.groups!.map(({ group, testUsers }) => [group, testUsers])).toEqual(
    shops.map((shop) => [shop, 4]),
  );
  expect(found.mixing[0]!.cosineMeans!.within).toBeTypeOf('number');
  expect(stderr).toMatch(
    /cosines -?\d\.\d{3} within groups, -?\d\.\d{3} across; a mixture is of \d\.\d clients in effect/,
  );
});

test('the encoder of texts has shops too, and every strategy goes through a round with them', async () => {
  const encoder = await writeTinyEncoder(join(place.folder, 'encoder'));
  for (const strategy of ['groups', 'fedamp', 'fedfomo', 'clustered', 'chosen', 'ditto']) {
    const file = await config({
      name: `encoder-${strategy}`,
      recommender: 'recformer',
      model: { path: encoder, maxTokens: 128 },
      groups: groups().map((group) => ({ ...group, attributes: ['title'] })),
      federation: { rounds: 2, strategy },
    });
    const { stdout, stderr, code } = await fellrec('train', '-c', file, '--json');
    expect(code, stderr).toBe(0);
    const trained = JSON.parse(stdout) as RunResult;
    expect(trained.groups!.map(({ testUsers }) => testUsers)).toEqual([20, 20]);
    expect(trained.mixing).toHaveLength(2);
  }
  const without = await config({
    name: 'one',
    groups: undefined,
    data: { path: 'nintendo' },
    federation: { strategy: 'groups' },
  });
  const refused = await fellrec('train', '-c', without);
  expect(refused.code).toBe(2);
  expect(refused.stderr).toContain('averages inside groups need groups');
});

test('paths of groups start from the configuration, those that are set from the working directory', async () => {
  const file = await config({ name: 'paths' });
  const { groups: read } = await loadConfig(file, ['groups.1.path=elsewhere']);
  expect(read!.map(({ path }) => path)).toEqual([folder('nintendo'), resolve('elsewhere')]);
  const one = await place.config({});
  for (const setting of ['data.path=elsewhere', 'data={path: elsewhere}'])
    expect((await loadConfig(one, [setting])).data.path).toBe(resolve('elsewhere'));
});

test("a client's own settings are its words only", async () => {
  const { stderr, code } = await fellrec(
    ...['join', 'http://127.0.0.1:1', '--token', 'none', '--data', 'none', '--model', embeddedModel],
    ...['--set', 'training.learningRate=9'],
  );
  expect(code).toBe(2);
  expect(stderr).toContain("everything else is the server's");
});

test('a share is so many users, others with another seed', async () => {
  const shared = groups().map((group) => ({ ...group, share: 0.25 }));
  const users = async (seed: number) => {
    const name = `share-${seed}`;
    const { stdout } = await fellrec(
      'train',
      '-c',
      await config({ name, seed, groups: shared, federation: { rounds: 1 } }),
      '--json',
    );
    expect((JSON.parse(stdout) as RunResult).groups!.map((group) => group.users)).toEqual([49, 100]);
    const { clients } = (await readJson(place.run(name), 'clients.json')) as {
      clients: { users: string[] }[];
    };
    return clients.flatMap((client) => client.users).sort();
  };
  expect(await users(1)).not.toEqual(await users(2));
});

test.each([
  [{ data: { path: 'nintendo' } }, 'the groups have data folders of their own'],
  [{ groups: undefined }, 'the data folder is missing'],
  [
    {
      groups: [
        { name: 'a', path: 'nintendo' },
        { name: 'a', path: 'playstation' },
      ],
    },
    'a is there twice',
  ],
  [
    { groups: [{ name: 'a', path: 'nintendo', partition: { method: 'column', column: 'town' } }] },
    'groups: a: partition: ',
  ],
  [{ groups: [{ name: '-a', path: 'nintendo' }] }, 'without "-" at the start'],
  [{ groups: [{ name: 'a/b', path: 'nintendo' }] }, '1 to 64 letters, digits, "-" and "_"'],
  [{ groups: [{ name: 'a', path: 'nintendo', share: 0.001 }] }, 'of the 197 users of a is none'],
  [
    {
      groups: [
        { name: 'a', path: 'nintendo' },
        { name: 'b', path: '../'.repeat(9) },
      ],
    },
    'is no data folder',
  ],
  [
    {
      groups: [
        { name: 'a', path: 'nintendo' },
        { name: 'b', path: './nintendo' },
      ],
    },
    'hold the same users with the same items',
  ],
  [
    {
      groups: [
        { name: 'a-1', path: 'nintendo', partition: { method: 'random', clients: 1 } },
        { name: 'a', path: 'playstation', partition: { method: 'random', clients: 2 } },
      ],
    },
    'two clients would be called a-1',
  ],
])('refuses %j', async (settings, said) => {
  const { stderr, code } = await fellrec('train', '-c', await config({ name: 'refused', ...settings }));
  expect(code).not.toBe(0);
  expect(stderr).toContain(said);
});

test('the same users are known by the ids of their items, whatever these are called', async () => {
  const titles = (await readFile(sampleOf('nintendo', 'items.tsv'), 'utf8')).replace('Zelda', 'Elda');
  const items = join(place.folder, 'renamed.tsv');
  await writeFile(items, titles);
  const interactions = sampleOf('nintendo', 'sequences.tsv');
  await importDataset({ interactions, items, columns: { sequence: 'items' }, output: folder('renamed') });
  const both = ['nintendo', 'renamed'].map((path) => ({ name: path, path }));
  const { stderr, code } = await fellrec('train', '-c', await config({ name: 'twice', groups: both }));
  expect(code).toBe(2);
  expect(stderr).toContain('hold the same users with the same items');
});

async function testedUsers(name: string): Promise<ReadonlySet<string>> {
  const { users } = (await readJson(place.run(name), 'test-users.json')) as { users: [string][] };
  return new Set(users.map(([user]) => user));
}
