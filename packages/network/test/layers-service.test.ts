import { Code } from '@connectrpc/connect';
import { describe, expect, it } from 'vitest';
import { Keep } from '#proto/layers_pb';
import { type ActivationsEncoding, decodeActivations, encodingOf } from '../src/protocol/activations.ts';
import {
  activations,
  baseWeights,
  fiveRows,
  layoutOf,
  ofFive,
  plus,
  product,
  refusal,
  rowsOf,
  serve,
  tensor,
  toyLayers,
  transposed,
} from './layers-toy.ts';

const sessionId = 'a';
const forwardOf = (step: bigint, keep = Keep.GRADIENT, encoding: ActivationsEncoding = 'float32') => ({
  sessionId,
  step,
  states: activations(fiveRows, encoding),
  layout: ofFive,
  keep,
  adapted: true,
});
const backwardOf = (step: bigint, rows = fiveRows) => ({ sessionId, step, gradient: activations(rows) });
const updateOf = (step: bigint, learningRate = 0.5) => ({ sessionId, step, squaredNorm: 1, learningRate });
/** A token of both sequences, 2 beams each. */
const decodeOf = (step: bigint, parents = [0, 0, 2, 2]) => ({
  sessionId,
  step,
  states: activations(fiveRows.slice(0, 4)),
  users: [0, 1],
  beams: 2,
  parents,
});

/** A server where session 'a' has begun on a task. */
async function begun(layers = toyLayers()) {
  const server = serve({}, () => layers);
  const client = server.client();
  await client.begin({ sessionId, step: 1n, taskId: 'task' });
  return { server, client, layers };
}

const values = (message: Parameters<typeof decodeActivations>[1]) =>
  rowsOf(decodeActivations('', message, { rows: message!.rows, columns: message!.columns }));

