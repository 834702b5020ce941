// Sessions that end, clients that come back, servers that start anew, and rounds that go on without someone.
import { Code, ConnectError, createClient, type Transport } from '@connectrpc/connect';
import type { Client } from '@fellrec/federation';
import { afterEach, describe, expect, it } from 'vitest';
import { FederationService, ParametersRole, Phase, SessionEnd, TaskKind } from '#proto/federation_pb';
import { quadratic, tensors } from '../../federation/test/toy.js';
import { connect } from '../src/client/connection.ts';
import { participate } from '../src/client/participate.ts';
import { sessionEndOf } from '../src/client/trouble.ts';
import type { MiddleParameters } from '../src/server/remote-client.ts';
import { beforeRun, runStateAfter } from '../src/server/run-state.ts';
import { openSessions, type Session } from '../src/server/sessions.ts';
import {
  carriers,
  joinFacts,
  type ServerOptions,
  startServer,
  type TestServer,
  takePart,
  workerOf,
} from './federation-harness.ts';

const initial = tensors({ x: [1, 2, 3] });
const toy = quadratic('north', { target: [0, 5, 1] });
const expected = await toy.train(initial, { round: 0 });

const servers: TestServer[] = [];
async function serve(options: Partial<ServerOptions> = {}): Promise<TestServer> {
  const server = await startServer({ expected: ['north'], ...options });
  servers.push(server);
  return server;
}
afterEach(async () => {
  for (const server of servers.splice(0)) await server.stop();
});

async function refusal(call: Promise<unknown>): Promise<ConnectError> {
  return call.then(
    () => expect.unreachable('it was not refused'),
    (error) => error,
  );
}

/** A client whose training starts when it is let, and who says when it has been asked to. */
function held(client: Client) {
  const asked = Promise.withResolvers<void>();
  const let_ = Promise.withResolvers<void>();
  const worker = workerOf({
    ...client,
    async train(parameters, context) {
      asked.resolve();
      await let_.promise;
      return client.train(parameters, context);
    },
  });
  return { worker, asked: asked.promise, go: let_.resolve };
}

const methods = {
  getRound: {},
  getTask: {},
  getUpload: {},
  reportProgress: {},
  reportResult: {},
  leave: {},
  download: {},
  upload: {},
} as const;
/** Any call, with a session's id. */
async function call(api: ReturnType<TestServer['client']>, method: keyof typeof methods, sessionId: string) {
  if (method === 'upload') {
    async function* head() {
      yield { part: { case: 'head' as const, value: { sessionId } } };
    }
    await api.upload(head());
  } else if (method === 'download') for await (const _ of api.download({ sessionId }));
  else await api[method]({ sessionId });
}

