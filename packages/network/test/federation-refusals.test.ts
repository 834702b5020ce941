// Everything that the server refuses, with its code, and that nothing is different afterwards.
import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { type Client, Code, ConnectError } from '@connectrpc/connect';
import type { Update } from '@fellrec/federation';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  type FederationService,
  type ParametersInfoSchema,
  ParametersRole,
  TaskKind,
  type UploadHead,
  UploadHeadSchema,
  type UploadRequestSchema,
} from '#proto/federation_pb';
import { ElementType, TensorInfoSchema } from '#proto/tensor_pb';
import { tensors } from '../../federation/test/toy.js';
import { describe as infoOf, partsOf } from '../src/protocol/parameters.ts';
import type { RemoteClient } from '../src/server/remote-client.ts';
import { openSessions } from '../src/server/sessions.ts';
import { joinFacts, startServer, type TestServer, testSamples } from './federation-harness.ts';

type Api = Client<typeof FederationService>;
type Head = Partial<
  Pick<UploadHead, 'offset' | 'loss' | 'samples' | 'realTokens' | 'computedTokens' | 'paddingTokens'>
> & { readonly parameters?: MessageInitShape<typeof ParametersInfoSchema> | undefined };
type Message = MessageInitShape<typeof UploadRequestSchema>;

const initial = tensors({ a: [1, 2, 3, 4, 5], b: [6] }); // 24 bytes: parts of 16 and 8
const trained = tensors({ a: [1, 2, 3, 4, 5.5], b: [7] });
const info = infoOf(trained);
const [first, second] = [...partsOf(trained, 0, 16)] as [Uint8Array, Uint8Array];

let server: TestServer;
let remotes: readonly RemoteClient[];
/** Two clients, who both have to train, and what the server makes of it. */
let north: { api: Api; sessionId: string; taskId: string; update: Promise<Update> };
let south: typeof north;
let late: AbortController;

beforeEach(async () => {
  late = new AbortController();
  server = await startServer({
    expected: ['north', 'south', 'east'],
    quorum: 2,
    waitSeconds: 0,
    sessions: openSessions({ maxSessions: 2, idleSeconds: 60 }),
    model: { hash: joinFacts.modelHash, layers: { count: 6, first: 2 } },
    maxUploadBytes: 40,
  });
  const ids = await Promise.all(
    ['north', 'south'].map(async (name) => (await server.client(name).join(joinFacts)).sessionId),
  );
  remotes = await server.federation.joined();
  [north, south] = (await Promise.all(
    ['north', 'south'].map(async (name, c) => {
      const api = server.client(name);
      const sessionId = ids[c]!;
      const update = remotes[c]!.train(initial, { round: 3, ...(c === 0 && { signal: late.signal }) });
      update.catch(() => {});
      const { taskId } = await api.getTask({ sessionId });
      return { api, sessionId, taskId, update };
    }),
  )) as [typeof north, typeof north];
});
afterEach(() => server.stop());

function headOf({ sessionId, taskId }: typeof north, changes: Head = {}): Message {
  const value = create(UploadHeadSchema, {
    sessionId,
    taskId,
    parameters: info,
    loss: 0.5,
    samples: 10,
    ...changes,
  });
  return { part: { case: 'head', value } };
}
function data(value: Uint8Array): Message {
  return { part: { case: 'data', value } };
}
async function* stream(...messages: Message[]): AsyncGenerator<Message> {
  yield* messages;
}
function send(who: typeof north, ...messages: Message[]) {
  return who.api.upload(stream(...messages));
}
async function drain(stream: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of stream);
}

/** What clients can see of the server's state. */
async function seen() {
  const ofClients = [north, south].map(async ({ api, sessionId, taskId }) => {
    const { kind, taskId: task, round } = await api.getTask({ sessionId });
    const { received, complete } = await api.getUpload({ sessionId, taskId, sha256: info.sha256 });
    const { $typeName: _, ...run } = await api.getRound({ sessionId });
    return { kind, task, round, received, complete, run };
  });
  return Promise.all(ofClients);
}

async function refusal(call: () => Promise<unknown>): Promise<ConnectError> {
  try {
    await call();
  } catch (error) {
    expect(error).toBeInstanceOf(ConnectError);
    return error as ConnectError;
  }
  throw new Error('it was not refused');
}

