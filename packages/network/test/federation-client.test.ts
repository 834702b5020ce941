// Remote clients are clients: they keep the contract, and a whole run with them has the bits of a run in one process.
import type { Interceptor } from '@connectrpc/connect';
import { type FederationEvent, federate, fellrec, type Participation } from '@fellrec/federation';
import { afterEach, describe, expect, it } from 'vitest';
import { describeClient } from '../../federation/test/client-contract.js';
import { loaded, quadratic, tensors } from '../../federation/test/toy.js';
import { carriers, startServer, takePart, workerOf } from './federation-harness.ts';

const stops: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const stop of stops.splice(0)) await stop();
});

const initial = tensors({ x: [1, 2, -3, 0.25, 1e-7, 9] });
const toys = [
  quadratic('north', { target: [4, 0, 1, 0, 0, 0], validationTarget: [1, 0, 0, 0, 0, 0] }),
  quadratic('south', { target: [-1, 2, 0, 1, 2, 3], samples: 30 }),
  quadratic('west', { target: [0, 1, 3, 5, 5, 5], validationTarget: [0, 1, 2, 3, 4, 5] }),
];

for (const [name, carry] of carriers) {
  async function serve(clients = toys, onDownload: (taskId: string) => void = () => {}) {
    const downloads: Interceptor = (next) => async (request) => {
      if (request.stream && request.method.name === 'Download')
        return next({ ...request, message: told(request.message, onDownload) });
      return next(request);
    };
    const server = await startServer({ carry, expected: clients.map((client) => client.name) });
    const taking = clients.map((client) =>
      takePart({
        transport: server.carrier.transport(client.name, downloads),
        worker: workerOf(client),
        trainSamples: client.samples,
      }),
    );
    const remote = await server.federation.joined();
    stops.push(async () => {
      server.federation.finish();
      await Promise.all(taking);
      await server.sessions.empty();
      await server.stop();
    });
    return remote;
  }

  describeClient(`remote, ${name}`, async () => ({ client: (await serve(toys.slice(0, 1)))[0]!, initial }));

  describe(`a run with remote clients, ${name}`, () => {
    const participations: (Participation | undefined)[] = [undefined, { quorum: 3, deadlineSeconds: 60 }];
    it.each(participations)('has the bits of one in this process (%j)', async (participation) => {
      const options = {
        strategy: fellrec({
          similarityOn: 'update',
          heating: { alpha: 0.7, beta: 3, temperature: 0.5, exponent: 't/beta' },
        }),
        initial,
        rounds: 4,
        patience: 9,
        ...(participation && { participation }),
      };
      const expected = await roundsOf(federate({ ...options, clients: toys }));
      expect(expected).toHaveLength(4);
      expect(await roundsOf(federate({ ...options, clients: await serve() }))).toEqual(expected);
    });

    it('fetches a mixture once, for its evaluation and the training that starts from it', async () => {
      const fetched: string[] = [];
      const [client] = await serve(toys.slice(0, 1), (taskId) => fetched.push(taskId));
      const { parameters } = await client!.train(initial, { round: 0 });
      await client!.evaluate(parameters, { round: 0 });
      const again = await client!.train(parameters, { round: 1 });
      expect(again).toEqual(await toys[0]!.train(parameters, { round: 1 }));
      await client!.evaluate(initial, { round: 1 });
      expect(fetched.map((id) => id.slice(0, -13))).toEqual([
        '0-train-north',
        '0-evaluate-north',
        '1-evaluate-north',
      ]);
    });

    it('tests parameters, with others for the items', async () => {
      const [client] = await serve(toys.slice(0, 1));
      const expected = { metrics: { 'recall@10': 1 }, users: 3, truncated: 1 };
      expect(await client!.test(initial, { round: 2 })).toEqual(expected);
      const items = tensors({ x: [0.5] });
      const others = { ...expected, metrics: { 'recall@10': 0.5 } };
      expect(await client!.test(initial, { round: 2, items })).toEqual(others);
    });
  });
}

async function* told<T extends object>(requests: AsyncIterable<T>, hear: (taskId: string) => void) {
  for await (const request of requests) {
    hear((request as { readonly taskId?: string }).taskId ?? '');
    yield request;
  }
}

async function roundsOf(events: AsyncIterable<FederationEvent>): Promise<object[]> {
  const rounds: object[] = [];
  for await (const event of events)
    if (event.type === 'round-finished') {
      const { seconds: _, state, ...record } = event;
      rounds.push({ ...record, state: await loaded(state) });
    }
  return rounds;
}
