// The middle layers of a client are those of the server, over a network that loses connections.
import { createServer } from 'node:http2';
import type { AddressInfo, Socket } from 'node:net';
import { create } from '@bufbuild/protobuf';
import { Code, ConnectError, createClient } from '@connectrpc/connect';
import { connectNodeAdapter, createConnectTransport, Http2SessionManager } from '@connectrpc/connect-node';
import { float32 } from '@fellrec/graph';
import type { MiddleLayers, TokenLayout } from '@fellrec/models';
import { describe, expect, it } from 'vitest';
import { LayersService, UpdateResponseSchema } from '#proto/layers_pb';
import { type LayersClient, type RemoteMiddleOptions, remoteMiddle } from '../src/client/remote-middle.ts';
import type { ActivationsEncoding } from '../src/protocol/activations.ts';
import { layersService } from '../src/server/layers-service.ts';
import { fiveRows, refusal, rowsOf, type Server, serve, tensor, toyLayers } from './layers-toy.ts';

const layout: TokenLayout = { lengths: [3, 2], time: 2, prefix: 1 };
const twoRows = tensor(fiveRows.slice(2, 4));

/** Calls in session 'a', each again as long as `again` says so. */
function calling(client: LayersClient, again: (error: ConnectError) => boolean = () => false) {
  const call: RemoteMiddleOptions['call'] = async (attempt) => {
    for (;;)
      try {
        return await attempt(client, 'a');
      } catch (reason) {
        const error = ConnectError.from(reason);
        if (!again(error)) throw error;
      }
  };
  return call;
}

const remote = (server: Server, encoding: ActivationsEncoding = 'float32') =>
  remoteMiddle({ call: calling(server.client()), encoding, trains: true });

/** What a client does in a task: two steps of training, then generation. */
async function task(middle: MiddleLayers): Promise<unknown[]> {
  const found: unknown[] = [];
  const dropout = { seed: [1, 'client-0', 2], sequences: [1, 0] } as const;
  for (const adapted of [true, true]) {
    found.push(await middle.forward(tensor(fiveRows), layout, { keep: 'gradient', adapted, dropout }));
    found.push(await middle.backward(tensor(fiveRows)));
    found.push(await middle.update(0.5, 0.25));
  }
  found.push(await middle.forward(tensor(fiveRows), layout, { adapted: false }));
  found.push(await middle.forward(tensor(fiveRows), layout, { keep: 'cache', adapted: true }));
  const beams = { states: tensor(fiveRows.slice(0, 4)), users: [0, 1], beams: 2, parents: [0, 0, 0, 0] };
  found.push(await middle.decode(beams));
  found.push(await middle.decode({ states: twoRows, users: [1], beams: 2, parents: [3, 2] }));
  return found;
}

