// Answers that are lost on their way, and requests that come twice, too late or from someone else.
import { createHash } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { clientTransport, connect, FederationService } from '@fellrec/network';
import { afterAll, afterEach, beforeAll, beforeEach, expect, onTestFinished, test, vi } from 'vitest';
import { openAny } from '../src/backends.ts';
import { allDone, everyone, type RemotePlace, type RemoteRun, remotePlace, undisturbed } from './remote.ts';
import { embeddedModel } from './shared.ts';

vi.setConfig({ testTimeout: 300_000, hookTimeout: 300_000 });

let place: RemotePlace;
let run: RemoteRun;
let runs = 0;

beforeAll(async () => {
  place = await remotePlace();
});
afterAll(() => place?.remove());
beforeEach(() => {
  run = place.run(`run-${runs++}`);
});
afterEach(() => run.close());

test('answers that are lost after the server did the work: nothing is done twice', async () => {
  const expected = await undisturbed(place);
  const server = await run.serve();
  const proxy = await run.proxy();
  const ofTasks = ['Join', 'GetTask', 'Download', 'GetUpload', 'Upload', 'ReportProgress', 'ReportResult'];
  const ofLayers = ['Begin', 'Forward', 'Backward', 'Update', 'Decode'];
  // The first answer as a whole, and half of the second one, which is that to the same request again.
  const lost = [...ofTasks, ...ofLayers].flatMap((method) => [
    proxy.lose({ method, call: 1, passed: 0 }),
    proxy.lose({ method, call: 2, passed: 0.5 }),
  ]);
  lost.push(proxy.lose({ method: 'Leave', call: 1, passed: 0 }));
  const north = run.join('client-0', { via: proxy });
  await allDone(server, north, run.join('client-1'));
  await Promise.all(lost);
  expect(north.stderr).toContain('trying again');
  expect(await run.outcome()).toEqual(expected);
});

/** A client that a test speaks for. */
interface Spoken {
  /** The next task. */
  task(): Promise<Task>;
  /** Delivers parameters that all are `value`. In another session or for another task than its own it is refused. */
  upload(task: Task, value: number, sessionId?: string): Promise<unknown>;
  report(
    task: Task,
    result: { readonly loss?: number; readonly metrics?: Record<string, number> },
  ): Promise<unknown>;
  readonly sessionId: string;
  leave(): Promise<void>;
}

interface Task {
  readonly taskId: string;
  readonly parameters?: { readonly bytes: bigint };
}

async function speakFor(client: string, modelHash: string): Promise<Spoken> {
  const samples = 4;
  const connection = await connect({
    transport: await clientTransport({
      server: run.address(),
      ca: place.key('ca.crt'),
      token: place.key(`${client}.token`),
    }),
    facts: { modelHash, trainSamples: samples, validationSamples: samples, testUsers: samples },
    giveUpSeconds: 60,
  });
  return {
    sessionId: connection.session().sessionId,
    leave: connection.leave,
    async task() {
      for (;;) {
        const task = await connection.call(FederationService, (server, sessionId) =>
          server.getTask({ sessionId, waitSeconds: 20 }),
        );
        if (task.taskId !== '') return task;
      }
    },
    upload({ taskId, parameters }, value, sessionId = connection.session().sessionId) {
      const bytes = new Uint8Array(new Float32Array(Number(parameters!.bytes) / 4).fill(value).buffer);
      const sha256 = createHash('sha256').update(bytes).digest();
      const head = { sessionId, taskId, parameters: { ...parameters, sha256 }, loss: 10 * value, samples };
      async function* messages() {
        yield { part: { case: 'head' as const, value: head } };
        yield { part: { case: 'data' as const, value: bytes } };
      }
      return connection.call(FederationService, (server) => server.upload(messages()));
    },
    report: ({ taskId }, result) =>
      connection.call(FederationService, (server, sessionId) =>
        server.reportResult({ ...result, sessionId, taskId, samples }),
      ),
  };
}

/** A run of three clients, one of which is late in the first round. It ends the same if some of them do not behave. */
async function spokenRun(doTheyBehave: boolean): Promise<unknown> {
  const server = await run.serve({ clients: everyone, more: ['--quorum', '2', '--deadline', '3'] });
  const { hash } = await openAny(embeddedModel, place.folder);
  const all = await Promise.all(everyone.map((client) => speakFor(client, hash)));
  const [north, south, late] = all as [Spoken, Spoken, Spoken];
  const misbehave = async (how: () => Promise<void>) => {
    if (!doTheyBehave) await how();
  };

  const first = { north: await north.task(), south: await south.task(), late: await late.task() };
  await misbehave(async () => {
    await expect(north.upload(first.south, 0.5)).rejects.toThrow(/\[not_found\].*client-0 has no task/);
    await expect(north.upload(first.north, 0.5, south.sessionId)).rejects.toThrow('[permission_denied]');
    await expect(north.upload(first.south, 0.5, south.sessionId)).rejects.toThrow('[permission_denied]');
  });
  await north.upload(first.north, 0.1);
  await misbehave(async () => {
    await north.upload(first.north, 0.1);
    await expect(north.upload(first.north, 0.5)).rejects.toThrow('[already_exists]');
  });
  await south.upload(first.south, 0.2);
  for (const client of [north, south]) {
    const task = await client.task();
    await client.report(task, { loss: 3 });
    await misbehave(async () => {
      await client.report(task, { loss: 3 });
      await expect(client.report(task, { loss: 1 })).rejects.toThrow('[already_exists]');
    });
  }

  const second = {
    north: await north.task(),
    south: await south.task(),
    late: await nextOf(late, first.late),
  };
  await misbehave(async () => {
    await expect(late.upload(first.late, 0.5)).rejects.toThrow(
      /\[aborted\].*round 1 went on without client-2: it was later than 3 s; ask for the next one/,
    );
    await north.upload(first.north, 0.1);
    await expect(north.upload(first.north, 0.5)).rejects.toThrow('[already_exists]');
  });
  await north.upload(second.north, 0.3);
  await south.upload(second.south, 0.4);
  await late.upload(second.late, 0.2);
  for (const client of all) await client.report(await client.task(), { loss: 2 });
  const metrics = { 'recall@10': 0.25, 'recall@20': 0.5, 'ndcg@10': 0.125, 'ndcg@20': 0.25 };
  for (const client of all) await client.report(await client.task(), { metrics });
  await Promise.all(all.map(({ leave }) => leave()));
  await allDone(server);
  return run.outcome();
}

/** A client asks again while its task is the one before. */
async function nextOf(client: Spoken, before: Task): Promise<Task> {
  for (;;) {
    const task = await client.task();
    if (task.taskId !== before.taskId) return task;
    await sleep(20);
  }
}

test('contributions that come twice, too late or from another client change nothing', async () => {
  const expected = await spokenRun(true);
  run = place.run('misbehaving');
  onTestFinished(() => run.close());
  expect(await spokenRun(false)).toEqual(expected);
});
