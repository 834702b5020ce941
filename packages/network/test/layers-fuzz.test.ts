// Whatever a client sends, the service answers or refuses, and no other session notices.
import { create, type DescMessage, fromBinary, type MessageShape, toBinary } from '@bufbuild/protobuf';
import { createConnectRouter } from '@connectrpc/connect';
import { createUniversalHandlerClient } from '@connectrpc/connect/protocol';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Keep, LayersService } from '#proto/layers_pb';
import { ActivationsSchema, type ElementType, TokenLayoutSchema } from '#proto/tensor_pb';
import { activations, believed, fiveRows, ofFive, serve } from './layers-toy.ts';

const runs = Number(process.env['FELLREC_FUZZ_CASES'] ?? 6000);

const methods = LayersService.method;
type Method = keyof typeof methods;
type Init = Record<string, unknown>;
type Fields = Record<string, fc.Arbitrary<unknown>>;

const small = fc.oneof(
  { weight: 6, arbitrary: fc.nat(6) },
  { weight: 1, arbitrary: fc.constantFrom(2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1) },
);
const numbers = fc.oneof(
  { weight: 4, arbitrary: fc.float({ min: -9, max: 9, noNaN: true }) },
  { weight: 1, arbitrary: fc.float() },
);
const bytes = fc.oneof(
  fc.uint8Array({ maxLength: 64 }),
  fc.array(numbers, { maxLength: 18 }).map((values) => new Uint8Array(Float32Array.from(values).buffer)),
);
const encodings = fc.constantFrom('float32', 'float16', 'int8');
const rightActivations = (rows: number) =>
  fc
    .record({ encoding: encodings, values: fc.array(numbers, { minLength: 3 * rows, maxLength: 3 * rows }) })
    .map(({ encoding, values }) =>
      activations(
        Array.from({ length: rows }, (_, row) => values.slice(3 * row, 3 * row + 3)),
        encoding,
      ),
    );
const anyActivations = fc.option(
  fc.oneof(
    fc.integer({ min: 1, max: 6 }).chain(rightActivations),
    fc
      .record({ type: fc.nat(5), rows: small, columns: small, data: bytes, scales: bytes })
      .map(({ type, ...rest }) => create(ActivationsSchema, { ...rest, type: type as ElementType })),
  ),
  { nil: undefined },
);
const anyLayout = fc.option(
  fc
    .record({ lengths: fc.array(small, { maxLength: 4 }), paddedLength: small, prefix: small })
    .map((init) => create(TokenLayoutSchema, init)),
  { nil: undefined },
);
const dropoutOf = (seed: bigint, stream: fc.Arbitrary<string[]>, sequences: fc.Arbitrary<number[]>) =>
  fc.record({ seed: fc.bigInt({ min: 0n, max: seed }), stream, sequences });
const names = fc.oneof(
  fc.string({ maxLength: 6 }),
  fc.nat().map((n) => `#${n}`),
);

/** Requests that are right if what they need is kept, and what their fields may be otherwise. */
const requests: { readonly [M in Method]: { readonly right: Fields; readonly any: Fields } } = {
  begin: { right: { taskId: fc.string({ maxLength: 5 }) }, any: {} },
  forward: {
    right: {
      states: rightActivations(5),
      layout: fc.constant(ofFive),
      keep: fc.constantFrom(Keep.UNSPECIFIED, Keep.GRADIENT, Keep.CACHE),
      adapted: fc.boolean(),
      dropout: fc.option(dropoutOf(9n, fc.constant(['x', '#1']), fc.constant([1, 0])), { nil: undefined }),
    },
    any: {
      states: anyActivations,
      layout: anyLayout,
      keep: fc.integer({ min: -1, max: 9 }),
      dropout: dropoutOf(
        2n ** 64n - 1n,
        fc.array(names, { maxLength: 4 }),
        fc.array(small, { maxLength: 3 }),
      ),
    },
  },
  backward: { right: { gradient: rightActivations(5) }, any: { gradient: anyActivations } },
  update: {
    right: { squaredNorm: fc.double({ min: 0, max: 9 }), learningRate: fc.double({ min: 0, max: 1 }) },
    any: { squaredNorm: fc.double(), learningRate: fc.double() },
  },
  decode: {
    right: {
      states: rightActivations(4),
      users: fc.constant([0, 1]),
      beams: fc.constant(2),
      parents: fc.constantFrom([0, 1, 2, 3], [1, 1, 2, 2]),
    },
    any: {
      states: anyActivations,
      users: fc.array(small, { maxLength: 3 }),
      beams: small,
      parents: fc.array(small, { maxLength: 6 }),
    },
  },
};
/** A right request with up to two fields that are anything. */
function requestOf(method: Method): fc.Arbitrary<Init> {
  const { right, any } = requests[method];
  const changes = fc.subarray(Object.keys(any), { maxLength: Math.min(2, Object.keys(any).length) });
  const changed = changes.chain((fields) =>
    fc.record(Object.fromEntries(fields.map((field) => [field, any[field]!]))),
  );
  return fc
    .tuple(
      fc.record(right),
      fc.oneof({ weight: 2, arbitrary: fc.constant({}) }, { weight: 1, arbitrary: changed }),
    )
    .map(([init, change]) => ({ ...init, ...change }));
}