const bytes32 = new Uint8Array(32);
const { INVALID_ARGUMENT, FAILED_PRECONDITION, PERMISSION_DENIED, NOT_FOUND, DATA_LOSS, RESOURCE_EXHAUSTED } =
  {
    INVALID_ARGUMENT: Code.InvalidArgument,
    FAILED_PRECONDITION: Code.FailedPrecondition,
    PERMISSION_DENIED: Code.PermissionDenied,
    NOT_FOUND: Code.NotFound,
    DATA_LOSS: Code.DataLoss,
    RESOURCE_EXHAUSTED: Code.ResourceExhausted,
  };
const tensor = (name: string, dims: number[], type = ElementType.FLOAT32) =>
  create(TensorInfoSchema, { name, dims, type });
const [a, b] = [tensor('a', [5]), tensor('b', [1])];
const nan = tensors({ a: [1, 2, Number.NaN, 4, 5], b: [7] });

const refused: [string, Code, RegExp, () => Promise<unknown>][] = [
  [
    'a client of no run',
    PERMISSION_DENIED,
    /not made for "west"/,
    () => server.client('west').join(joinFacts),
  ],
  ['a client without a name', PERMISSION_DENIED, /not made for ""/, () => server.client('').join(joinFacts)],
  [
    'a hash that is none',
    INVALID_ARGUMENT,
    /64 lower-case/,
    () => north.api.join({ ...joinFacts, modelHash: 'AB' }),
  ],
  [
    'a group that is no label',
    INVALID_ARGUMENT,
    /1 to 64 letters/,
    () => north.api.join({ ...joinFacts, group: '../games' }),
  ],
  [
    'another model',
    FAILED_PRECONDITION,
    /the client's cdcd.*take the same weights/,
    () => north.api.join({ ...joinFacts, modelHash: 'cd'.repeat(32) }),
  ],
  [
    'other samples than before',
    FAILED_PRECONDITION,
    /trainSamples is 11, but was 10/,
    () => north.api.join({ ...joinFacts, trainSamples: 11 }),
  ],
  [
    'other layers than before',
    FAILED_PRECONDITION,
    /layersKept is 2, but was undefined/,
    () => north.api.join({ ...joinFacts, layersKept: 2 }),
  ],
  [
    'layers that there are not',
    INVALID_ARGUMENT,
    /can be 0 to 5/,
    () => north.api.join({ ...joinFacts, layersKept: 6 }),
  ],
  [
    'layers that the server does not hold',
    FAILED_PRECONDITION,
    /holds layers from 2 on/,
    () => north.api.join({ ...joinFacts, layersKept: 1 }),
  ],
  [
    'a client after the start',
    FAILED_PRECONDITION,
    /has begun without east/,
    () => server.client('east').join(joinFacts),
  ],
  [
    'a task of another client',
    NOT_FOUND,
    /ask for its task/,
    () => send({ ...north, taskId: south.taskId }, headOf({ ...north, taskId: south.taskId })),
  ],
  [
    'the parameters of another client',
    NOT_FOUND,
    /north has no task/,
    () =>
      drain(
        north.api.download({ sessionId: north.sessionId, taskId: south.taskId, role: ParametersRole.TASK }),
      ),
  ],
  [
    'parameters of no role',
    INVALID_ARGUMENT,
    /role is 0/,
    () => drain(north.api.download({ sessionId: north.sessionId, taskId: north.taskId })),
  ],
  [
    'parameters that are not there',
    NOT_FOUND,
    /of its own for item vectors/,
    () => drain(north.api.download({ ...ids(north), role: ParametersRole.ITEMS })),
  ],
  [
    'an offset behind the end',
    INVALID_ARGUMENT,
    /offset is 25, but there are 24/,
    () => drain(north.api.download({ ...ids(north), role: ParametersRole.TASK, offset: 25n })),
  ],
  [
    'a result of training',
    FAILED_PRECONDITION,
    /send what comes of it with Upload/,
    () => north.api.reportResult({ ...ids(north), samples: 4 }),
  ],
  [
    'step 0',
    INVALID_ARGUMENT,
    /step is 0 of 3/,
    () => north.api.reportProgress({ ...ids(north), step: 0, steps: 3 }),
  ],
  [
    'a step too many',
    INVALID_ARGUMENT,
    /step is 4 of 3/,
    () => north.api.reportProgress({ ...ids(north), step: 4, steps: 3 }),
  ],
  [
    'progress with NaN',
    INVALID_ARGUMENT,
    /loss is NaN/,
    () => north.api.reportProgress({ ...ids(north), step: 1, steps: 3, loss: Number.NaN }),
  ],
  [
    'a checksum of 31 bytes',
    INVALID_ARGUMENT,
    /31 bytes long/,
    () => north.api.getUpload({ ...ids(north), sha256: bytes32.subarray(1) }),
  ],

  ['an upload of nothing', INVALID_ARGUMENT, /first message must be the head/, () => send(north)],
  [
    'an upload without a head',
    INVALID_ARGUMENT,
    /first message must be the head/,
    () => send(north, data(first)),
  ],
  ['an empty message', INVALID_ARGUMENT, /only data can follow/, () => send(north, headOf(north), {})],
  [
    'a second head',
    INVALID_ARGUMENT,
    /only data can follow/,
    () => send(north, headOf(north), headOf(north)),
  ],
  [
    'an empty part',
    INVALID_ARGUMENT,
    /a part has 0 bytes/,
    () => send(north, headOf(north), data(new Uint8Array())),
  ],
  [
    'too large a part',
    INVALID_ARGUMENT,
    /a part has 17 bytes/,
    () => send(north, headOf(north), data(new Uint8Array(17))),
  ],
  [
    'an upload without parameters',
    INVALID_ARGUMENT,
    /0 bytes long/,
    () => send(north, headOf(north, { parameters: undefined })),
  ],
  [
    'an upload that ends early',
    INVALID_ARGUMENT,
    /ended after 0 of 24 bytes/,
    () => send(north, headOf(north)),
  ],
  [
    'a wrong offset',
    FAILED_PRECONDITION,
    /offset is 16, but 0 bytes/,
    () => send(north, headOf(north, { offset: 16n }), data(second)),
  ],
  [
    'an offset without end',
    FAILED_PRECONDITION,
    /offset is 18446744073709551615/,
    () => send(north, headOf(north, { offset: 2n ** 64n - 1n })),
  ],
  [
    'a loss that is infinite',
    INVALID_ARGUMENT,
    /loss is Infinity/,
    () => send(north, headOf(north, { loss: 1 / 0 })),
  ],
  [
    'other samples',
    INVALID_ARGUMENT,
    /samples is 9, but the client joined with 10/,
    () => send(north, headOf(north, { samples: 9 })),
  ],
  [
    'more padding than tokens',
    INVALID_ARGUMENT,
    /padding_tokens is 8/,
    () => send(north, headOf(north, { computedTokens: 7n, paddingTokens: 8n })),
  ],
  [
    'tokens beyond numbers',
    INVALID_ARGUMENT,
    /too many to be true/,
    () => send(north, headOf(north, { realTokens: 2n ** 60n })),
  ],
  ...(
    [
      ['a tensor less', [a], /1 tensors; send the 2/],
      ['a tensor more', [a, b, tensor('c', [])], /3 tensors; send the 2/],
      [
        'another name',
        [a, tensor('c', [1])],
        /tensor 1 is "c" FLOAT32 \[1\]; that of the task is "b" FLOAT32 \[1\]/,
      ],
      ['another order', [b, a], /tensor 0 is "b"/],
      ['another shape', [tensor('a', [5, 1]), b], /tensor 0 is "a" FLOAT32 \[5, 1\]/],
      ['another type', [tensor('a', [5], ElementType.FLOAT16), b], /tensor 0 is "a" FLOAT16/],
      ['an unheard-of type', [tensor('a', [5], 77 as ElementType), b], /tensor 0 is "a" 77/],
      ['sizes beyond numbers', [tensor('a', Array(99).fill(4294967295)), b], /"a" FLOAT32 \[99 dimensions\]/],
    ] as const
  ).map(([what, list, message]): (typeof refused)[number] => [
    what,
    INVALID_ARGUMENT,
    message,
    () => send(north, headOf(north, { parameters: { ...info, tensors: [...list] } })),
  ]),
  [
    'a wrong sum of bytes',
    INVALID_ARGUMENT,
    /bytes is 28; the tensors of the task have 24/,
    () => send(north, headOf(north, { parameters: { ...info, bytes: 28n } })),
  ],
  [
    'a wrong checksum',
    DATA_LOSS,
    /send it again from the start/,
    () => send(north, headOf(north), data(second), data(first)),
  ],
  [
    'parameters with NaN',
    INVALID_ARGUMENT,
    /NaN or infinity in "a"/,
    () => send(north, headOf(north, { parameters: infoOf(nan) }), ...[...partsOf(nan, 0, 16)].map(data)),
  ],
];