describe('sessions', () => {
  it.each(Object.keys(methods) as (keyof typeof methods)[])('of others and of nobody: %s', async (method) => {
    const server = await serve({ expected: ['north', 'south'] });
    const north = server.client('north');
    const south = await server.client('south').join(joinFacts);
    await north.join(joinFacts);
    const unknown = await refusal(call(north, method, 'A'.repeat(22)));
    expect(unknown.code).toBe(Code.Unauthenticated);
    expect(sessionEndOf(unknown)).toBe(SessionEnd.UNKNOWN);
    const others = await refusal(call(north, method, south.sessionId));
    expect(others.code).toBe(Code.PermissionDenied);
    await server.client('south').getRound({ sessionId: south.sessionId });
  });

  it('have ids of 128 bits that differ', async () => {
    const sessions = openSessions({ maxSessions: 100, idleSeconds: 60 });
    const facts = { ...joinFacts, layersKept: undefined };
    const ids = Array.from({ length: 100 }, (_, i) => sessions.open(`client-${i}`, facts).id);
    expect(new Set(ids).size).toBe(100);
    for (const id of ids) expect(Buffer.from(id, 'base64url')).toHaveLength(16);
    expect(() => sessions.open('client-100', facts)).toThrow(
      expect.objectContaining({ code: Code.ResourceExhausted }),
    );
    sessions.open('client-99', facts);
    sessions.close();
  });

  it('end when they are left, replaced or idle, and who listens is told', async () => {
    const ended: Session[] = [];
    const sessions = openSessions({ maxSessions: 2, idleSeconds: 0.05 });
    sessions.onEnd((session) => ended.push(session));
    const facts = { ...joinFacts, layersKept: undefined };
    const [north, south] = [sessions.open('north', facts), sessions.open('south', facts)];
    sessions.leave(north);
    const newer = sessions.open('south', facts);
    expect(ended).toEqual([north, south]);
    expect(() => sessions.get(north.id, 'north')).toThrow('unknown session');
    expect(() => sessions.get(south.id, 'south')).toThrow('replaced by a newer one of the same client');
    for (let i = 0; i < 5; i++) {
      await new Promise((done) => setTimeout(done, 20));
      expect(sessions.get(newer.id, 'south')).toBe(newer);
    }
    await sessions.empty();
    expect(ended).toEqual([north, south, newer]);
    expect(newer.ended.aborted).toBe(true);
    expect(() => sessions.get(newer.id, 'south')).toThrow('unknown session');
    sessions.close();
  });

  it('that were replaced are not taken up again: the client gives up', async () => {
    const server = await serve();
    const first = takePart({ transport: server.carrier.transport('north'), worker: workerOf(toy) });
    first.catch(() => {});
    const [remote] = await server.federation.joined();
    const second = takePart({ transport: server.carrier.transport('north'), worker: workerOf(toy) });
    await expect(first).rejects.toThrow('joined a second time, from another process');
    expect(await remote!.train(initial, { round: 0 })).toEqual(expected);
    server.federation.finish();
    await second;
    await server.sessions.empty();
  });

  it('that were replaced no longer wait for a task', async () => {
    const server = await serve();
    const api = server.client('north');
    const { sessionId } = await api.join(joinFacts);
    const waiting = refusal(api.getTask({ sessionId, waitSeconds: 30 }));
    await new Promise((done) => setTimeout(done, 20));
    await api.join(joinFacts);
    const inTime = new Promise((done) => setTimeout(done, 1000, 'it still waits'));
    expect(await Promise.race([waiting, inTime])).toMatchObject({ code: Code.Unauthenticated });
  });

  it('that expired are replaced, and the work goes on', async () => {
    const server = await serve({ idleSeconds: 0.1 });
    const { worker, asked, go } = held(toy);
    const notes: string[] = [];
    const taking = takePart({
      transport: server.carrier.transport('north'),
      worker,
      onNote: (text) => notes.push(text),
    });
    const [remote] = await server.federation.joined();
    const update = remote!.train(initial, { round: 0 });
    await asked;
    await server.sessions.empty();
    go();
    expect(await update).toEqual(expected);
    server.federation.finish();
    await taking;
    expect(notes.join()).toContain('unknown session');
  });

  it.each([0, 200])('tell who listens of the next one, however long joining takes: %i ms', async (ms) => {
    const server = await serve();
    const connection = await connect({
      transport: server.carrier.transport('north', (next) => async (request) => {
        if (request.method.name === 'Join') await new Promise((done) => setTimeout(done, ms));
        return next(request);
      }),
      facts: joinFacts,
      giveUpSeconds: 5,
    });
    const before = connection.session();
    expect(before).toMatchObject({
      client: 'north',
      settingsJson: '{"seed":1}',
      chunkBytes: 16,
      sessionSeconds: 60,
    });
    const told: string[] = [];
    connection.onSession(({ sessionId }) => told.push(sessionId));
    await connection.leave();
    const rounds = [1, 2, 3].map(() =>
      connection.call(FederationService, (api, sessionId) => api.getRound({ sessionId })),
    );
    await Promise.all(rounds);
    expect(told).toEqual([connection.session().sessionId]);
    expect(told).not.toEqual([before.sessionId]);
  });
});