/** How far from the next number; mostly it is that. */
const stepOff = fc.oneof(
  { weight: 12, arbitrary: fc.constant(1n) },
  { weight: 1, arbitrary: fc.bigInt({ min: -1n, max: 2n }) },
);
const sessionIds = fc.oneof(
  { weight: 12, arbitrary: fc.constant('a') },
  { weight: 1, arbitrary: fc.constantFrom('', 'b', 'nobody') },
);
/** Bytes of the message that are changed, cut off or doubled. */
const mutations = fc.oneof(
  { weight: 6, arbitrary: fc.constant([]) },
  {
    weight: 1,
    arbitrary: fc.array(
      fc.record({ kind: fc.constantFrom('set', 'cut', 'double'), at: fc.nat(400), to: fc.nat(255) }),
      { minLength: 1, maxLength: 3 },
    ),
  },
);
const cases = fc
  .constantFrom<Method>(
    'begin',
    'forward',
    'forward',
    'forward',
    'backward',
    'backward',
    'update',
    'decode',
    'decode',
  )
  .chain((method) =>
    fc.record({
      method: fc.constant(method),
      init: requestOf(method),
      off: stepOff,
      sessionId: sessionIds,
      mutated: mutations,
    }),
  );

function mutate(
  message: Uint8Array,
  changes: readonly { kind: string; at: number; to: number }[],
): Uint8Array {
  return changes.reduce((found, { kind, at, to }) => {
    const place = at % (found.length + 1);
    if (kind === 'cut') return found.subarray(0, place);
    if (kind === 'double') return Buffer.concat([found, found.subarray(place)]);
    return Uint8Array.from(found, (byte, i) => (i === place ? to : byte));
  }, message);
}

function isMessage(method: Method, body: Uint8Array): boolean {
  try {
    fromBinary(methods[method].input as DescMessage, body);
    return true;
  } catch {
    return false;
  }
}

describe('the layers service under requests of any kind', () => {
  it(`answers or refuses ${runs} of them, each session alone`, async () => {
    const server = serve({ limits: { bytes: 3000, tokens: 12 } });
    const router = createConnectRouter({ connect: true, interceptors: [believed] });
    server.routes(router);
    const send = createUniversalHandlerClient(router.handlers);

    async function post(client: string, method: Method, body: Uint8Array): Promise<string> {
      const response = await send({
        url: `https://in-memory/fellrec.v1.LayersService/${methods[method].name}`,
        method: 'POST',
        header: new Headers({ 'content-type': 'application/proto', 'connect-protocol-version': '1', client }),
        body: (async function* () {
          yield body;
        })(),
        signal: new AbortController().signal,
      });
      const answer = Buffer.concat(await Array.fromAsync(response.body));
      return response.status === 200 ? 'ok' : JSON.parse(answer.toString()).code;
    }
    const encode = (method: Method, init: Init) => {
      const schema: DescMessage = methods[method].input;
      return toBinary(schema, create(schema, init) as MessageShape<DescMessage>);
    };

    // Ben is in the middle of a task.
    const ben = server.client('ben');
    await ben.begin({ sessionId: 'b', step: 1n });
    const forward = {
      sessionId: 'b',
      step: 2n,
      states: activations(fiveRows),
      layout: ofFive,
      keep: Keep.GRADIENT,
      adapted: true,
    };
    const answer = await ben.forward(forward);
    const ofBen = server.opened[0]!.layers;
    const before = ofBen.state();

    let step = 0n;
    const outcomes = new Map<string, number>();
    const stateOfAnna = () => server.opened.findLast(({ session }) => session === 'a')?.layers.state();
    await fc.assert(
      fc.asyncProperty(cases, async ({ method, init, off, sessionId, mutated }) => {
        const body = mutate(
          encode(method, { ...init, sessionId, step: BigInt.asUintN(64, step + off) }),
          mutated,
        );
        const [state, forwards] = [stateOfAnna(), server.opened.length];
        const outcome = await post('anna', method, body);
        outcomes.set(`${method} ${outcome}`, (outcomes.get(`${method} ${outcome}`) ?? 0) + 1);
        // What is no message at all does not get here: Connect refuses it, with codes of its own.
        if (isMessage(method, body))
          expect(['internal', 'unknown', 'unavailable', 'data_loss']).not.toContain(outcome);
        else expect(outcome).not.toBe('ok');
        expect(ofBen.state()).toEqual(before);
        if (outcome !== 'ok') {
          expect(server.opened.length).toBe(forwards);
          if (outcome !== 'resource_exhausted') expect(stateOfAnna()).toEqual(state);
        } else if (off === 1n && mutated.length === 0) step++;
        else step = await stepOf();
      }),
      // A session goes on from case to case: fewer of them are other ones.
      { numRuns: runs, endOnFailure: true },
    );

    /** The last answered number of session 'a', from what another is refused with. */
    async function stepOf(): Promise<bigint> {
      const response = await server
        .client()
        .update({ sessionId: 'a', step: 2n ** 64n - 1n })
        .catch((error: Error) => error.message);
      return BigInt(/expected (\d+)/.exec(String(response))![1]!) - 1n;
    }

    // Every method was answered and refused, and Ben goes on.
    if (runs >= 2500)
      for (const method of Object.keys(methods)) {
        expect(outcomes.get(`${method} ok`), method).toBeGreaterThan(10);
        if (method !== 'begin') expect(outcomes.get(`${method} invalid_argument`), method).toBeGreaterThan(0);
      }
    expect(await ben.forward(forward)).toEqual(answer);
    await ben.backward({ sessionId: 'b', step: 3n, gradient: activations(fiveRows) });
  });
});