function ids({ sessionId, taskId }: typeof north) {
  return { sessionId, taskId };
}

describe('refused, and nothing is different afterwards:', () => {
  it.each(refused)('%s', async (_, code, message, call) => {
    const before = await seen();
    const error = await refusal(call);
    expect(error.message).toMatch(message);
    expect(Code[error.code]).toBe(Code[code]);
    expect(await seen()).toEqual(before);
    await send(south, headOf(south), data(first), data(second));
    expect(await south.update).toEqual({ parameters: trained, loss: 0.5, samples: 10 });
  });
});

describe('a run that goes on', () => {
  const before = { ...testSamples, modelHash: joinFacts.modelHash };
  const known = new Map([
    ['north', { ...before, layersKept: undefined }],
    ['south', { ...before, layersKept: 2, group: 'games' }],
  ]);

  it.each([
    ['another k', 'south', { layersKept: 3 }, /layersKept is 3, but was 2 when the run began with south/],
    ['all layers', 'south', {}, /layersKept is undefined, but was 2/],
    ['a k where it had all layers', 'north', { layersKept: 2 }, /layersKept is 2, but was undefined/],
    ['other data', 'south', { layersKept: 2, testUsers: 9 }, /testUsers is 9, but was 3/],
    ['another group', 'south', { layersKept: 2, group: 'books' }, /group is books, but was games/],
  ])('refuses a client that comes back with %s', async (_, name, facts, message) => {
    const resumed = await startServer({
      expected: [...known.keys()],
      known,
      model: { hash: joinFacts.modelHash, layers: { count: 6, first: 0 } },
    });
    try {
      const error = await refusal(() => resumed.client(name).join({ ...joinFacts, ...facts }));
      expect(error.message).toMatch(message);
      expect(error.code).toBe(FAILED_PRECONDITION);
      expect(resumed.sessions.clients()).toEqual([]);
      await resumed.client('north').join(joinFacts);
      await resumed.client('south').join({ ...joinFacts, layersKept: 2, group: 'games' });
      expect((await resumed.federation.joined()).map((client) => client.name)).toEqual(['north', 'south']);
    } finally {
      await resumed.stop();
    }
  });
});

