// Runs that end before their time: killed, out of disk, numerically lost; and what --resume and --force do.
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, onTestFinished, test, vi } from 'vitest';
import { fellrec, fellrecKilled, filesOf, readJson, type Workspace, workspace } from './shared.ts';

// Each test trains several times, beside other tests.
vi.setConfig({ testTimeout: 300_000, hookTimeout: 300_000 });

let place: Workspace;
let config: string;

beforeAll(async () => {
  place = await workspace();
  config = await place.config({ name: 'whole' });
  expect((await fellrec('train', '-c', config)).stderr).not.toContain('fellrec:');
});
afterAll(() => place?.remove());

/** A run's adapters byte by byte, its records and result apart from what the clock and the run's name decide. */
async function comparable(name: string): Promise<unknown> {
  const adapters = { ...(await filesOf(join(place.run(name), 'best'))) };
  const records: unknown[] = [];
  for (const [file, content] of Object.entries(await filesOf(join(place.run(name), 'rounds'))))
    if (file.endsWith('round.json')) {
      const { seconds: _, ...record } = JSON.parse(content);
      records.push(record);
    } else adapters[`rounds/${file}`] = content;
  const { pooled, clients, rounds, spread } = await readJson(place.run(name), 'result.json');
  const events = (await eventsOf(name)).map(({ type, round, client, loss }) => ({
    type,
    round,
    client,
    loss,
  }));
  return {
    adapters,
    records,
    pooled,
    rounds,
    spread,
    metrics: clients.map((c: { metrics: object }) => c.metrics),
    events,
  };
}

const eventsOf = async (name: string): Promise<Record<string, unknown>[]> =>
  readFileSync(join(place.run(name), 'events.jsonl'), 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line));

test('a run killed four times ends as one that nobody killed', async () => {
  const events = join(place.run('killed'), 'events.jsonl');
  const points: [name: string, reached: (stderr: string) => boolean][] = [
    ['the first client has trained', (stderr) => /round 1\n {2}client-0: loss/.test(stderr)],
    ['the second round is under way', (stderr) => /round 2\n {2}client-0: loss/.test(stderr)],
    [
      'the end of the second round is in events.jsonl',
      () => existsSync(events) && readFileSync(events, 'utf8').includes('"round-finished","round":1,'),
    ],
    ['the final evaluation is under way', (stderr) => stderr.includes('test users')],
  ];
  const argv = ['train', '-c', config, '--set', 'name=killed'];
  for (const [i, [name, reached]] of points.entries()) {
    const killed = await fellrecKilled(i === 0 ? argv : [...argv, '--resume'], reached);
    expect(killed.signal, `${name}: ${killed.stderr}`).toBe('SIGKILL');
    expect(existsSync(join(place.run('killed'), 'result.json')), name).toBe(false);
    if (i > 0) continue;
    for (const command of [['evaluate'], ['recommend', '--client', 'client-0', '--history', '0']]) {
      const { code, stderr } = await fellrec(command[0]!, place.run('killed'), ...command.slice(1));
      expect(stderr).toMatch(/fellrec: run: nothing is trained in .*killed yet; go on with --resume\n$/);
      expect(code).toBe(1);
    }
  }
  const { code, stderr } = await fellrec(...argv, '--resume');
  expect({ code, trained: stderr.includes('client-0: loss') }).toEqual({ code: 0, trained: false });
  expect(await comparable('killed')).toEqual(await comparable('whole'));
  // What it took is that of all calls.
  const rounds = ['0000', '0001'].map((round) =>
    readJson(place.run('killed'), 'rounds', round, 'round.json'),
  );
  const total = (await Promise.all(rounds)).reduce((sum, { seconds }) => sum + seconds.total, 0);
  expect((await readJson(place.run('killed'), 'result.json')).seconds).toBeGreaterThan(total);
});

test('Ctrl-C says how to go on', async () => {
  const argv = ['train', '-c', config, '--set', 'name=interrupted'];
  const stopped = await fellrecKilled(argv, (stderr) => stderr.includes('round 1'), 'SIGINT');
  expect(stopped.code).toBe(1);
  expect(stopped.stderr).toMatch(
    /\nfellrec: train: stopped; complete rounds are safe, go on with --resume\n$/,
  );
  const { code, stderr } = await fellrec(...argv, '--resume');
  expect(code, stderr).toBe(0);
});

test('a run that is there is neither overwritten nor resumed with other settings', async () => {
  const before = await filesOf(place.run('whole'));
  const again = await fellrec('train', '-c', config);
  expect(again.stderr).toMatch(/fellrec: run: .*whole exists; .*\(--resume\).*\(--force\)/);
  expect(again.code).toBe(1);
  const changes = ['training.learningRate=0.1', 'lora.rank=4', 'data.trainSamples=11'];
  const changed = await fellrec('train', '-c', config, '--resume', '--set', ...changes);
  expect(changed.stderr).toContain('was made with other settings');
  for (const change of changes) expect(changed.stderr).toContain(change.split('=')[0]);
  expect(changed.stderr).not.toContain('batchSize');
  expect(changed.code).toBe(1);
  expect(await filesOf(place.run('whole'))).toEqual(before);
});

