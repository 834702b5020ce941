import { Code } from '@connectrpc/connect';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { Keep } from '#proto/layers_pb';
import {
  activations,
  fiveRows,
  hiddenSize,
  layoutOf,
  ofFive,
  refusal,
  type Server,
  serve,
  toyLayers,
} from './layers-toy.ts';

const own = 8 * hiddenSize ** 2;
const answer = 4 * hiddenSize * 5;
/** A request and its answer as float32. */
const work = 2 * answer;
const keptRow = 100;

const forwardOf = (sessionId: string, step: bigint, keep: Keep) => ({
  sessionId,
  step,
  states: activations(fiveRows),
  layout: ofFive,
  keep,
  adapted: true,
});
const backwardOf = (sessionId: string, step: bigint) => ({
  sessionId,
  step,
  gradient: activations(fiveRows),
});
const decodeOf = (sessionId: string, step: bigint) => ({
  sessionId,
  step,
  states: activations(fiveRows.slice(0, 2)),
  users: [0, 1],
  beams: 1,
  parents: [0, 1],
});

async function both(bytes: number, cacheSeconds = 60) {
  const server = serve({ limits: { bytes, tokens: 1000 }, cacheSeconds }, () =>
    toyLayers({ bytesPerKeptRow: keptRow }),
  );
  const [anna, ben] = [server.client('anna'), server.client('ben')];
  await anna.begin({ sessionId: 'a', step: 1n });
  await ben.begin({ sessionId: 'b', step: 1n });
  return { server, anna, ben };
}

function states({ opened }: Server): unknown[] {
  return opened.map(({ layers }) => layers.state());
}

describe('the memory of the layers service', () => {
  it('is what layers hold, the last answers, and room for the Backward of what is kept', async () => {
    const { server, anna } = await both(100_000);
    expect(server.heldBytes()).toBe(2 * own);
    await anna.forward(forwardOf('a', 2n, Keep.UNSPECIFIED));
    expect(server.heldBytes()).toBe(2 * own + answer);
    await anna.forward(forwardOf('a', 3n, Keep.GRADIENT));
    expect(server.heldBytes()).toBe(2 * own + 5 * keptRow + answer + work);
    await anna.backward(backwardOf('a', 4n));
    expect(server.heldBytes()).toBe(2 * own + answer);
    await anna.update({ sessionId: 'a', step: 5n, squaredNorm: 1, learningRate: 1 });
    expect(server.heldBytes()).toBe(2 * own);
  });

  it('is bounded over all sessions: who comes too much waits until another frees', async () => {
    const { server, anna, ben } = await both(2 * own + 5 * keptRow + answer + work + work - 1);
    await anna.forward(forwardOf('a', 2n, Keep.GRADIENT));
    const before = states(server);
    for (const keep of [Keep.GRADIENT, Keep.CACHE, Keep.UNSPECIFIED])
      expect(await refusal(ben.forward(forwardOf('b', 2n, keep)), Code.ResourceExhausted)).toMatch(
        /try again/,
      );
    expect(states(server)).toEqual(before);
    await anna.backward(backwardOf('a', 3n));
    await ben.forward(forwardOf('b', 2n, Keep.UNSPECIFIED));
  });

  it('is free again when a session ends', async () => {
    const { server, anna, ben } = await both(2 * own + 5 * keptRow + answer + work + work - 1);
    await anna.forward(forwardOf('a', 2n, Keep.GRADIENT));
    await refusal(ben.forward(forwardOf('b', 2n, Keep.GRADIENT)), Code.ResourceExhausted);
    server.sessions.delete('a');
    await server.end('a');
    await ben.forward(forwardOf('b', 2n, Keep.GRADIENT));
  });

  it('counts what is being computed', async () => {
    let go = () => {};
    const server = serve({ limits: { bytes: 2 * own + 2 * work - 1, tokens: 1000 } }, () =>
      toyLayers({ wait: () => new Promise((resolve) => (go = resolve)) }),
    );
    const [anna, ben] = [server.client('anna'), server.client('ben')];
    await anna.begin({ sessionId: 'a', step: 1n });
    await ben.begin({ sessionId: 'b', step: 1n });
    const first = anna.forward(forwardOf('a', 2n, Keep.UNSPECIFIED));
    await new Promise((resolve) => setTimeout(resolve, 10));
    await refusal(ben.forward(forwardOf('b', 2n, Keep.UNSPECIFIED)), Code.ResourceExhausted);
    go();
    await first;
    const second = ben.forward(forwardOf('b', 2n, Keep.UNSPECIFIED));
    await new Promise((resolve) => setTimeout(resolve, 10));
    go();
    await second;
  });

  it('never keeps a Backward from ending what is kept', async () => {
    // Both keep a pass, and nothing is left.
    const { anna, ben } = await both(2 * (own + 5 * keptRow + answer + work));
    await anna.forward(forwardOf('a', 2n, Keep.GRADIENT));
    await ben.forward(forwardOf('b', 2n, Keep.GRADIENT));
    await anna.backward(backwardOf('a', 3n));
    await ben.backward(backwardOf('b', 3n));
  });

  it('counts nothing twice of what a Forward replaces', async () => {
    const { anna } = await both(2 * own + 5 * keptRow + answer + work + answer);
    for (const step of [2n, 3n, 4n]) await anna.forward(forwardOf('a', step, Keep.GRADIENT));
  });

  it('refuses for good what can never fit, and says the limit', async () => {
    const { server, anna } = await both(1000);
    const states = activations(new Array(40).fill([1, 2, 3]));
    const request = { ...forwardOf('a', 2n, Keep.UNSPECIFIED), states, layout: layoutOf([40], 40) };
    const message = await refusal(anna.forward(request), Code.InvalidArgument);
    expect(message).toMatch(/takes 1032 bytes .* at most 1000/);
    expect(server.heldBytes()).toBe(2 * own);
    await anna.forward(forwardOf('a', 2n, Keep.UNSPECIFIED));
  });

  it('forgets a pass that turns out to be too large to keep', async () => {
    const alone = own + 5 * keptRow + work + answer;
    const { server, anna, ben } = await both(alone + own + answer - 1);
    await ben.forward(forwardOf('b', 2n, Keep.UNSPECIFIED));
    await refusal(anna.forward(forwardOf('a', 2n, Keep.GRADIENT)), Code.ResourceExhausted);
    expect(server.heldBytes()).toBe(2 * own + answer);
    expect(await refusal(anna.backward(backwardOf('a', 2n)), Code.FailedPrecondition)).toMatch(/no memory/);
    await ben.begin({ sessionId: 'b', step: 3n });
    await anna.forward(forwardOf('a', 2n, Keep.GRADIENT));
    const small = await both(alone - 1);
    await refusal(small.anna.forward(forwardOf('a', 2n, Keep.GRADIENT)), Code.InvalidArgument);
  });

  it('closes layers that there is no memory for, and leaves those of the task before', async () => {
    const server = serve({ limits: { bytes: 2 * own - 1, tokens: 10 } });
    const [anna, ben] = [server.client('anna'), server.client('ben')];
    await anna.begin({ sessionId: 'a', step: 1n });
    await refusal(ben.begin({ sessionId: 'b', step: 1n }), Code.ResourceExhausted);
    await anna.begin({ sessionId: 'a', step: 2n });
    expect(server.opened.map(({ layers }) => layers.closed)).toEqual([true, true, false]);
    const small = serve({ limits: { bytes: own - 1, tokens: 10 } });
    await refusal(small.client().begin({ sessionId: 'a', step: 1n }), Code.InvalidArgument);
    expect(small.opened[0]!.layers.closed).toBe(true);
  });

  it('lets a Decode wait until another session frees', async () => {
    const kept = own + 2 * keptRow + answer;
    const { server, anna, ben } = await both(2 * kept + 4 * 4 * hiddenSize - 1);
    await anna.forward(forwardOf('a', 2n, Keep.CACHE));
    await ben.forward(forwardOf('b', 2n, Keep.CACHE));
    const before = states(server);
    await refusal(anna.decode(decodeOf('a', 3n)), Code.ResourceExhausted);
    expect(states(server)).toEqual(before);
    await ben.forward(forwardOf('b', 3n, Keep.UNSPECIFIED));
    await anna.decode(decodeOf('a', 3n));
  });
});