describe('tasks', () => {
  it('are the same again for a client that died and joined again', async () => {
    const server = await serve();
    const dying = workerOf({ ...toy, train: () => Promise.reject(new Error('out of memory')) });
    const first = takePart({ transport: server.carrier.transport('north'), worker: dying });
    first.catch(() => {});
    const [remote] = await server.federation.joined();
    const update = remote!.train(initial, { round: 5 });
    await expect(first).rejects.toThrow('out of memory');
    const api = server.client('north');
    const { sessionId } = await api.join(joinFacts);
    const { taskId, kind, round } = await api.getTask({ sessionId });
    const { sessionId: newer } = await api.join(joinFacts);
    expect((await api.getTask({ sessionId: newer })).taskId).toBe(taskId);
    expect({ kind, round }).toEqual({ kind: TaskKind.TRAIN, round: 5 });
    expect(taskId).toMatch(/^5-train-north-[0-9a-f]{12}$/);
    const second = takePart({ transport: server.carrier.transport('north'), worker: workerOf(toy) });
    expect(await update).toEqual(expected);
    server.federation.finish();
    await second;
  });

  it('fail with a client that says why it leaves, until it joins again', async () => {
    const failed: string[][] = [];
    const server = await serve({
      expected: ['north'],
      onFailed: (client, reason) => failed.push([client, reason]),
    });
    const connection = await connect({
      transport: server.carrier.transport('north'),
      facts: joinFacts,
      giveUpSeconds: 5,
    });
    const [remote] = await server.federation.joined();
    const update = remote!.train(initial, { round: 5 });
    update.catch(() => {});
    await connection.fail(new Error('model: "The Legend of Zelda" has 900 tokens'));
    expect(failed).toEqual([['north', 'model']]); // the message may quote what is the client's
    await expect(update).rejects.toThrow('north left: model');
    await expect(remote!.evaluate(initial, { round: 5 })).rejects.toThrow('north left');
    expect(server.sessions.clients()).toEqual([]);
    await connection.fail(new Error('it has left already'));
    expect(failed).toHaveLength(1);

    const api = server.client('north');
    const { sessionId } = await api.join(joinFacts);
    const again = remote!.evaluate(initial, { round: 6 });
    const { taskId } = await api.getTask({ sessionId });
    await api.reportResult({ sessionId, taskId, samples: 4, loss: 0.5 });
    expect(await again).toEqual({ samples: 4, loss: 0.5 });
    await api.leave({ sessionId, reason: '\n' });
    expect(failed[1]).toEqual(['north', 'no reason given']);
    const { sessionId: last } = await api.join(joinFacts);
    await api.leave({ sessionId: last, reason: `\x1b[2Jno\r\nmemory\u202e ${'x'.repeat(9000)}` });
    expect(failed[2]).toEqual(['north', `[2Jno memory ${'x'.repeat(487)}`]);
  });

  it('wait for a client that failed before the run began', async () => {
    const server = await serve({ expected: ['north', 'south'] });
    const [north, south] = [server.client('north'), server.client('south')];
    const { sessionId: failing } = await north.join(joinFacts);
    await north.leave({ sessionId: failing, reason: 'the disk is full' });
    const { sessionId } = await south.join(joinFacts);
    expect(await south.getRound({ sessionId })).toMatchObject({ joined: 1, expected: 2 });
    await north.join(joinFacts);
    expect(await server.federation.joined()).toHaveLength(2);
  });

  it('wait, of a run that goes on, for one that is late as for any other', async () => {
    const facts = { ...joinFacts, layersKept: undefined, group: undefined };
    const known = new Map(['north', 'south'].map((name) => [name, facts]));
    const server = await serve({ expected: ['north', 'south'], known, quorum: 1, waitSeconds: 0 });
    const north = server.client('north');
    const { sessionId } = await north.join(joinFacts);
    const remote = await server.federation.joined();
    expect(remote.map(({ name }) => name)).toEqual(['north', 'south']);
    expect(await north.getRound({ sessionId })).toMatchObject({ joined: 1, expected: 2 });
    const evaluation = remote[1]!.evaluate(initial, { round: 3 });
    const south = server.client('south');
    const { sessionId: late } = await south.join(joinFacts);
    expect(await north.getRound({ sessionId })).toMatchObject({ joined: 2, expected: 2 });
    const { taskId } = await south.getTask({ sessionId: late });
    await south.reportResult({ sessionId: late, taskId, samples: 4, loss: 0.5 });
    expect(await evaluation).toEqual({ samples: 4, loss: 0.5 });
  });

  it('are told why they cannot take part before the run begins', async () => {
    const server = await serve({
      expected: ['north'],
      unfit: ({ group }) => (group === undefined ? 'it said no group' : undefined),
    });
    await expect(server.client('north').join(joinFacts)).rejects.toMatchObject({
      code: Code.FailedPrecondition,
      rawMessage: 'it said no group',
    });
    await server.client('north').join({ ...joinFacts, group: 'books' });
    expect(await server.federation.joined()).toHaveLength(1);
  });

  it('have tasks of their own only', async () => {
    const server = await serve({ expected: ['north', 'south'] });
    const apis = ['north', 'south'].map((name) => server.client(name));
    const sessions = await Promise.all(apis.map((api) => api.join(joinFacts)));
    const [north] = await server.federation.joined();
    const evaluation = north!.evaluate(initial, { round: 0 });
    const { sessionId } = sessions[0]!;
    const { taskId } = await apis[0]!.getTask({ sessionId });
    server.federation.assertTask('north', taskId);
    expect(() => server.federation.assertTask('south', taskId)).toThrow('south has no task');
    await apis[0]!.reportResult({ sessionId, taskId, samples: 4, loss: 0.5 });
    await evaluation;
    expect(() => server.federation.assertTask('north', taskId)).toThrow('already accepted');
  });

  it('count progress once, even if it is reported twice', async () => {
    const server = await serve();
    const api = server.client('north');
    const { sessionId } = await api.join(joinFacts);
    const [remote] = await server.federation.joined();
    const steps: number[] = [];
    const late = new AbortController();
    const { signal } = late;
    const update = remote!.train(initial, { round: 0, signal, onProgress: ({ step }) => steps.push(step) });
    const { taskId } = await api.getTask({ sessionId });
    for (const step of [1, 1, 2, 2, 3]) await api.reportProgress({ sessionId, taskId, step, steps: 3 });
    expect(steps).toEqual([1, 2, 3]);
    late.abort(new Error('too late'));
    await expect(update).rejects.toThrow('too late');
  });

  it('that are over are not downloaded any further', async () => {
    const server = await serve();
    const api = server.client('north');
    const { sessionId } = await api.join(joinFacts);
    const [remote] = await server.federation.joined();
    const late = new AbortController();
    const update = remote!.train(tensors({ x: new Float32Array(1000) }), { round: 0, signal: late.signal });
    const { taskId } = await api.getTask({ sessionId });
    const download = api.download({ sessionId, taskId, role: ParametersRole.TASK })[Symbol.asyncIterator]();
    await download.next();
    late.abort(new Error('too late'));
    await expect(update).rejects.toThrow('too late');
    await expect(download.next()).rejects.toMatchObject({ code: Code.Aborted });
  });

  it('are waited for, but not for ever', async () => {
    const server = await serve();
    const api = server.client('north');
    const { sessionId } = await api.join(joinFacts);
    const [remote] = await server.federation.joined();
    expect((await api.getTask({ sessionId, waitSeconds: 0 })).kind).toBe(TaskKind.UNSPECIFIED);
    expect((await api.getTask({ sessionId, waitSeconds: 1 })).kind).toBe(TaskKind.UNSPECIFIED);
    const waiting = api.getTask({ sessionId, waitSeconds: 4_000_000_000 });
    await new Promise((done) => setTimeout(done, 20));
    const evaluation = remote!.evaluate(initial, { round: 1 });
    expect((await waiting).kind).toBe(TaskKind.EVALUATE);
    await expect(remote!.train(initial, { round: 1 })).rejects.toThrow('north is still at task 1-evaluate');
    server.federation.finish();
    await expect(evaluation).rejects.toThrow('the run is over');
    expect((await api.getTask({ sessionId, waitSeconds: 9 })).kind).toBe(TaskKind.FINISHED);
    await expect(remote!.train(initial, { round: 2 })).rejects.toThrow('was told that the run is over');
  });

  it('of a server that has started anew take the place of the old ones', async () => {
    let current = await serve();
    const transport: Transport = {
      unary: (...call) => current.carrier.transport('north').unary(...call),
      stream: (...call) => current.carrier.transport('north').stream(...call),
    };
    const { worker, asked, go } = held(toy);
    const notes: string[] = [];
    const taking = takePart({ transport, worker, onNote: (text) => notes.push(text) });
    const [before] = await current.federation.joined();
    const lost = before!.train(initial, { round: 0 });
    lost.catch(() => {});
    await asked;
    current = await serve();
    const other = tensors({ x: [7, 7, 7] });
    const next = current.federation.joined().then(([after]) => after!.train(other, { round: 0 }));
    go();
    expect(await next).toEqual(await toy.train(other, { round: 0 }));
    current.federation.finish();
    await taking;
    expect(notes).toEqual([
      expect.stringContaining('unknown session'),
      expect.stringMatching(/^task 0-train-north-[0-9a-f]+ is given up: .*north has no task/),
    ]);
  });
});