test('--resume needs a run, and evaluate and recommend do', async () => {
  const resumed = await fellrec('train', '-c', config, '--set', 'name=nothing', '--resume');
  expect(resumed.stderr).toMatch(
    /fellrec: run: .*nothing is no run that can go on .*; start it without --resume/,
  );
  expect(resumed.code).toBe(1);
  expect(existsSync(place.run('nothing'))).toBe(false);
  for (const argv of [['evaluate'], ['recommend', '--client', 'client-0', '--history', '0']]) {
    const { code, stdout, stderr } = await fellrec(argv[0]!, place.folder, ...argv.slice(1));
    expect(stderr).toBe(`fellrec: run: ${place.folder} is no run (it has no config.json)\n`);
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
  }
});

test('--force replaces a run, more rounds lengthen it', async () => {
  const argv = ['train', '-c', config, '--set', 'name=longer', 'data.testUsers=1', 'federation.rounds=1'];
  await fellrec(...argv);
  const first = await filesOf(join(place.run('longer'), 'rounds'));
  const replaced = await fellrec(...argv, 'seed=5', '--force');
  expect(replaced.code).toBe(0);
  const second = await filesOf(join(place.run('longer'), 'rounds'));
  expect(Object.keys(second)).toEqual(Object.keys(first));
  const adapter = '0000/client-0/adapter_model.safetensors';
  expect(second[adapter]).not.toBe(first[adapter]);
  const longer = await fellrec(...argv, 'seed=5', 'federation.rounds=2', '--resume');
  expect(longer.code).toBe(0);
  expect((await filesOf(join(place.run('longer'), 'rounds')))[adapter]).toBe(second[adapter]);
  expect(Object.keys(await filesOf(join(place.run('longer'), 'rounds')))).toContain('0001/round.json');
  expect(await readJson(place.run('longer'), 'config.json')).toMatchObject({ federation: { rounds: 2 } });
  const whole = await filesOf(place.run('longer'));
  const shorter = await fellrec(...argv, 'seed=5', '--resume');
  expect(shorter.stderr).toContain('longer has 2 rounds, 1 are asked for; take federation.rounds=2 or more');
  expect(shorter.code).toBe(1);
  expect(await filesOf(place.run('longer'))).toEqual(whole);
});

test('a loss that is no number stops the run and names client, round and step', async () => {
  const settings = { name: 'lost', data: { testUsers: 1 } };
  const calm = await place.config({ ...settings, federation: { rounds: 1 } });
  expect((await fellrec('train', '-c', calm)).code).toBe(0);
  const before = await filesOf(place.run('lost'));
  // One round with a sane rate, the next with a wild one: as the run's own configuration says from here on.
  const stored = await readJson(place.run('lost'), 'config.json');
  stored.training.learningRate = 1e30;
  await writeFile(join(place.run('lost'), 'config.json'), JSON.stringify(stored));
  const wild = await place.config({ ...settings, training: { learningRate: 1e30 } });
  const { code, stdout, stderr } = await fellrec('train', '-c', wild, '--resume');
  expect(stderr).toMatch(
    /fellrec: round 2, client-0: training failed: .*loss is NaN at step 2 of \d+; lower the learning rate\n$/,
  );
  expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
  const after = await filesOf(place.run('lost'));
  expect(Object.keys(after)).toEqual(Object.keys(before));
  for (const name of Object.keys(before).filter((name) => /^(rounds|best)/.test(name)))
    expect(after[name], name).toBe(before[name]);
});

test('a full disk stops the run, which goes on once there is room', async (context) => {
  const runs = join(place.folder, 'small-disk');
  await mkdir(runs);
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=96k', 'tmpfs', runs], { stdio: 'ignore' });
  } catch {
    context.skip('cannot mount a file system here');
  }
  onTestFinished(() => void execFileSync('umount', [runs]));
  const argv = ['train', '-c', config, '--set', `runs=${runs}`, 'name=full'];
  const { code, stderr } = await fellrec(...argv);
  expect(stderr).toMatch(
    /fellrec: run: cannot write (round \d|events\.jsonl) in .*full: no space is left on the disk\. .*--resume/,
  );
  expect(code).toBe(1);
  execFileSync('mount', ['-o', 'remount,size=4m', runs]);
  expect((await fellrec(...argv, '--resume')).code).toBe(0);
  expect(await filesOf(join(runs, 'full', 'best'))).toEqual(await filesOf(join(place.run('whole'), 'best')));
});
