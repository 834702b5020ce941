// One client sends whatever it likes. It is only ever refused for a reason that it can understand, and the other client's
// round goes on as if nothing had been. FELLREC_FUZZ_CASES sets the number of requests.
import { create, type DescMessage, fromBinary, toBinary } from '@bufbuild/protobuf';
import { createConnectRouter } from '@connectrpc/connect';
import { createUniversalHandlerClient, encodeEnvelope } from '@connectrpc/connect/protocol';
import fc from 'fast-check';
import { expect, it } from 'vitest';
import { FederationService, JoinResponseSchema, ParametersRole } from '#proto/federation_pb';
import { ElementType } from '#proto/tensor_pb';
import { tensors } from '../../federation/test/toy.js';
import { describe as infoOf, partsOf } from '../src/protocol/parameters.ts';
import { identify, joinFacts, startServer } from './federation-harness.ts';

const cases = Number(process.env['FELLREC_FUZZ_CASES'] ?? 6000);
const casesPerServer = 25;

/** What a client can be told; INTERNAL and UNKNOWN would be faults of the server. */
const sensible = new Set([
  'invalid_argument',
  'not_found',
  'already_exists',
  'permission_denied',
  'resource_exhausted',
  'failed_precondition',
  'aborted',
  'data_loss',
  'unauthenticated',
  'unreadable',
]);

const initial = tensors({ a: [1, 2, 3, 4, 5], b: [6] }); // 24 bytes: parts of 16 and 8
const trained = tensors({ a: [1, 2, 3, 4, 5.5], b: [7] });
const info = infoOf(trained);
const [first, second] = [...partsOf(trained, 0, 16)] as [Uint8Array, Uint8Array];

/** Values that are right, or nearly, or anything; those that only the running server knows stand as a word. */
const sessionId = weighted('own session', ['others session', 'replaced session', ''], fc.string());
const taskId = weighted('own task', ['others task', 'done task', 'closed task', ''], fc.string());
const sha256 = weighted(
  info.sha256,
  [new Uint8Array(32), new Uint8Array()],
  fc.uint8Array({ maxLength: 40 }),
);
const uint32 = fc.oneof(fc.nat(20), fc.constantFrom(2 ** 31, 2 ** 32 - 1), fc.nat(2 ** 31));
const uint64 = fc.oneof(
  fc.bigInt(0n, 40n),
  fc.constantFrom(2n ** 53n, 2n ** 64n - 1n),
  fc.bigInt(0n, 2n ** 64n - 1n),
);
const loss = fc.oneof({ weight: 4, arbitrary: fc.constant(0.5) }, { weight: 1, arbitrary: fc.double() });
const tensorInfo = fc.record({
  name: weighted('a', ['b', '', '__proto__'], fc.string()),
  type: weighted(ElementType.FLOAT32, [ElementType.FLOAT16, 77 as ElementType], fc.nat(9)),
  dims: fc.oneof(fc.constant([5]), fc.array(uint32, { maxLength: 12 })),
});
const parameters = fc.oneof(
  { weight: 9, arbitrary: fc.constant(info) },
  { weight: 1, arbitrary: fc.constant(undefined) },
  {
    weight: 1,
    arbitrary: fc.record({ tensors: fc.array(tensorInfo, { maxLength: 4 }), bytes: uint64, sha256 }),
  },
  { weight: 1, arbitrary: fc.record({ tensors: fc.constant(info.tensors), bytes: uint64, sha256 }) },
);
const head = fc.record({
  sessionId,
  taskId,
  parameters,
  offset: weighted(0n, [16n, 24n], uint64),
  loss,
  samples: weighted(10, [0, 9], uint32),
  realTokens: weighted(0n, [70n], uint64),
  computedTokens: weighted(80n, [0n], uint64),
  paddingTokens: weighted(0n, [81n], uint64),
});
const part = fc.oneof(
  fc.record({
    case: fc.constant('data' as const),
    value: weighted(first, [second, new Uint8Array()], fc.uint8Array({ maxLength: 20 })),
  }),
  fc.record({ case: fc.constant('head' as const), value: head }),
  fc.constant({ case: undefined }),
);
const uploads = fc.oneof(
  fc
    .tuple(head, fc.array(part, { maxLength: 4 }))
    .map(([value, parts]) => [{ case: 'head' as const, value }, ...parts]),
  head.map((value) => [
    { case: 'head' as const, value },
    { case: 'data' as const, value: first },
    { case: 'data' as const, value: second },
  ]),
  fc.array(part, { maxLength: 4 }),
);