describe.each(carriers)('a round that goes on without a client, %s', (_, carry) => {
  const large = tensors({ x: new Float32Array(1_000_000) });

  it.each(['while it trains', 'while it uploads'])('%s', async (when) => {
    const server = await serve({ carry, chunkBytes: 2 ** 14, maxUploadBytes: 2 ** 23 });
    const late = new AbortController();
    const notes: string[] = [];
    let steps = 0;
    const taking = takePart({
      transport: server.carrier.transport('north', (next) => async (request) => {
        if (!request.stream || request.method.name !== 'Upload') return next(request);
        async function* slowly<T>(messages: AsyncIterable<T>) {
          let count = 0;
          for await (const message of messages) {
            if (++count === 20) late.abort(new Error('round 1 went on without north'));
            yield message;
          }
        }
        return next({ ...request, message: slowly(request.message) });
      }),
      onNote: (text) => notes.push(text),
      worker: {
        ...workerOf(toy),
        async train(parameters, { round, onProgress }) {
          for (let step = 1; when === 'while it trains' && round === 0; step++) {
            if (step === 3) late.abort(new Error('round 1 went on without north'));
            onProgress({ step, steps: 1000, loss: 1 });
            steps = step;
            await new Promise((done) => setTimeout(done, 5));
          }
          return { parameters, loss: 1, samples: 10 };
        },
      },
    });
    const [remote] = await server.federation.joined();
    await expect(remote!.train(large, { round: 0, signal: late.signal })).rejects.toThrow(
      'went on without north',
    );
    const update = remote!.train(initial, { round: 1 });
    expect((await update).parameters).toEqual(initial);
    server.federation.finish();
    await taking;
    expect(notes).toEqual([
      expect.stringMatching(
        /^task 0-train-north-\w+ is given up: \[aborted\].*round 1 went on without north/,
      ),
    ]);
    expect(steps).toBeLessThan(100);
  });
});

