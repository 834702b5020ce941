// Servers that end in the middle of a run: the clients wait for them, and the run ends as if nothing had happened.
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test, vi } from 'vitest';
import type { ClientResult } from '../src/train.ts';
import {
  allDone,
  everyone,
  type Process,
  type RemotePlace,
  type RemoteRun,
  remotePlace,
  undisturbed,
} from './remote.ts';
import { readJson } from './shared.ts';

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

/** Waits until the run's events have something, however short the time is in which it is the last one. */
async function happened(event: string, server: Process): Promise<void> {
  const file = join(run.directory, 'events.jsonl');
  while (!(existsSync(file) && readFileSync(file, 'utf8').includes(event))) {
    expect(server.stderr).not.toContain('fellrec:');
    await sleep(2);
  }
}

test('a server that is killed in every phase of a run goes on with --resume', async () => {
  let server = await run.serve();
  const north = run.join('client-0');
  await north.said(/joined as client-0/);
  await server.kill();
  server = await run.serve({ resume: true });
  const south = run.join('client-1');
  const phases: [phase: string, isReached: (server: Process) => Promise<unknown>][] = [
    ['training', ({ said }) => said(/round 1\n {2}client-\d: loss/)],
    ['aggregating', ({ said }) => said(/client-\d: loss.*\n {2}client-\d: loss/)],
    ['evaluating', (server) => happened('{"type":"client-evaluated","round":0,', server)],
    ['writing the round', (server) => happened('{"type":"round-finished","round":0,', server)],
    ['between rounds', ({ said }) => said(/round 2/)],
    ['testing', ({ said }) => said(/tested clients 50 %/)],
  ];
  for (const [phase, isReached] of phases) {
    await isReached(server);
    expect(await server.kill(), phase).toBe('SIGKILL');
    expect(existsSync(join(run.directory, 'result.json')), phase).toBe(false);
    server = await run.serve({ resume: true });
  }
  await allDone(server, north, south);
  expect(server.stderr).not.toMatch(/^round/m);
  expect(await run.outcome()).toEqual(expected);
  for (const client of [north, south]) expect(client.stderr).toContain('trying again');
});

test('Ctrl-C on the server during a round: it says how to go on, and goes on so', async () => {
  const stopped = await run.serve();
  const clients = [run.join('client-0'), run.join('client-1')];
  await stopped.said(/round 2\n {2}client-\d: loss/);
  const since = performance.now();
  expect(await stopped.kill('SIGINT')).toBe(1);
  expect(performance.now() - since).toBeLessThan(5000);
  expect(stopped.stderr).toMatch(/fellrec: serve: stopped; .*go on with --resume\n$/);
  const resumed = await run.serve({ resume: true });
  await allDone(resumed, ...clients);
  expect(resumed.stderr).not.toContain('round 1');
  expect(await run.outcome()).toEqual(expected);
});

test('Ctrl-C on a server that waits for clients: --resume starts the run', async () => {
  const stopped = await run.serve();
  const north = run.join('client-0');
  await north.said(/joined as client-0/);
  expect(await stopped.kill('SIGINT')).toBe(1);
  await allDone(await run.serve({ resume: true }), north, run.join('client-1'));
  expect(await run.outcome()).toEqual(expected);
});

test('a client that is away when a run goes on with a quorum belongs to it all the same', async () => {
  const more = ['--set', 'federation.rounds=3', '--quorum', '2', '--deadline', '5', '--wait', '2'];
  const stopped = await run.serve({ clients: everyone, more: [...more.slice(0, -1), '60'] });
  const [north, south, away] = everyone.map((client) => run.join(client));
  await stopped.said(/round 2/);
  await away!.kill();
  await stopped.kill();
  const resumed = await run.serve({ clients: everyone, resume: true, more });
  await resumed.said(/goes on without client-2/);
  const back = run.join('client-2');
  await allDone(resumed, north!, south!, back);
  const { absent } = await readJson(join(run.directory, 'rounds', '0001'), 'round.json');
  expect(absent).toEqual(['client-2']);
  const { clients } = await readJson(run.directory, 'result.json');
  expect(clients.map(({ client, testUsers }: ClientResult) => [client, testUsers > 0])).toEqual(
    everyone.map((client) => [client, true]),
  );
});