const { method } = FederationService;
type Method = keyof typeof method;
const requests: Readonly<Record<Method, fc.Arbitrary<object[]>>> = {
  join: fc
    .record({
      modelHash: weighted(joinFacts.modelHash, ['', 'AB'.repeat(32)], fc.string()),
      layersKept: fc.oneof(fc.constant(undefined), uint32),
      trainSamples: weighted(10, [0], uint32),
      validationSamples: weighted(4, [0], uint32),
      testUsers: weighted(3, [0], uint32),
    })
    .map((message) => [message]),
  getRound: fc.record({ sessionId }).map((message) => [message]),
  getTask: fc.record({ sessionId, waitSeconds: uint32 }).map((message) => [message]),
  download: fc
    .record({
      sessionId,
      taskId,
      role: weighted(ParametersRole.TASK, [ParametersRole.ITEMS, 9 as ParametersRole], fc.nat(3)),
      offset: uint64,
    })
    .map((message) => [message]),
  upload: uploads.map((parts) => parts.map((part) => ({ part }))),
  getUpload: fc.record({ sessionId, taskId, sha256 }).map((message) => [message]),
  reportProgress: fc
    .record({ sessionId, taskId, step: uint32, steps: uint32, loss })
    .map((message) => [message]),
  reportResult: fc
    .record({
      sessionId,
      taskId,
      samples: weighted(4, [3, 0], uint32),
      loss,
      metrics: fc.dictionary(weighted('recall@10', ['__proto__', ''], fc.string()), loss, { maxKeys: 5 }),
      truncated: weighted(1, [0, 4], uint32),
    })
    .map((message) => [message]),
  leave: fc
    .record({ sessionId, reason: fc.option(fc.string(), { nil: undefined }) })
    .map((message) => [message]),
};
const request = fc.constantFrom(...(Object.keys(requests) as Method[])).chain((name) =>
  fc.record({
    name: fc.constant(name),
    messages: requests[name],
    // Bytes that change within the encoded messages, by their place in thousandths of the length.
    flips: fc.oneof(
      { weight: 6, arbitrary: fc.constant([]) },
      {
        weight: 1,
        arbitrary: fc.array(fc.tuple(fc.nat(999), fc.nat(255)), {
          maxLength: 4,
        }),
      },
    ),
    // How much of the last message is sent, in thousandths.
    share: fc.oneof({ weight: 9, arbitrary: fc.constant(1000) }, { weight: 1, arbitrary: fc.nat(1000) }),
  }),
);

it('a client that sends anything harms nobody', async () => {
  const codes = new Map<string, number>();
  await fc.assert(
    fc.asyncProperty(
      fc.array(request, { minLength: casesPerServer, maxLength: casesPerServer, size: 'max' }),
      async (list) => {
        const world = await openWorld();
        try {
          const before = await world.ofNorth();
          for (const [i, one] of list.entries()) {
            if (i % 5 === 4) await world.nextTask();
            const code = await world.send(one);
            const key = `${one.name} ${code}`;
            codes.set(key, (codes.get(key) ?? 0) + 1);
            if (code !== 'ok') expect(sensible).toContain(code);
            expect(await world.ofNorth()).toEqual(before);
          }
          await world.finishNorth();
        } finally {
          await world.close();
        }
      },
    ),
    { numRuns: Math.ceil(cases / casesPerServer), endOnFailure: true },
  );
  // It reaches what lies behind the checks, too.
  for (const name of Object.keys(requests)) expect([...codes.keys()]).toContain(`${name} ok`);
  if (process.env['FELLREC_FUZZ_CASES']) console.log(Object.fromEntries([...codes].sort()));
}, 600_000);

type Sent = typeof request extends fc.Arbitrary<infer T> ? T : never;