describe('a run', () => {
  it('begins with all clients, or with a quorum after the wait, and then without others', async () => {
    const all = await serve({ expected: ['north', 'south'], quorum: 1 });
    await all.client('south').join({ ...joinFacts, trainSamples: 7 });
    const begun = all.federation.joined();
    const early = await Promise.race([begun, new Promise((done) => setTimeout(done, 50, 'not yet'))]);
    expect(early).toBe('not yet');
    const { sessionId } = await all.client('north').join(joinFacts);
    expect((await begun).map(({ name, samples }) => [name, samples])).toEqual([
      ['north', 10],
      ['south', 7],
    ]);
    const round = {
      round: 0,
      rounds: 0,
      phase: Phase.WAITING,
      joined: 2,
      expected: 2,
      delivered: 0,
      quorum: 1,
    };
    expect(await all.client('north').getRound({ sessionId })).toMatchObject(round);

    const some = await serve({ expected: ['north', 'south', 'west'], quorum: 2, waitSeconds: 0.05 });
    await some.client('west').join(joinFacts);
    await new Promise((done) => setTimeout(done, 100));
    await some.client('south').join(joinFacts);
    expect((await some.federation.joined()).map(({ name }) => name)).toEqual(['south', 'west']);
    expect((await refusal(some.client('north').join(joinFacts))).code).toBe(Code.FailedPrecondition);
  });

  it('says where it is', () => {
    const rounds = { rounds: 5, round: 2 };
    const client = { client: 'north', round: 2, loss: 1, samples: 1, seconds: 1 };
    const started = runStateAfter(beforeRun, {
      type: 'run-started',
      strategy: 'local',
      clients: [],
      patience: 1,
      ...rounds,
    });
    const training = runStateAfter(started, { type: 'round-started', round: 2 });
    expect(training).toEqual({ ...rounds, phase: Phase.TRAINING, delivered: 0 });
    const one = runStateAfter(training, { type: 'client-trained', ...client });
    expect(one).toEqual({ ...rounds, phase: Phase.TRAINING, delivered: 1 });
    const judged = { type: 'client-judged', ...client, candidates: [], evaluations: 1 } as const;
    const judging = runStateAfter(one, judged);
    expect(judging).toEqual({ ...rounds, phase: Phase.JUDGING, delivered: 1 });
    expect(runStateAfter(judging, judged).delivered).toBe(2);
    const mixing = { matrix: [[1]] };
    const mixed = runStateAfter(judging, {
      type: 'aggregated',
      round: 2,
      clients: [],
      mixing,
      seconds: 1,
    } as never);
    expect(mixed).toEqual({ ...rounds, phase: Phase.EVALUATING, delivered: 0 });
    expect(runStateAfter(mixed, { type: 'client-evaluated', ...client }).delivered).toBe(1);
  });
});