it('lets a client that joins again before the run begins say something else', async () => {
  const waiting = await startServer({
    expected: ['north', 'south'],
    model: { hash: joinFacts.modelHash, layers: { count: 6, first: 0 } },
    shareOf: ({ layersKept }) => ({ holds: (name) => name === `layer.${layersKept}` }),
  });
  try {
    const api = waiting.client('north');
    const failed = await api.join({ ...joinFacts, layersKept: 2 });
    const asking = refusal(() => api.getTask({ sessionId: failed.sessionId, waitSeconds: 30 }));
    const { sessionId } = await api.join({ ...joinFacts, layersKept: 3, trainSamples: 7 });
    expect((await asking).code).toBe(Code.Unauthenticated);
    expect(await api.getRound({ sessionId })).toMatchObject({ joined: 1, expected: 2 });
    await waiting.client('south').join(joinFacts);
    const [remote] = await waiting.federation.joined();
    expect(remote).toMatchObject({ samples: 7, facts: { layersKept: 3, trainSamples: 7 } });
    expect([2, 3].map((layer) => remote!.holds!(`layer.${layer}`))).toEqual([false, true]);
    const update = remote!.evaluate(initial, { round: 0 });
    const { taskId } = await api.getTask({ sessionId });
    await api.reportResult({ sessionId, taskId, samples: 4, loss: 0.25 });
    expect(await update).toEqual({ samples: 4, loss: 0.25 });
    const error = await refusal(() => api.join({ ...joinFacts, layersKept: 2, trainSamples: 7 }));
    expect(error.message).toMatch(/layersKept is 2, but was 3 when the run began with north/);
  } finally {
    await waiting.stop();
  }
});