describe('the layers service', () => {
  it('computes a forward pass, and answers in the type it was asked in', async () => {
    const { client } = await begun();
    for (const [i, encoding] of (['float32', 'float16', 'int8'] as const).entries()) {
      const { states } = await client.forward(forwardOf(BigInt(2 + i), Keep.UNSPECIFIED, encoding));
      expect(encodingOf('', states!)).toBe(encoding);
      const found = values(states).flat();
      const expected = product(fiveRows, baseWeights).flat();
      expected.forEach((value, k) => {
        expect(Math.abs(found[k]! - value)).toBeLessThan(encoding === 'int8' ? 0.1 : 1e-9);
      });
    }
  });

  it('gives the layers the layout, what to keep, whether they are adapted, and dropout', async () => {
    const { client, layers } = await begun();
    await client.forward({
      ...forwardOf(2n),
      dropout: { seed: 5n, stream: ['client-0', '#3'], sequences: [4, 1] },
    });
    await client.forward({ ...forwardOf(3n, Keep.UNSPECIFIED), adapted: false });
    const layout = { lengths: [3, 2], time: 2, prefix: 1 };
    expect(layers.forwards).toEqual([
      {
        layout,
        options: {
          keep: 'gradient',
          adapted: true,
          dropout: { seed: [5, 'client-0', 3], sequences: [4, 1] },
        },
      },
      { layout, options: { adapted: false } },
    ]);
  });

  it('trains: gradients of kept passes add up until an update', async () => {
    const { client } = await begun();
    const other = fiveRows.map((row) => row.map((x) => 1 - x));
    await client.forward(forwardOf(2n));
    const back = await client.backward(backwardOf(3n));
    expect(values(back.gradient)).toEqual(product(fiveRows, transposed(baseWeights)));
    await client.forward({ ...forwardOf(4n), states: activations(other) });
    await client.backward(backwardOf(5n));
    const gradients = product(transposed(plus(fiveRows, other)), fiveRows);
    const { squaredNorm } = await client.update(updateOf(6n, 0.5));
    expect(squaredNorm).toBe(gradients.flat().reduce((sum, g) => sum + g * g, 0));
    const weights = plus(
      baseWeights,
      gradients.map((row) => row.map((g) => -g / 2)),
    );
    const { states } = await client.forward(forwardOf(7n));
    expect(values(states)).toEqual(product(fiveRows, weights));
  });

  it('decodes behind a kept pass, for those who go on, from the rows that they go on from', async () => {
    const { client, layers } = await begun();
    await client.forward(forwardOf(2n, Keep.CACHE));
    await client.decode(decodeOf(3n, [9, 9, 9, 9]));
    const second = { ...decodeOf(4n, [3, 2]), users: [1], states: activations(fiveRows.slice(3)) };
    const { states } = await client.decode(second);
    // The prefix and the sequence's one token, then its beams of the first Decode, then this one's tokens.
    const prompt = plus([fiveRows[0]!], [fiveRows[3]!])[0]!;
    const beams = fiveRows.slice(2, 4).map((row) => plus([prompt], [row])[0]!);
    const rows = [plus([beams[1]!], [fiveRows[3]!])[0]!, plus([beams[0]!], [fiveRows[4]!])[0]!];
    expect(values(states)).toEqual(product(rows, baseWeights));
    expect(layers.decodes[0]!.parents).toEqual([0, 0, 0, 0]);
    const third = { ...decodeOf(5n, [1, 1]), users: [1], states: activations(fiveRows.slice(3)) };
    const again = values((await client.decode(third)).states);
    expect(again).toEqual(
      product(
        fiveRows.slice(3).map((row) => plus([rows[1]!], [row])[0]!),
        baseWeights,
      ),
    );
  });

  it('does a request once, however often it comes', async () => {
    const { client, layers } = await begun();
    const twice = async <T>(request: T, send: (request: T) => Promise<unknown>) => {
      const first = await send(request);
      const after = layers.state();
      expect(await send(request)).toEqual(first);
      expect(layers.state()).toEqual(after);
    };
    await twice(forwardOf(2n), client.forward);
    await twice(backwardOf(3n), client.backward);
    await twice(updateOf(4n), client.update);
    await twice(forwardOf(5n, Keep.CACHE), client.forward);
    await twice(decodeOf(6n), client.decode);
    expect(layers.state()).toMatchObject({ gradients: baseWeights.map((row) => row.map(() => 0)) });
  });

  it('does a request once that comes again before it is answered', async () => {
    const { client, layers } = await begun();
    const [first, second] = await Promise.all([client.forward(forwardOf(2n)), client.forward(forwardOf(2n))]);
    expect(second).toEqual(first);
    expect(layers.forwards.length).toBe(1);
    const gradients = await Promise.all([3n, 3n, 3n].map((step) => client.backward(backwardOf(step))));
    expect(gradients[2]).toEqual(gradients[0]);
    expect(layers.state()).toMatchObject({ gradients: product(transposed(fiveRows), fiveRows) });
    const norms = await Promise.all([4n, 4n].map((step) => client.update(updateOf(step))));
    expect(norms[1]!.squaredNorm).toBe(norms[0]!.squaredNorm);
    expect(norms[1]!.squaredNorm).toBeGreaterThan(0);
  });

  it('begins a task once, also if it comes again', async () => {
    const server = serve();
    const client = server.client();
    const begin = { sessionId, step: 1n, taskId: 'task' };
    await Promise.all([client.begin(begin), client.begin(begin)]);
    await client.begin(begin);
    expect(server.opened).toMatchObject([{ session: 'a', task: 'task' }]);
  });

  it('does the requests of a session one after another, those of several side by side', async () => {
    const server = serve({}, () =>
      toyLayers({ wait: () => new Promise((resolve) => setTimeout(resolve, 5)) }),
    );
    const [anna, ben] = [server.client('anna'), server.client('ben')];
    await anna.begin({ sessionId, step: 1n });
    await ben.begin({ sessionId: 'b', step: 1n });
    const answers = await Promise.all([
      anna.forward(forwardOf(2n)),
      anna.backward(backwardOf(3n)),
      anna.update(updateOf(4n)),
      ben.forward({ ...forwardOf(2n), sessionId: 'b' }),
    ]);
    expect(answers.length).toBe(4);
  });

  it('refuses more requests of a session at once than retries explain', async () => {
    let go = () => {};
    const { client, layers } = await begun(
      toyLayers({ wait: () => new Promise((resolve) => (go = resolve)) }),
    );
    const waiting = [2n, 2n, 2n, 2n].map((step) => client.forward(forwardOf(step)));
    await new Promise((resolve) => setTimeout(resolve, 10));
    expect(await refusal(client.forward(forwardOf(2n)), Code.ResourceExhausted)).toMatch(/try again/);
    go();
    await Promise.all(waiting);
    await client.forward(forwardOf(2n));
    expect(layers.forwards.length).toBe(1);
  });

  it('refuses numbers but the next one, and another request with the number of the last', async () => {
    const { client, layers } = await begun();
    await client.forward(forwardOf(2n));
    const before = layers.state();
    for (const step of [0n, 1n, 4n, 2n ** 64n - 1n])
      expect(await refusal(client.forward(forwardOf(step)), Code.FailedPrecondition)).toBe(
        `step: expected 3, found ${step}`,
      );
    for (const call of [
      client.forward(forwardOf(2n, Keep.CACHE)),
      client.forward({ ...forwardOf(2n), states: activations([...fiveRows].reverse()) }),
      client.backward(backwardOf(2n)),
      client.update(updateOf(2n)),
    ])
      expect(await refusal(call, Code.InvalidArgument)).toBe('step: 2 was another request');
    expect(layers.state()).toEqual(before);
    await client.backward(backwardOf(3n));
    // Messages of two methods may be the same bytes.
    await client.update({ sessionId, step: 4n });
    await refusal(client.begin({ sessionId, step: 4n }), Code.InvalidArgument);
  });

  it('asks for Begin, which counts from 1', async () => {
    const client = serve().client();
    const calls = [
      client.forward(forwardOf(1n)),
      client.backward(backwardOf(1n)),
      client.update(updateOf(1n)),
      client.decode(decodeOf(1n)),
    ];
    for (const call of calls) expect(await refusal(call, Code.FailedPrecondition)).toMatch(/Begin/);
    expect(await refusal(client.begin({ sessionId, step: 2n }), Code.FailedPrecondition)).toBe(
      'step: expected 1, found 2',
    );
    expect(await refusal(client.begin({ sessionId, step: 0n }), Code.FailedPrecondition)).toBe(
      'step: expected 1, found 0',
    );
    await client.begin({ sessionId, step: 1n });
  });

  const { states: _states, ...withoutStates } = forwardOf(2n);
  const { layout: _layout, ...withoutLayout } = forwardOf(2n);
  const nan = activations([[1, Number.NaN, 1], ...fiveRows.slice(1)]);
  const sixRows = activations([...fiveRows, [0, 0, 0]]);
  const fourColumns = activations(fiveRows.map((row) => [...row, 0]));
  const dropout = { seed: 1n, stream: [], sequences: [0, 1] };

  it.each([
    ['no states', withoutStates, /states: missing/],
    ['no layout', withoutLayout, /layout: missing/],
    [
      'a length beyond the padding',
      { ...forwardOf(2n), layout: layoutOf([4, 2], 2, 1) },
      /layout\.lengths\[0\]/,
    ],
    ['more tokens than allowed', { ...forwardOf(2n), layout: layoutOf([2, 2], 40) }, /at most 64 tokens/],
    ['rows of another layout', { ...forwardOf(2n), states: sixRows }, /states\.rows: expected 5, found 6/],
    [
      'another hidden size',
      { ...forwardOf(2n), states: fourColumns },
      /states\.columns: expected 3, found 4/,
    ],
    ['NaN', { ...forwardOf(2n), states: nan }, /found NaN in row 0, column 1/],
    ['something else to keep', { ...forwardOf(2n), keep: 7 as Keep }, /keep: .*found 7/],
    [
      'dropout of other sequences',
      { ...forwardOf(2n), dropout: { ...dropout, sequences: [0] } },
      /dropout\.seq/,
    ],
    [
      'a stream that is none',
      { ...forwardOf(2n), dropout: { ...dropout, stream: ['#x'] } },
      /dropout\.stream/,
    ],
  ])('refuses a Forward with %s', async (_, request, message) => {
    const { client, layers } = await begun();
    await client.forward(forwardOf(2n));
    const before = layers.state();
    expect(await refusal(client.forward({ ...request, step: 3n }), Code.InvalidArgument)).toMatch(message);
    expect(layers.state()).toEqual(before);
    await client.backward(backwardOf(3n));
  });

  it.each([
    ['no gradient', { sessionId, step: 3n }, /gradient: missing/],
    ['other rows', { ...backwardOf(3n), gradient: sixRows }, /gradient\.rows: expected 5, found 6/],
    ['other columns', { ...backwardOf(3n), gradient: fourColumns }, /gradient\.columns: expected 3/],
    ['NaN', { ...backwardOf(3n), gradient: nan }, /gradient: .*NaN/],
  ])('refuses a Backward with %s', async (_, request, message) => {
    const { client, layers } = await begun();
    await client.forward(forwardOf(2n));
    const before = layers.state();
    expect(await refusal(client.backward(request), Code.InvalidArgument)).toMatch(message);
    expect(layers.state()).toEqual(before);
    await client.backward(backwardOf(3n));
  });

  it('refuses a Backward with nothing kept for it: kept for Decode, not kept, used up', async () => {
    const { client, layers } = await begun();
    await client.forward(forwardOf(2n, Keep.CACHE));
    expect(await refusal(client.backward(backwardOf(3n)), Code.FailedPrecondition)).toMatch(
      /kept for Decode/,
    );
    await client.forward(forwardOf(3n));
    await client.forward(forwardOf(4n, Keep.UNSPECIFIED));
    expect(await refusal(client.backward(backwardOf(5n)), Code.FailedPrecondition)).toMatch(
      /no forward pass/,
    );
    await client.forward(forwardOf(5n));
    await client.backward(backwardOf(6n));
    const before = layers.state();
    expect(await refusal(client.backward(backwardOf(7n)), Code.FailedPrecondition)).toMatch(
      /had its Backward/,
    );
    expect(layers.state()).toEqual(before);
  });

  it.each([
    ['squaredNorm', Number.NaN],
    ['squaredNorm', Number.POSITIVE_INFINITY],
    ['squaredNorm', -1],
    ['learningRate', Number.NaN],
    ['learningRate', Number.POSITIVE_INFINITY],
    ['learningRate', -1e-9],
  ])('refuses an Update with %s %d', async (field, value) => {
    const { client, layers } = await begun();
    await client.forward(forwardOf(2n));
    await client.backward(backwardOf(3n));
    const before = layers.state();
    const message = await refusal(client.update({ ...updateOf(4n), [field]: value }), Code.InvalidArgument);
    expect(message).toMatch(field === 'squaredNorm' ? /^squared_norm: / : /^learning_rate: /);
    expect(layers.state()).toEqual(before);
    await client.update(updateOf(4n));
  });

  it.each([
    ['no users', { users: [] }, /users: .*found none/],
    ['no beams', { beams: 0 }, /beams: .*found 0/],
    ['beams that overflow', { beams: 2 ** 32 - 1 }, /at most 64 rows/],
    [
      'other beams than before',
      { beams: 1, parents: [0, 2], states: activations(fiveRows.slice(3)) },
      /beams: /,
    ],
    ['a user that is none', { users: [0, 2] }, /users\[1\]: .*found 2/],
    ['a user twice', { users: [1, 1] }, /users\[1\]: expected one after 1/],
    ['users out of order', { users: [1, 0] }, /users\[1\]: expected one after 1, found 0/],
    ['too few parents', { parents: [0, 0, 2] }, /number of parents: expected 4, found 3/],
    ['too many parents', { parents: [0, 0, 2, 2, 2] }, /number of parents: expected 4, found 5/],
    ['a parent that is no row', { parents: [0, 0, 2, 4] }, /parents\[3\]: expected 2 to 3, found 4/],
    ["another sequence's row as parent", { parents: [0, 2, 2, 2] }, /parents\[1\]: expected 0 to 1, found 2/],
    ['other rows', { states: activations(fiveRows) }, /states\.rows: expected 4, found 5/],
    ['no states', { states: undefined as never }, /states: missing/],
  ])('refuses a Decode with %s', async (_, change, message) => {
    const { client, layers } = await begun();
    await client.forward(forwardOf(2n, Keep.CACHE));
    await client.decode(decodeOf(3n));
    const before = layers.state();
    expect(await refusal(client.decode({ ...decodeOf(4n), ...change }), Code.InvalidArgument)).toMatch(
      message,
    );
    expect(layers.state()).toEqual(before);
    await client.decode(decodeOf(4n));
  });

  it('refuses a Decode of a sequence that was forgotten', async () => {
    const { client } = await begun();
    await client.forward(forwardOf(2n, Keep.CACHE));
    const first = { ...decodeOf(3n, [0, 0]), users: [0], states: activations(fiveRows.slice(3)) };
    await client.decode(first);
    expect(await refusal(client.decode(decodeOf(4n)), Code.InvalidArgument)).toMatch(/users\[1\]/);
  });

  it('refuses a Decode with nothing kept for it: kept for Backward, not kept', async () => {
    const { client } = await begun();
    await client.forward(forwardOf(2n, Keep.GRADIENT));
    expect(await refusal(client.decode(decodeOf(3n)), Code.FailedPrecondition)).toMatch(/kept for Backward/);
    await client.forward(forwardOf(3n, Keep.UNSPECIFIED));
    expect(await refusal(client.decode(decodeOf(4n)), Code.FailedPrecondition)).toMatch(/no forward pass/);
  });

  it("refuses another client's session, and leaves it as it was", async () => {
    const { server, client, layers } = await begun();
    await client.forward(forwardOf(2n));
    const before = layers.state();
    const ben = server.client('ben');
    await refusal(ben.backward(backwardOf(3n)), Code.Unauthenticated);
    await refusal(ben.begin({ sessionId, step: 3n }), Code.Unauthenticated);
    await refusal(ben.forward({ ...forwardOf(1n), sessionId: 'nobody' }), Code.Unauthenticated);
    expect(layers.state()).toEqual(before);
    await client.backward(backwardOf(3n));
  });

  it('closes the layers of the task before, once those of the next are there', async () => {
    const server = serve({}, (task) => {
      if (task === 'none') throw new Error('no such task');
      return toyLayers();
    });
    const client = server.client();
    await client.begin({ sessionId, step: 1n, taskId: 'first' });
    await client.forward(forwardOf(2n));
    await refusal(client.begin({ sessionId, step: 3n, taskId: 'none' }), Code.Internal);
    await client.backward(backwardOf(3n));
    await client.begin({ sessionId, step: 4n });
    expect(server.opened.map(({ task, layers }) => [task, layers.closed])).toEqual([
      ['first', true],
      [undefined, false],
    ]);
    await refusal(client.backward(backwardOf(5n)), Code.FailedPrecondition);
  });

  it('closes layers that fail, and goes on with a new Begin', async () => {
    let fail = false;
    const { client, layers, server } = await begun(
      toyLayers({
        wait: async () => {
          if (fail) throw new Error('out of memory at 0x1234');
        },
      }),
    );
    await client.forward(forwardOf(2n));
    fail = true;
    expect(await refusal(client.backward(backwardOf(3n)), Code.Internal)).toBe('internal error');
    expect(server.heldBytes()).toBe(4 * fiveRows.flat().length);
    expect(layers.forwards.length).toBe(1);
    expect(await refusal(client.backward(backwardOf(3n)), Code.FailedPrecondition)).toMatch(/Begin/);
    fail = false;
    await client.begin({ sessionId, step: 3n });
  });

  it('tells of each call its seconds and the bytes of its activations', async () => {
    const { server, client } = await begun();
    await client.forward(forwardOf(2n, Keep.GRADIENT, 'float16'));
    await refusal(client.backward({ ...backwardOf(3n), gradient: sixRows }), Code.InvalidArgument);
    expect(server.calls.map(({ seconds: _, ...call }) => call)).toEqual([
      { method: 'begin', bytesIn: 0, bytesOut: 0 },
      { method: 'forward', bytesIn: 30, bytesOut: 30 },
      { method: 'backward', bytesIn: 72, bytesOut: 0 },
    ]);
    for (const { seconds } of server.calls) expect(seconds).toBeGreaterThan(0);
  });

  it('answers with what is not finite, for the client to refuse', async () => {
    const { client } = await begun();
    const states = activations(fiveRows.map((row) => row.map(() => 3e38)));
    const answer = await client.forward({ ...forwardOf(2n), states });
    expect(() => values(answer.states)).toThrow(/found Infinity/);
  });

  it('frees a session that has ended, after the call that is running', async () => {
    let go = () => {};
    const { client, layers, server } = await begun(
      toyLayers({ wait: () => new Promise((resolve) => (go = resolve)) }),
    );
    const running = client.forward(forwardOf(2n));
    const waiting = client.backward(backwardOf(3n));
    await new Promise((resolve) => setTimeout(resolve, 10));
    server.sessions.delete(sessionId);
    const ended = server.end(sessionId);
    await new Promise((resolve) => setTimeout(resolve, 10));
    expect(layers.closed).toBe(false);
    go();
    await refusal(running, Code.Unauthenticated);
    await refusal(waiting, Code.Unauthenticated);
    await ended;
    expect(layers.closed).toBe(true);
    expect(server.heldBytes()).toBe(0);
    await server.end('nobody');
  });
});

it('the toy is a matrix', async () => {
  const found = await toyLayers().forward(
    tensor(fiveRows),
    { lengths: [5], time: 5, prefix: 0 },
    { adapted: true },
  );
  expect(rowsOf(found)[0]).toEqual([7, 2, 2]);
});