describe('a client that keeps some layers', () => {
  const whole = tensors({ 'server.a': [1, 1], x: [1, 2, 3], 'server.b': [2] });

  it('is sent its own tensors, and the server adds what it trained itself', async () => {
    const log: string[] = [];
    const ofServer: MiddleParameters = {
      start: (taskId, given) => log.push(`start ${taskId.slice(0, -13)} ${[...given.keys()]}`),
      finish(taskId) {
        log.push(`finish ${taskId.slice(0, -13)}`);
        return tensors({ 'server.a': [8, 8], 'server.b': [9] });
      },
      close: (taskId) => log.push(`close ${taskId.slice(0, -13)}`),
    };
    const split = { isOwn: (name: string) => name === 'x', ofServer };
    const server = await serve({
      model: { hash: joinFacts.modelHash, layers: { count: 4, first: 1 } },
      shareOf: ({ layersKept }) => (layersKept === undefined ? {} : { split }),
    });
    const connection = { transport: server.carrier.transport('north'), giveUpSeconds: 5 };
    const joined = connect({ ...connection, facts: { ...joinFacts, layersKept: 1 } });
    const begun: string[] = [];
    const worker = { ...workerOf(toy), begin: async (taskId: string) => void begun.push(taskId) };
    const taking = participate({ connection: await joined, worker });
    const [remote] = await server.federation.joined();
    const { parameters } = await remote!.train(whole, { round: 0 });
    expect([...parameters]).toEqual([
      ...tensors({ 'server.a': [8, 8] }),
      ...expected.parameters,
      ...tensors({ 'server.b': [9] }),
    ]);
    expect(await remote!.evaluate(whole, { round: 0 })).toEqual(await toy.evaluate(initial, { round: 0 }));
    expect(log).toEqual([
      'start 0-train-north server.a,server.b',
      'finish 0-train-north',
      'close 0-train-north',
      'start 0-evaluate-north server.a,server.b',
      'close 0-evaluate-north',
    ]);
    expect(begun.map((taskId) => taskId.slice(0, -13))).toEqual(['0-train-north', '0-evaluate-north']);
    server.federation.finish();
    await taking;
  });
});

