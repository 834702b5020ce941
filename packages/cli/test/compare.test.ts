// `fellrec compare` on the embedded sample: what is missing is trained, once.
import { mkdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import type { Comparison } from '../src/compare/result.ts';
import { fellrec, readJson, type Workspace, workspace } from './shared.ts';

vi.setConfig({ testTimeout: 120_000, hookTimeout: 120_000 });

let place: Workspace;
let config: string;
let found: Comparison;
const methods = 'fellrec,fedavg,cooccurrence';
const compare = (...more: string[]) => fellrec('compare', '-c', config, '--methods', methods, ...more);

beforeAll(async () => {
  place = await workspace();
  config = await place.config({ name: 'both', data: { testUsers: 30 } });
  const { stdout, stderr, code } = await compare('--json');
  expect(stderr).not.toContain('fellrec:');
  expect(code).toBe(0);
  found = JSON.parse(stdout);
});
afterAll(() => place?.remove());

const method = (name: string) => found.methods.find((one) => one.method === name)!;

test('methods beside each other, as their runs say', async () => {
  expect(found).toMatchObject({ baseline: 'fedavg', seeds: [1], data: { name: 'data' } });
  for (const name of ['fellrec', 'fedavg']) {
    const result = await readJson(place.run(`both/${name}-1`), 'result.json');
    const { pooled, spread } = result as {
      pooled: Record<string, number>;
      spread: { worst: { value: number } };
    };
    expect(method(name).metrics['recall@10']).toBeCloseTo(pooled['recall@10']!, 12);
    expect(method(name).spread!.worst).toBeCloseTo(spread.worst.value, 12);
    expect(method(name)).toMatchObject({ users: 30, incomplete: [] });
    expect(method(name).bytes).toBeGreaterThan(0);
  }
  const { difference } = method('cooccurrence').against!['recall@10']!;
  expect(difference.mean).toBeCloseTo(
    method('cooccurrence').metrics['recall@10']! - method('fedavg').metrics['recall@10']!,
    12,
  );
  expect(method('cooccurrence').clients.map(({ client }) => client)).toEqual(['client-0', 'client-1']);
});

test('computes nothing twice', async () => {
  const file = join(place.run('both/fellrec-1'), 'rounds', '0001', 'round.json');
  const { mtimeMs } = await stat(file);
  const again = await compare('--csv');
  expect(again.code).toBe(0);
  expect(again.stderr).not.toContain('==');
  expect((await stat(file)).mtimeMs).toBe(mtimeMs);
  expect(again.stdout.split('\n')).toHaveLength(1 + 3 + 1);
});

test('goes on where a run was stopped, with the same numbers', async () => {
  const run = place.run('both/fellrec-1');
  await rm(join(run, 'result.json'));
  await rm(join(run, 'rounds', '0001'), { recursive: true });
  const shown = await fellrec('compare', run, place.run('both/fedavg-1'), '--json');
  expect(shown.code).toBe(1);
  expect(JSON.parse(shown.stdout).methods[0]).toMatchObject({
    method: 'fellrec',
    incomplete: [{ seed: 1, missing: expect.stringContaining('1 of 2 rounds are done') }],
    users: 0,
  });
  // One that was stopped in its first round has none.
  const young = place.run('both/fedavg-1');
  await rm(join(young, 'result.json'));
  await rm(join(young, 'rounds'), { recursive: true });
  await mkdir(join(young, 'rounds'));
  const { stdout, stderr } = await compare('--json');
  expect(stderr).toContain('== fellrec, seed 1');
  expect(stderr).toContain('== fedavg, seed 1');
  expect(stderr).not.toContain('== cooccurrence');
  const again: Comparison = JSON.parse(stdout);
  const numbers = ({ methods }: Comparison) => methods.map(({ metrics, against }) => ({ metrics, against }));
  expect(numbers(again)).toEqual(numbers(found));
});

test('a method that fails is shown, and the others go on', async () => {
  const taken = place.run('failing/fedavg-1');
  await mkdir(taken, { recursive: true });
  await writeFile(join(taken, 'notes.txt'), 'mine');
  const { code, stdout, stderr } = await fellrec(
    ...['compare', '-c', config, '-s', 'name=failing', '--methods', 'fedavg,random', '--json'],
  );
  expect(code).toBe(1);
  expect(stderr).toContain('fedavg, seed 1, failed: run:');
  const [fedavg, random] = (JSON.parse(stdout) as Comparison).methods;
  expect(fedavg!.incomplete).toEqual([
    { seed: 1, missing: expect.stringContaining('holds other files (notes.txt)') },
  ]);
  expect(random!.metrics['recall@10']).toBeGreaterThanOrEqual(0);
});

test('bad input', async () => {
  const refused = async (message: string, ...args: string[]) => {
    const { code, stderr } = await fellrec('compare', ...args);
    expect(stderr).toContain(message);
    expect(code).toBe(2);
  };
  await refused(
    'unknown methods: "fedsgd"; known are fellrec, fedavg, fedprox',
    '-c',
    config,
    '--methods',
    'fedsgd',
  );
  await refused('--methods names local twice', '-c', config, '--methods', 'local,local');
  await refused('--seeds names 2 twice', '-c', config, '--seeds', '2,3,2');
  await refused('the baseline "ditto" is none of the methods', '-c', config, '--baseline', 'ditto');
  await refused('pass --config FILE to train what is missing, or folders of runs');
  await refused('--json and --csv: choose one form', '-c', config, '--json', '--csv');
  await refused(
    'compare: ditto:\nfederation.strategy: ditto needs two models',
    ...[
      '-c',
      config,
      '-s',
      'name=cut',
      'split.k=1',
      'split.adapters=all-layers',
      '--methods',
      'fedavg,ditto',
    ],
  );
  const nothing = await fellrec('compare', place.folder);
  expect(nothing.code).toBe(1);
  expect(nothing.stderr).toContain('is no run');
});

test('layers that are kept by name are no matter of rankings, and centralized has none of these clients', async () => {
  const split = { k: { 'client-0': 0, 'client-1': 2 } };
  const cut = await place.config({ name: 'cut', split });
  const { code, stdout, stderr } = await fellrec(
    'compare',
    '-c',
    cut,
    '--methods',
    'fedavg,random',
    '--json',
  );
  expect(code, stderr).toBe(0);
  expect((JSON.parse(stdout) as Comparison).methods.map(({ users }) => users)).toEqual([4, 4]);
  const central = await fellrec('compare', '-c', cut, '--methods', 'fedavg,centralized');
  expect(central.code).toBe(2);
  expect(central.stderr).toContain('split.k: centralized has one client, which none of these names is');
});

test('a damaged file of metrics says so', async () => {
  const file = join(place.run('both/fedavg-1'), 'test-users.json');
  const text = await readFile(file, 'utf8');
  await writeFile(file, text.slice(0, 40));
  const { code, stderr } = await fellrec('compare', place.run('both/fedavg-1'));
  expect(code).toBe(1);
  expect(stderr).toContain(`${file} is damaged`);
  await writeFile(file, text);
});