/** A server with north, half of whose upload has arrived, and mallory, who always has something to do. */
async function openWorld() {
  const server = await startServer({ expected: ['mallory', 'north'] });
  const router = createConnectRouter({ interceptors: [identify] }).service(
    FederationService,
    server.federation.service,
  );
  const post = createUniversalHandlerClient(router.handlers);
  const [north, mallory] = [server.client('north'), server.client('mallory')];
  const { sessionId: others } = await north.join(joinFacts);
  const { sessionId: replaced } = await mallory.join(joinFacts);
  const known = { own: (await mallory.join(joinFacts)).sessionId };
  const [ofMallory, ofNorth] = await server.federation.joined();

  const update = ofNorth!.train(initial, { round: 1 });
  update.catch(() => {});
  const { taskId: othersTask } = await north.getTask({ sessionId: others });
  async function* upload(offset: bigint, ...parts: Uint8Array[]) {
    const value = { sessionId: others, taskId: othersTask, parameters: info, offset, loss: 0.5, samples: 10 };
    yield { part: { case: 'head' as const, value } };
    for (const value of parts) yield { part: { case: 'data' as const, value } };
  }
  await expect(north.upload(upload(0n, first))).rejects.toThrow('ended after 16 of 24 bytes');

  const closed = new AbortController();
  const lost = ofMallory!.train(initial, { round: 0, signal: closed.signal });
  const { taskId: closedTask } = await mallory.getTask({ sessionId: known.own });
  closed.abort(new Error('too late'));
  await expect(lost).rejects.toThrow('too late');
  const done = ofMallory!.evaluate(initial, { round: 0 });
  const { taskId: doneTask } = await mallory.getTask({ sessionId: known.own });
  await mallory.reportResult({ sessionId: known.own, taskId: doneTask, samples: 4, loss: 0.5 });
  await done;

  let isOver = false;
  let turn = new AbortController();
  let ownTask = '';
  const work = (async () => {
    for (let round = 1; !isOver; round++)
      for (const kind of ['train', 'evaluate', 'test'] as const) {
        turn = new AbortController();
        await ofMallory![kind](initial, { round, signal: turn.signal }).catch(async () => {
          // At once, for as long as mallory has failed.
          if (!turn.signal.aborted) await new Promise(setImmediate);
        });
      }
  })();

  const words = new Map([
    ['own session', () => known.own],
    ['others session', () => others],
    ['replaced session', () => replaced],
    ['own task', () => ownTask],
    ['others task', () => othersTask],
    ['done task', () => doneTask],
    ['closed task', () => closedTask],
  ]);
  function filled(value: unknown): unknown {
    if (typeof value === 'string') return words.get(value)?.() ?? value;
    if (Array.isArray(value)) return value.map(filled);
    if (value === null || typeof value !== 'object' || value instanceof Uint8Array) return value;
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, filled(inner)]));
  }

  return {
    async ofNorth() {
      const { taskId, kind, round } = await north.getTask({ sessionId: others });
      const { received, complete } = await north.getUpload({
        sessionId: others,
        taskId,
        sha256: info.sha256,
      });
      return { taskId, kind, round, received, complete };
    },
    async finishNorth() {
      await north.upload(upload(16n, second));
      expect(await update).toEqual({ parameters: trained, loss: 0.5, samples: 10 });
    },
    /** The round goes on without mallory, who gets something else to do. */
    async nextTask() {
      turn.abort(new Error('late'));
      await new Promise(setImmediate);
    },
    /** 'ok', or the code of the refusal. */
    async send({ name, messages, flips, share }: Sent) {
      ownTask = await mallory.getTask({ sessionId: known.own }).then(
        (task) => task.taskId,
        async () => {
          known.own = (await mallory.join(joinFacts)).sessionId;
          return (await mallory.getTask({ sessionId: known.own })).taskId;
        },
      );
      const { input, methodKind } = method[name];
      const bodies = messages.map((message) =>
        toBinary(
          input as DescMessage,
          create(input as DescMessage, filled(message) as Record<string, unknown>),
        ),
      );
      const last = bodies.at(-1);
      if (last) bodies[bodies.length - 1] = last.subarray(0, Math.ceil((share / 1000) * last.length));
      for (const [place, bits] of flips)
        for (const body of bodies)
          if (body.length > 0) body[Math.floor((place / 1000) * body.length)]! ^= bits;
      const isUnary = methodKind === 'unary';
      const response = await post({
        url: `https://in-memory/${FederationService.typeName}/${method[name].name}`,
        method: 'POST',
        header: new Headers({
          'content-type': isUnary ? 'application/proto' : 'application/connect+proto',
          'x-client': 'mallory',
        }),
        body: (async function* () {
          for (const body of bodies) yield isUnary ? body : encodeEnvelope(0, body);
        })(),
        signal: AbortSignal.timeout(10_000),
      });
      const answer = Buffer.concat(await Array.fromAsync(response.body));
      if (isUnary && response.status !== 200) return codeOf(JSON.parse(answer.toString()));
      if (name === 'join') known.own = fromBinary(JoinResponseSchema, answer).sessionId;
      return isUnary ? 'ok' : endOf(answer);
    },
    async close() {
      isOver = true;
      while (!turn.signal.aborted) {
        turn.abort(new Error('over'));
        await new Promise(setImmediate);
      }
      await work;
      await server.stop();
    },
  };
}

/** The code in the last message of a stream. */
function endOf(answer: Buffer): string {
  for (let at = 0; at < answer.length; ) {
    const end = at + 5 + answer.readUInt32BE(at + 1);
    if (answer[at] === 2) return codeOf(JSON.parse(answer.subarray(at + 5, end).toString()).error);
    at = end;
  }
  throw new Error('the stream has no end');
}

/** Connect answers bytes that are no message with INTERNAL, before anyone else sees them. */
function codeOf(error: { code: string; message?: string } | undefined): string {
  return error?.message?.startsWith('parse binary') ? 'unreadable' : (error?.code ?? 'ok');
}

/** Mostly what is right. */
function weighted<T>(right: T, wrong: T[], any: fc.Arbitrary<T>): fc.Arbitrary<T> {
  return fc.oneof(
    { weight: 20, arbitrary: fc.constant(right) },
    { weight: 2, arbitrary: fc.constantFrom(...wrong) },
    { weight: 1, arbitrary: any },
  );
}