describe('uploads', () => {
  it('keep what came before a part that is refused', async () => {
    const tooMuch = new Uint8Array([...second, 0]);
    const error = await refusal(() => send(north, headOf(north), data(first), data(tooMuch)));
    expect(error.message).toMatch(/9 bytes more, but only 8 of 24 are missing/);
    expect(error.code).toBe(INVALID_ARGUMENT);
    expect((await seen())[0]).toMatchObject({ received: 16n, complete: false });
    await send(north, headOf(north, { offset: 16n }), data(second));
    expect((await north.update).parameters).toEqual(trained);
  });

  it('beyond the memory for all of them wait until others are done', async () => {
    await refusal(() => send(north, headOf(north), data(first)));
    const error = await refusal(() => send(south, headOf(south), data(first), data(second)));
    expect(error.code).toBe(RESOURCE_EXHAUSTED);
    expect(error.message).toMatch(/hold 24 bytes of at most 40, and this one has 24/);
    await send(north, headOf(north, { offset: 16n }), data(second));
    await send(south, headOf(south), data(first), data(second));
    expect((await south.update).parameters).toEqual((await north.update).parameters);
  });

  it('larger than the memory for all of them are refused for good', async () => {
    const small = await startServer({ expected: ['north'], maxUploadBytes: 8 });
    try {
      const api = small.client('north');
      const { sessionId } = await api.join(joinFacts);
      const [remote] = await small.federation.joined();
      const update = remote!.train(initial, { round: 0 });
      update.catch(() => {});
      const { taskId } = await api.getTask({ sessionId });
      const who = { api, sessionId, taskId, update };
      const error = await refusal(() => send(who, headOf(who), data(first)));
      expect(error.code).toBe(INVALID_ARGUMENT);
      expect(error.message).toMatch(/24 bytes; this server takes at most 8 of all clients together/);
    } finally {
      await small.stop();
    }
  });

  it('of which nothing has arrived take no memory', async () => {
    await refusal(() => send(north, headOf(north)));
    await send(south, headOf(south), data(first), data(second));
    expect((await south.update).parameters).toEqual(trained);
  });

  it('of something else take the place of what the same client began', async () => {
    await refusal(() => send(north, headOf(north), data(first)));
    const other = tensors({ a: [1, 1, 1, 1, 1], b: [1] });
    await send(north, headOf(north, { parameters: infoOf(other) }), ...[...partsOf(other, 0, 16)].map(data));
    expect((await north.update).parameters).toEqual(other);
  });

  it('that stand still give way to a request that goes on with them', async () => {
    const { promise: standstill, resolve } = Promise.withResolvers<void>();
    async function* halting(): AsyncGenerator<Message> {
      yield headOf(north);
      yield data(first);
      await standstill;
      yield data(second);
    }
    const halted = refusal(() => north.api.upload(halting()));
    const request = { ...ids(north), sha256: info.sha256 };
    while ((await south.api.getRound({ sessionId: south.sessionId })) && (await received()) < 16n);
    expect((await halted).code).toBe(FAILED_PRECONDITION);
    await send(north, headOf(north, { offset: 16n }), data(second));
    resolve();
    expect((await north.update).parameters).toEqual(trained);

    async function received() {
      // Not asked too early: asking ends the stream.
      await new Promise((done) => setTimeout(done, 20));
      return (await north.api.getUpload(request)).received;
    }
  });

  it('are accepted twice if they are the same, without effect, and not if they differ', async () => {
    await send(north, headOf(north), data(first), data(second));
    await send(north, headOf(north), data(first), data(second));
    await send(north, headOf(north));
    const request = { ...ids(north), sha256: info.sha256 };
    expect(await north.api.getUpload(request)).toMatchObject({ complete: true });
    const other = await refusal(() =>
      send(north, headOf(north, { parameters: infoOf(initial) }), data(first)),
    );
    expect(other.code).toBe(Code.AlreadyExists);
    expect((await north.update).parameters).toEqual(trained);
    const gone = await refusal(() => drain(north.api.download({ ...ids(north), role: ParametersRole.TASK })));
    expect(gone.code).toBe(FAILED_PRECONDITION);
    expect((await north.api.getTask({ sessionId: north.sessionId })).kind).toBe(TaskKind.UNSPECIFIED);
  });

  it('and everything else that comes too late are refused with the reason', async () => {
    await refusal(() => send(north, headOf(north), data(first)));
    async function* halting(): AsyncGenerator<Message> {
      yield headOf(north, { offset: 16n });
      await new Promise(() => {});
    }
    const halted = refusal(() => north.api.upload(halting()));
    await new Promise((done) => setTimeout(done, 20));
    late.abort(new Error('round 4 went on without north'));
    await expect(north.update).rejects.toThrow('round 4 went on without north');
    const calls = [
      () => send(north, headOf(north, { offset: 16n }), data(second)),
      () => drain(north.api.download({ ...ids(north), role: ParametersRole.TASK })),
      () => north.api.getUpload({ ...ids(north), sha256: info.sha256 }),
      () => north.api.reportProgress({ ...ids(north), step: 1, steps: 2 }),
    ];
    for (const error of [await halted, ...(await Promise.all(calls.map(refusal)))]) {
      expect(error.message).toContain('round 4 went on without north');
      expect(error.code).toBe(Code.Aborted);
    }
    // Its memory is free again.
    await send(south, headOf(south), data(first), data(second));
    const next = remotes[0]!.train(initial, { round: 4 });
    const { taskId } = await north.api.getTask({ sessionId: north.sessionId });
    await send({ ...north, taskId }, headOf({ ...north, taskId }), data(first), data(second));
    expect((await next).parameters).toEqual(trained);
  });
});

