// The main job, end to end: train, evaluate again, recommend.
import { mkdir, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { describeRun } from '../src/commands/train.ts';
import { loadConfig } from '../src/config.ts';
import { type RunResult, train } from '../src/train.ts';
import { fellrec, filesOf, items, readJson, scratch, type Workspace, workspace } from './shared.ts';

// Each test trains several times, beside other tests.
vi.setConfig({ testTimeout: 300_000, hookTimeout: 300_000 });

let place: Workspace;
let config: string;
let result: RunResult;
let trained: Awaited<ReturnType<typeof fellrec>>;

beforeAll(async () => {
  place = await workspace();
  config = await place.config();
  trained = await fellrec('train', '--config', config, '--json');
  result = JSON.parse(trained.stdout);
});
afterAll(() => place?.remove());

/** What does not depend on the clock and the folder. */
const outcome = ({ seconds: _, directory: __, name: ___, ...rest }: RunResult) => rest;

describe('train', () => {
  test('prints the result and nothing else on standard output, progress on standard error', () => {
    expect(trained.code).toBe(0);
    expect(trained.stderr).toMatch(
      /round 1\n {2}client-0: loss [\d.]+ on \d+ samples.*\n {2}client-1: .*\n {2}validation loss .*\nround 2\n/,
    );
    expect(trained.stderr).toContain('test users 100 %');
    expect(trained.stdout).toBe(`${JSON.stringify(result, undefined, 2)}\n`);
  });

  test('returns samples, losses and metrics per client and over all users', () => {
    expect(result).toMatchObject({
      name: 'tiny',
      strategy: 'fellrec',
      directory: place.run('tiny'),
      rounds: 2,
      clients: [{ client: 'client-0' }, { client: 'client-1' }],
    });
    const sum = (of: (client: RunResult['clients'][number]) => number) =>
      result.clients.reduce((n, client) => n + of(client), 0);
    expect(sum((c) => c.users!)).toBe(296);
    expect(sum((c) => c.trainSamples)).toBe(12);
    expect(sum((c) => c.testUsers)).toBe(4);
    for (const client of result.clients) {
      expect(client.firstLoss).toBeGreaterThan(0);
      expect(client.lastLoss).toBeLessThan(client.firstLoss!);
      expect([1, 2]).toContain(client.bestRound);
    }
    const metrics = [result.pooled, ...Object.values(result.floors)];
    for (const found of metrics)
      for (const name of ['recall@10', 'recall@20', 'ndcg@10', 'ndcg@20']) {
        expect(found[name]).toBeGreaterThanOrEqual(0);
        expect(found[name]).toBeLessThanOrEqual(1);
      }
    // The pooled mean weighs clients by their test users.
    expect(result.pooled['recall@20']).toBeCloseTo(
      sum((c) => c.testUsers * (c.metrics['recall@20'] ?? 0)) / 4,
      10,
    );
    expect(result.popularityCosine).toBeGreaterThan(0.5);
  });

  test('leaves the run in its folder', async () => {
    const files = Object.keys(await filesOf(place.run('tiny')));
    const adapters = (parent: string) =>
      ['client-0', 'client-1'].flatMap((client) =>
        ['adapter_config.json', 'adapter_model.safetensors'].map((file) => `${parent}/${client}/${file}`),
      );
    expect(files).toEqual(
      [
        'config.json',
        'clients.json',
        'events.jsonl',
        'report.html',
        'result.json',
        'rounds/0000/round.json',
        'rounds/0001/round.json',
        'test-users.json',
        ...adapters('rounds/0000'),
        ...adapters('rounds/0001'),
        ...adapters('best'),
        'best/client-0/best.json',
        'best/client-1/best.json',
      ].sort(),
    );
    expect(await readJson(place.run('tiny'), 'result.json')).toEqual(result);
    expect(await readJson(place.run('tiny'), 'config.json')).toMatchObject({
      seed: 1,
      lora: { rank: 2, dropout: 0.05 },
      dataset: { name: 'data' },
      modelHash: expect.stringMatching(/^[0-9a-f]{16,}$/),
    });
    const { clients } = await readJson(place.run('tiny'), 'clients.json');
    expect(new Set(clients.flatMap(({ users }: { users: string[] }) => users)).size).toBe(296);
    const round = await readJson(place.run('tiny'), 'rounds/0001/round.json');
    for (const row of round.mixing.matrix)
      expect(row.reduce((sum: number, weight: number) => sum + weight, 0)).toBeCloseTo(1, 10);
  });

  test('gives the same bytes and numbers for the same seed, others for another', async () => {
    const [same, other] = [
      await place.config({ name: 'same' }),
      await place.config({ name: 'other', seed: 2 }),
    ];
    const again = await train(await loadConfig(same));
    expect(outcome(again)).toEqual(outcome(result));
    const best = await filesOf(join(place.run('tiny'), 'best'));
    expect(await filesOf(join(place.run('same'), 'best'))).toEqual(best);
    await train(await loadConfig(other, ['federation.rounds=1']));
    const name = 'client-0/adapter_model.safetensors';
    expect((await filesOf(join(place.run('other'), 'best')))[name]).not.toBe(best[name]);
  });

  test('on a quantised base learns nearly, and not quite, the same', async () => {
    const base = ['train', '--config', config, '--json', '--set', 'model.base=int8', '--set', 'name=int8'];
    const { code, stdout, stderr } = await fellrec(...base);
    expect(code).toBe(0);
    expect(stderr).toContain('quantised base 100 %');
    const quantized: RunResult = JSON.parse(stdout);
    quantized.clients.forEach(({ firstLoss, lastLoss }, i) => {
      expect(firstLoss).not.toBe(result.clients[i]!.firstLoss);
      expect(Math.abs(firstLoss! - result.clients[i]!.firstLoss!)).toBeLessThan(0.05);
      expect(lastLoss).toBeLessThan(firstLoss!);
    });
    const resumed = await fellrec('train', '--config', config, '--set', 'name=int8', '--resume');
    expect(resumed.stderr).toContain('made with other settings: model.base');
  });

  test('takes settings from the command line', async () => {
    const { code, stdout, stderr } = await fellrec(
      ...['train', '-c', config, '--set', 'name=set', 'federation.rounds=1'],
      ...['-s', 'federation.strategy=local', '-s', 'lora.targetModules=[q_proj]', '-s', 'data.testUsers=1'],
    );
    expect(stderr).not.toContain('fellrec:');
    expect(code).toBe(0);
    expect(await readJson(place.run('set'), 'config.json')).toMatchObject({
      name: 'set',
      data: { testUsers: 1, trainSamples: 12 },
      lora: { targetModules: ['q_proj'] },
      federation: { strategy: 'local', rounds: 1 },
    });
    expect(await readdir(join(place.run('set'), 'rounds'))).toEqual(['0000']);
    expect(stdout).toMatch(/^client +users +train +test +first loss/);
    expect(stdout).toMatch(/\nall users +296 +12 +1 /);
    expect(stdout).toMatch(/\nlocal +\d\.\d{4}/);
    expect(stdout).toMatch(/\npopularity +\d\.\d{4}/);
    expect(stdout).toContain(`The run's files: ${place.run('set')}`);
  });

  test('goes on without a client that has no training sample, and shows it', async () => {
    // Clients by a column of users: one user alone in "west", none of whose samples is drawn.
    const folder = await scratch();
    const [a, b] = ['1 2 3 4 5 6 7 8'.split(' '), '8 7 6 5 4 3 2 1'.split(' ')];
    const users = Array.from({ length: 8 }, (_, u) => `u${u}`);
    await writeFile(
      join(folder, 'interactions.csv'),
      `user,item\n${users.flatMap((user, u) => (u === 7 ? ['1', '2'] : u % 2 ? a : b).map((item) => `${user},${item}`)).join('\n')}\n`,
    );
    await writeFile(
      join(folder, 'items.csv'),
      `item,title\n${a.map((item) => `${item},Game ${item}`).join('\n')}\n`,
    );
    await writeFile(
      join(folder, 'users.csv'),
      `user,region\n${users.map((user, u) => `${user},${u === 7 ? 'west' : 'east'}`).join('\n')}\n`,
    );
    await mkdir(join(folder, 'out'));
    const data = join(folder, 'out', 'data');
    const file = (name: string) => join(folder, `${name}.csv`);
    const imported = await fellrec(
      ...['data', 'import', '--interactions', file('interactions'), '--items', file('items')],
      ...['--users', file('users'), '--k-core', '0', '-o', data],
    );
    expect(imported.stderr).toBe('');
    const partition = { method: 'column', column: 'region' };
    const regions = await place.config({
      name: 'regions',
      data: { path: data },
      partition,
      federation: { rounds: 1 },
    });
    // The first item of a history is no training sample: the only one of u7 has to be not drawn.
    const { code, stdout, stderr } = await fellrec('train', '-c', regions, '-s', 'data.trainSamples=4');
    expect(stderr).toContain('west: has no training samples and takes no part');
    expect(code).toBe(0);
    expect(stdout).toMatch(/\neast +7 +4 +4 /);
    expect(stdout).toMatch(/\nwest +1 +0 +0 +- +- +- +- +- +-\n/);
  });

  test('counts the histories it shortens to fit the context', async () => {
    const settings = { name: 'long', model: { maxTokens: 480 }, federation: { rounds: 1 } };
    const { stdout, stderr } = await fellrec('train', '-c', await place.config(settings), '--json');
    expect(stderr).not.toContain('fellrec:');
    const shortened = ({ clients }: RunResult) => clients.reduce((n, { truncated }) => n + truncated!, 0);
    const long: RunResult = JSON.parse(stdout);
    expect(shortened(result)).toBeGreaterThan(shortened(long));
    expect(result.truncatedTests).toBeGreaterThan(long.truncatedTests);
    expect(describeRun(result)).toContain(
      `${shortened(result)} training samples and ${result.truncatedTests} test prompts were longer than the context`,
    );
  });
});

test('evaluate gives the metrics of train, and as text a table', async () => {
  const again = await fellrec('evaluate', place.run('tiny'), '--json');
  expect(again.code).toBe(0);
  const found: RunResult = JSON.parse(again.stdout);
  expect(found.pooled).toEqual(result.pooled);
  expect(found.clients.map(({ metrics }) => metrics)).toEqual(result.clients.map(({ metrics }) => metrics));
  const one = await fellrec('evaluate', place.run('tiny'), '--test-users', '1');
  expect(one.stdout).toMatch(/\nall users +296 +12 +1 /);
});

describe('recommend', () => {
  test('takes ids and titles, and ranks titles outside the history', async () => {
    const argv = ['recommend', place.run('tiny'), '--client', 'client-1', '-k', '3', '--json'];
    const { code, stdout } = await fellrec(...argv, '--history', '0', 'Titanfall 2 - PlayStation 4');
    expect(code).toBe(0);
    const { items: found, answer } = JSON.parse(stdout);
    expect(answer).toBeTypeOf('string');
    expect(found).toHaveLength(3);
    const scores = found.map(({ score }: { score: number }) => score);
    expect(scores).toEqual(scores.toSorted((a: number, b: number) => b - a));
    const text = Object.values(await filesOf(join(items, '..')))[1]!;
    for (const { id, title } of found) {
      expect(['0', '4']).not.toContain(id);
      expect(text).toContain(`${id}\t`);
      expect(title).not.toBe('');
    }
  });

  test.each([
    [
      ['--client', 'client-9', '--history', '0'],
      'the run has no client "client-9"; clients: client-0, client-1',
    ],
    [
      ['--client', 'client-0', '--history', '0', 'Tetris 99'],
      'none of the client\'s 269 items has the id or title "Tetris 99"',
    ],
  ])('%j says what is unknown', async (argv, message) => {
    const { code, stdout, stderr } = await fellrec('recommend', place.run('tiny'), ...argv);
    expect(stderr).toContain(`fellrec: recommend: ${message}`);
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
  });
});