describe('remote middle layers', () => {
  it('are those of the server', async () => {
    const [server, here] = [serve(), toyLayers()];
    const middle = remote(server);
    await middle.begin('task');
    expect(await task(middle)).toEqual(await task(here));
    const { layers, task: begun } = server.opened[0]!;
    expect(begun).toBe('task');
    expect(layers.state()).toEqual(here.state());
    expect(layers.forwards).toEqual(here.forwards);
  });

  it('are those of the server when requests and answers are lost', async () => {
    const [server, here] = [serve(), toyLayers()];
    // Of three attempts one does not arrive, the answer of one is lost, and one goes well.
    let [attempts, lost] = [0, 0];
    const losing = (send: (request: never) => Promise<unknown>) => async (request: never) => {
      const fate = attempts++ % 3;
      if (fate < 2) lost++;
      const answer = fate > 0 && (await send(request));
      if (fate < 2) throw new ConnectError('lost', Code.Unavailable);
      return answer;
    };
    const flaky = Object.fromEntries(
      Object.entries(server.client()).map(([name, send]) => [name, losing(send)]),
    ) as unknown as LayersClient;
    const call = calling(flaky, ({ code }) => code === Code.Unavailable);
    const middle = remoteMiddle({ call, encoding: 'float32', trains: true });
    await middle.begin('task');
    expect(await task(middle)).toEqual(await task(here));
    expect(lost).toBeGreaterThan(10);
    expect(server.opened[0]!.layers.state()).toEqual(here.state());
  });

  it('pass on what they are refused with, and go on with the same number', async () => {
    const server = serve();
    const middle = remote(server);
    await refusal(middle.backward(tensor(fiveRows)), Code.FailedPrecondition);
    await middle.begin(undefined);
    expect(server.opened[0]!.task).toBe(undefined);
    await refusal(middle.backward(tensor(fiveRows)), Code.FailedPrecondition);
    const forward = middle.forward(tensor(fiveRows), layout, { adapted: false });
    expect(rowsOf(await forward)[0]).toEqual([7, 2, 2]);
  });

  it('count anew in another session, where a task has to begin first', async () => {
    const server = serve();
    let id = 'a';
    const [anna, ben] = [server.client('anna'), server.client('ben')];
    const middle = remoteMiddle({
      call: (attempt) => attempt(id === 'a' ? anna : ben, id),
      encoding: 'float32',
      trains: false,
    });
    await middle.begin('task');
    await middle.forward(tensor(fiveRows), layout, { keep: 'gradient', adapted: true });
    id = 'b';
    expect(await refusal(middle.backward(tensor(fiveRows)), Code.FailedPrecondition)).toMatch(/Begin/);
    await middle.begin('task');
    await middle.forward(tensor(fiveRows), layout, { keep: 'gradient', adapted: true });
    await middle.backward(tensor(fiveRows));
    expect(middle.trains).toBe(false);
  });

  it('refuse an answer that is not finite', async () => {
    const server = serve();
    const middle = remote(server);
    await middle.begin('task');
    const huge = tensor(fiveRows.map((row) => row.map(() => 3e38)));
    await expect(middle.forward(huge, layout, { adapted: false })).rejects.toThrow(/found Infinity/);
    const back = await middle.forward(tensor(fiveRows), layout, { adapted: false });
    expect(rowsOf(back)[0]).toEqual([7, 2, 2]);
    for (const squaredNorm of [Number.NaN, Number.POSITIVE_INFINITY, -1]) {
      const wrong = { update: async () => create(UpdateResponseSchema, { squaredNorm }) } as never;
      const { update } = remoteMiddle({ call: calling(wrong), encoding: 'float32', trains: true });
      await expect(update(0, 1)).rejects.toThrow(/squared_norm/);
    }
  });

  it('count the bytes of activations that the server counts', async () => {
    for (const [encoding, up] of [
      ['float32', 60],
      ['float16', 30],
      ['int8', 15 + 20],
    ] as const) {
      const server = serve();
      const middle = remote(server, encoding);
      await middle.begin('task');
      const before = middle.traffic;
      await middle.forward(tensor(fiveRows), layout, { keep: 'gradient', adapted: true });
      expect(before).toEqual({ up: 0, down: 0 });
      expect(middle.traffic).toEqual({ up, down: up });
      await middle.backward(tensor(fiveRows));
      expect(middle.traffic).toEqual({ up: 2 * up, down: 2 * up });
      expect(server.calls.reduce((sum, { bytesIn }) => sum + bytesIn, 0)).toBe(middle.traffic.up);
      expect(server.calls.reduce((sum, { bytesOut }) => sum + bytesOut, 0)).toBe(middle.traffic.down);
    }
  });

  it('lose little where the encoding is narrow', async () => {
    const states = fiveRows.map((row, i) => row.map((x, j) => Math.sin(x + 3 * i + j)));
    for (const [encoding, error] of [
      ['float16', 2e-3],
      ['int8', 5e-2],
    ] as const) {
      const middle = remote(serve(), encoding);
      await middle.begin('task');
      const found = await middle.forward(tensor(states), layout, { adapted: false });
      const here = await toyLayers().forward(tensor(states), layout, { adapted: false });
      const differences = here.data.map((x, i) => Math.abs(x - found.data[i]!));
      expect(Math.max(...differences)).toBeLessThan(error);
      expect(Math.max(...differences)).toBeGreaterThan(0);
    }
  });
});

describe('over HTTP/2', () => {
  /** Bytes that a forward pass takes on the wire, to the server and back. */
  async function onTheWire(encoding: ActivationsEncoding): Promise<readonly [number, number]> {
    const columns = 64;
    const rows = 512;
    const { service } = layersService({
      session: (id) => ({ id, client: '' }),
      open: () => ({
        ...toyLayers(),
        hiddenSize: columns,
        // As hard to compress as what came.
        forward: async (states) => float32(states.data.toReversed(), [rows, columns]),
      }),
      limits: { bytes: 1e9, tokens: rows },
      cacheSeconds: 60,
    });
    const server = createServer(
      connectNodeAdapter({ routes: (router) => void router.service(LayersService, service) }),
    );
    const sockets: Socket[] = [];
    server.on('connection', (socket: Socket) => sockets.push(socket));
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const baseUrl = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    const sessionManager = new Http2SessionManager(baseUrl);
    try {
      const transport = createConnectTransport({
        httpVersion: '2',
        baseUrl,
        sessionManager,
        acceptCompression: [],
      });
      const call = calling(createClient(LayersService, transport));
      const middle = remoteMiddle({ call, encoding, trains: false });
      await middle.begin('task');
      const data = Float32Array.from({ length: rows * columns }, (_, i) => Math.sin(i * i));
      const [socket] = sockets;
      const [read, written] = [socket!.bytesRead, socket!.bytesWritten];
      const full = { lengths: [rows], time: rows, prefix: 0 };
      const found = await middle.forward(float32(data, [rows, columns]), full, { adapted: true });
      expect(Math.abs(found.data[0]! - data.at(-1)!)).toBeLessThan(0.01);
      expect(sockets.length).toBe(1);
      return [socket!.bytesRead - read, socket!.bytesWritten - written];
    } finally {
      sessionManager.abort();
      await new Promise((resolve) => server.close(resolve));
    }
  }

  it('float16 takes half of what float32 takes, int8 a quarter, in both directions', async () => {
    const float32s = await onTheWire('float32');
    const float16s = await onTheWire('float16');
    const int8s = await onTheWire('int8');
    for (const direction of [0, 1] as const) {
      expect(float32s[direction]).toBeGreaterThan(4 * 512 * 64);
      expect(float32s[direction]).toBeLessThan(4 * 512 * 64 * 1.02);
      expect(float16s[direction] / float32s[direction]).toBeCloseTo(1 / 2, 1.5);
      // A scale of 4 bytes for 64 elements.
      expect(int8s[direction] / float32s[direction]).toBeCloseTo((1 + 4 / 64) / 4, 1.5);
    }
  });
});