describe('a cache', () => {
  beforeEach(() => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
  });
  afterEach(() => {
    vi.useRealTimers();
  });

  it('expires when it is not used, and then its memory is free', async () => {
    const { server, anna } = await both(100_000, 10);
    await anna.forward(forwardOf('a', 2n, Keep.CACHE));
    await anna.decode(decodeOf('a', 3n));
    const held = server.heldBytes();
    await vi.advanceTimersByTimeAsync(9_999);
    expect(server.heldBytes()).toBe(held);
    await vi.advanceTimersByTimeAsync(1);
    expect(server.heldBytes()).toBe(2 * own + 4 * 2 * hiddenSize);
    expect(await refusal(anna.decode(decodeOf('a', 4n)), Code.FailedPrecondition)).toMatch(
      /expired after 10 s; send the prompt again/,
    );
    await anna.forward(forwardOf('a', 4n, Keep.CACHE));
    await anna.decode(decodeOf('a', 5n));
  });

  it('is used by each Decode, and not by one that is refused', async () => {
    const { anna } = await both(100_000, 10);
    await anna.forward(forwardOf('a', 2n, Keep.CACHE));
    for (const step of [3n, 4n, 5n]) {
      await vi.advanceTimersByTimeAsync(9_000);
      await anna.decode(decodeOf('a', step));
    }
    await vi.advanceTimersByTimeAsync(9_000);
    await refusal(anna.decode({ ...decodeOf('a', 6n), beams: 0 }), Code.InvalidArgument);
    await vi.advanceTimersByTimeAsync(1_000);
    await refusal(anna.decode(decodeOf('a', 6n)), Code.FailedPrecondition);
  });

  it('does not expire behind the Decode that uses it', async () => {
    let wait = async () => {};
    const server = serve({ cacheSeconds: 10 }, () => toyLayers({ wait: () => wait() }));
    const anna = server.client('anna');
    await anna.begin({ sessionId: 'a', step: 1n });
    await anna.forward(forwardOf('a', 2n, Keep.CACHE));
    wait = () => new Promise((resolve) => setTimeout(resolve, 15_000));
    const slow = anna.decode(decodeOf('a', 3n));
    await vi.advanceTimersByTimeAsync(15_000);
    await slow;
    wait = async () => {};
    await anna.decode(decodeOf('a', 4n));
    // One expiry waits, of the last use.
    expect(vi.getTimerCount()).toBe(1);
  });

  it('expires alone: what came in its place stays', async () => {
    const { anna } = await both(100_000, 10);
    await anna.forward(forwardOf('a', 2n, Keep.CACHE));
    await anna.forward(forwardOf('a', 3n, Keep.GRADIENT));
    await vi.advanceTimersByTimeAsync(60_000);
    await anna.backward(backwardOf('a', 4n));
  });
});