describe('a client out of luck', () => {
  const unreachable = (error: () => unknown, calls: string[] = []): Transport => ({
    unary: async (method) => {
      calls.push(method.name);
      throw error();
    },
    stream: async () => {
      throw error();
    },
  });
  const facts = joinFacts;

  it.each([
    ['UNAVAILABLE', new ConnectError('no route', Code.Unavailable)],
    ['a broken connection', new ConnectError('reset', Code.Aborted)],
    [
      'a stream cut short',
      new ConnectError('protocol error: missing EndStreamResponse', Code.InvalidArgument),
    ],
  ])('tries again after %s, after longer and longer pauses, and gives up in the end', async (_, error) => {
    const calls: string[] = [];
    const notes: string[] = [];
    const started = performance.now();
    const connecting = connect({
      transport: unreachable(() => error, calls),
      facts,
      giveUpSeconds: 0.6,
      onNote: (text) => notes.push(text),
    });
    await expect(connecting).rejects.toThrow(
      /no success for 0.6 s, so this client gives up: .*(no route|reset|missing)/,
    );
    expect(performance.now() - started).toBeLessThan(3000);
    expect(calls.length).toBeGreaterThanOrEqual(3);
    expect(calls.length).toBeLessThanOrEqual(5);
    expect(notes).toHaveLength(calls.length - 1);
  });

  it('gives up at once if a message is too large: the next one would be as large', async () => {
    const tooLarge = new ConnectError(
      'message size 9 is larger than configured writeMaxBytes 8',
      Code.ResourceExhausted,
    );
    const calls: string[] = [];
    const connecting = connect({ transport: unreachable(() => tooLarge, calls), facts, giveUpSeconds: 60 });
    await expect(connecting).rejects.toThrow(
      'a message is too large (message size 9 is larger than configured writeMaxBytes 8); compute fewer',
    );
    expect(calls).toEqual(['Join']);
  });

  it.each([
    ['UNAUTHENTICATED', new ConnectError('unknown token', Code.Unauthenticated)],
    [
      'a certificate that expired',
      new ConnectError(
        'certificate has expired',
        Code.Internal,
        undefined,
        undefined,
        Object.assign(new Error('x'), { code: 'CERT_HAS_EXPIRED' }),
      ),
    ],
  ])('gives up at once if its credentials are refused: %s', async (_, error) => {
    const calls: string[] = [];
    const connecting = connect({ transport: unreachable(() => error, calls), facts, giveUpSeconds: 60 });
    await expect(connecting).rejects.toThrow(`refused the credentials: ${error.rawMessage}`);
    expect(calls).toEqual(['Join']);
  });

  it('hears what the server refuses at once', async () => {
    const server = await serve();
    const connecting = connect({
      transport: server.carrier.transport('south'),
      facts,
      giveUpSeconds: 60,
    });
    expect((await refusal(connecting)).code).toBe(Code.PermissionDenied);
    const api = createClient(FederationService, server.carrier.transport('north'));
    await api.join(facts);
  });
});