describe('results', () => {
  const fits = { samples: 4, loss: 0.25 };
  const testFits = { samples: 3, truncated: 1, metrics: { 'recall@10': 0.5 } };

  it.each([
    ['other samples', { ...fits, samples: 5 }, /samples is 5, but the client joined with 4/],
    ['NaN', { ...fits, loss: Number.NaN }, /loss is NaN/],
  ])('of an evaluation with %s are refused', async (_, result, message) => {
    await withTask('evaluate', async (taskId) => {
      const error = await refusal(() => north.api.reportResult({ ...ids(north), taskId, ...result }));
      expect(error.message).toMatch(message);
      expect(error.code).toBe(INVALID_ARGUMENT);
      const upload = await refusal(() => send(north, headOf({ ...north, taskId }), data(first)));
      expect(upload.code).toBe(FAILED_PRECONDITION);
      await north.api.reportResult({ ...ids(north), taskId, ...fits });
      await north.api.reportResult({ ...ids(north), taskId, ...fits });
      const other = await refusal(() => north.api.reportResult({ ...ids(north), taskId, ...fits, loss: 1 }));
      expect(other.code).toBe(Code.AlreadyExists);
      return fits;
    });
  });

  it.each([
    ['other users', { ...testFits, samples: 4 }, /samples is 4, but the client joined with 3/],
    ['more truncated than there are', { ...testFits, truncated: 4 }, /truncated is 4/],
    ['NaN', { ...testFits, metrics: { ndcg: Number.NaN } }, /metrics: ndcg is NaN/],
    [
      'a value that is none',
      { ...testFits, metrics: { ndcg: 1.5 } },
      /metrics: ndcg is 1.5; a metric is from 0 to 1/,
    ],
    ['a name that is none', { ...testFits, metrics: { ['__proto__']: 1 } }, /is no name/],
    ['a name without end', { ...testFits, metrics: { ['n'.repeat(65)]: 1 } }, /is no name/],
    [
      'too many metrics',
      { ...testFits, metrics: Object.fromEntries(Array.from({ length: 101 }, (_, i) => [`m${i}`, 1])) },
      /101 metrics/,
    ],
  ])('of a test with %s are refused', async (_, result, message) => {
    await withTask('test', async (taskId) => {
      const error = await refusal(() => north.api.reportResult({ ...ids(north), taskId, ...result }));
      expect(error.message).toMatch(message);
      expect(error.code).toBe(INVALID_ARGUMENT);
      await north.api.reportResult({ ...ids(north), taskId, ...testFits });
      return { metrics: testFits.metrics, users: 3, truncated: 1 };
    });
  });

  async function withTask(kind: 'evaluate' | 'test', use: (taskId: string) => Promise<object>) {
    await send(north, headOf(north), data(first), data(second));
    const result = remotes[0]![kind](initial, { round: 3 });
    const { taskId } = await north.api.getTask({ sessionId: north.sessionId, waitSeconds: 1 });
    const expected = await use(taskId);
    expect(await result).toEqual(expected);
  }
});
