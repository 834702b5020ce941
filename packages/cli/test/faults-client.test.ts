// Clients that die, are late, come twice or have the wrong time, each a process of its own.
import { readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { readDataset } from '@fellrec/recsys';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test, vi } from 'vitest';
import { allDone, everyone, type RemotePlace, type RemoteRun, remotePlace, undisturbed } from './remote.ts';
import { fellrec, filesOf, readJson } from './shared.ts';

vi.setConfig({ testTimeout: 300_000, hookTimeout: 300_000 });

let place: RemotePlace;
let expected: unknown;
let run: RemoteRun;
let runs = 0;

beforeAll(async () => {
  place = await remotePlace();
  expected = await undisturbed(place);
});
afterAll(() => place?.remove());
beforeEach(() => {
  run = place.run(`run-${runs++}`);
});
afterEach(() => run.close());

test('clients that are killed in the middle of a training step, and started again', async () => {
  const server = await run.serve();
  const proxy = await run.proxy();
  // The gradients of half a step are on the server by then.
  const inStep = proxy.hold({ method: 'Backward', call: 2 });
  const north = run.join('client-0', { via: proxy });
  const south = run.join('client-1');
  await inStep;
  expect(await north.kill()).toBe('SIGKILL');
  expect(north.stderr).not.toContain('round 1 100 %');
  const northAgain = run.join('client-0');
  await south.said(/round 2 /);
  expect(await south.kill()).toBe('SIGKILL');
  expect(south.stderr).not.toContain('round 2 100 %');
  await allDone(server, northAgain, run.join('client-1'));
  expect(await run.outcome()).toEqual(expected);

  const [item] = (await readDataset(join(place.folder, 'data'))).catalogue.items;
  const recommended = (client: string) => fellrec('recommend', run.output(client), '--history', item!.id);
  expect((await recommended('client-1')).stdout).toMatch(/^rank +id +title\n(.*\n){11}$/);
  const { code, stderr } = await recommended('client-0');
  expect(stderr).toBe(
    'fellrec: recommend: the middle layers of client-0 learned on the server (split.adapters: all-layers), and what they learned is there\n',
  );
  expect(code).toBe(1);
});

test('a client that is killed in the middle of its upload, and started again', async () => {
  const server = await run.serve();
  const proxy = await run.proxy();
  const inUpload = proxy.stall({ method: 'Upload', call: 1, afterBytes: 4000 });
  const north = run.join('client-0', { via: proxy });
  const south = run.join('client-1');
  await inUpload;
  expect(await north.kill()).toBe('SIGKILL');
  await allDone(server, run.join('client-0', { via: proxy }), south);
  expect(proxy.calls('Upload')).toBe(3);
  expect(await run.outcome()).toEqual(expected);
});

test('a client that is stopped until a round has gone on without it takes part in the next one', async () => {
  const server = await run.serve({
    clients: everyone,
    more: ['--set', 'federation.rounds=3', '--quorum', '2', '--deadline', '4'],
  });
  const [north, south, late] = everyone.map((client) => run.join(client));
  await late!.said(/round 2 /);
  late!.signal('SIGSTOP');
  await server.said(/round 3/);
  const round = (number: number) => join(run.directory, 'rounds', String(number).padStart(4, '0'));
  const own = (number: number) => filesOf(join(round(number), 'client-2'));
  const [before, after] = [await own(0), await own(1)];
  late!.signal('SIGCONT');
  await allDone(server, north!, south!, late!);

  expect(late!.stderr).toMatch(
    /task 1-train-client-2-\w+ is given up: .*round 2 went on without client-2: it was later than 4 s/,
  );
  expect(server.stderr).toContain('  training goes on without client-2: it was later than 4 s\n');
  expect(Object.keys(before)).not.toEqual([]);
  expect(after).toEqual(before);
  const second = await readJson(round(1), 'round.json');
  expect(second).toMatchObject({ clients: ['client-0', 'client-1'], absent: ['client-2'] });
  expect(second.mixing.matrix.map((row: number[]) => row.length)).toEqual([2, 2]);
  const third = await readJson(round(2), 'round.json');
  expect(third.clients).toContain('client-2');
  expect(third.losses['client-2']).toBeGreaterThan(0);
});

test('a second process with the same token: the first one ends, the second finishes', async () => {
  const server = await run.serve();
  const [first, south] = [run.join('client-0'), run.join('client-1')];
  await first.said(/round 1 /);
  const second = run.join('client-0');
  expect(await first.ended()).toBe(1);
  expect(first.stderr).toMatch(/fellrec: this client joined a second time, from another process; .*\n$/);
  await allDone(server, second, south);
  expect(await run.outcome()).toEqual(expected);
});

test('clocks that are wrong by five hours, one ahead and one behind', async () => {
  const server = await run.serve();
  const clients = [
    run.join('client-0', { clockShiftHours: 5 }),
    run.join('client-1', { clockShiftHours: -5 }),
  ];
  await allDone(server, ...clients);
  expect(await run.outcome()).toEqual(expected);
});

test('Ctrl-C on a client ends it at once, and it can be started again', async () => {
  const server = await run.serve();
  const [north, south] = [run.join('client-0'), run.join('client-1')];
  await north.said(/round 1 /);
  expect(await north.kill('SIGINT')).toBe('SIGINT');
  const again = run.join('client-0');
  await again.said(/test users/);
  expect(await again.kill('SIGINT')).toBe('SIGINT');
  await allDone(server, run.join('client-0'), south);
  expect(await run.outcome()).toEqual(expected);
  expect(readdirSync(dirname(run.output('client-0'))).sort()).toEqual(['client-0', 'client-1']);
});
