// Clients that hold different tensors: compared over what they share, mixed tensor by tensor among those who hold it.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { NamedTensors } from '@fellrec/graph';
import fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import {
  type Client,
  type FederateOptions,
  type FederationEvent,
  fedavg,
  federate,
  fellrec,
  local,
  plainProducts,
} from '../src/index.ts';
import { amongHolders } from '../src/mixing.ts';
import { onDisk } from '../src/parameters/disk.ts';
import { type HeldParameters, heldParameters } from '../src/parameters/held.ts';
import { inMemory } from '../src/parameters/memory.ts';
import type { RoundParametersOptions, SimilarityOn } from '../src/parameters/round-parameters.ts';
import { cosines, squaredDistances, squaredMoves } from '../src/similarity.ts';
import { openFilesBelow } from './open-files.ts';
import { cosinesOf, halfway, loaded, tensors } from './toy.ts';

const folder = mkdtempSync(join(tmpdir(), 'held-'));
afterAll(() => rmSync(folder, { recursive: true }));

const places = {
  'in memory': inMemory,
  'on disk': (options: RoundParametersOptions) => onDisk(folder, options),
};

type Vectors = Readonly<Record<string, readonly number[]>>;

/** What a client holds before and after its training, and its row of the matrix. */
interface Holder {
  readonly start: Vectors;
  readonly trained: Vectors;
  readonly row: readonly number[];
}

const names = ['a', 'b', 'c', 'd'];
const value = fc.float({ min: -9, max: 9, noNaN: true }).map((x) => x + 0);
const anyHolders: fc.Arbitrary<Holder[]> = fc.integer({ min: 1, max: 6 }).chain((count) =>
  fc.array(
    fc
      .record({
        holds: fc.subarray(names, { minLength: 1 }),
        start: fc.array(value, { minLength: 8, maxLength: 8 }),
        trained: fc.array(value, { minLength: 8, maxLength: 8 }),
        weights: fc.array(fc.nat(4), { minLength: count, maxLength: count }),
        own: fc.nat(count - 1),
      })
      .map(({ holds, start, trained, weights, own }) => {
        const vectors = (from: readonly number[]): Vectors =>
          Object.fromEntries(holds.map((name) => [name, from.slice(2 * names.indexOf(name)).slice(0, 2)]));
        const raised = weights.map((weight, j) => weight + (j === own ? 1 : 0));
        const total = raised.reduce((sum, weight) => sum + weight, 0);
        const row = raised.map((weight) => weight / total);
        return { start: vectors(start), trained: vectors(trained), row };
      }),
    { minLength: count, maxLength: count },
  ),
);

const dot = (a: readonly number[], b: readonly number[]) => a.reduce((sum, x, k) => sum + x * b[k]!, 0);
const plain = (own: NamedTensors): Vectors =>
  Object.fromEntries([...own].map(([name, { data }]) => [name, [...data]]));
const read = async (parameters: HeldParameters) =>
  (await Promise.all(parameters.starts().map((start) => start()))).map(plain);

async function cosinesBetween(parameters: HeldParameters, on: SimilarityOn): Promise<number[][]> {
  return cosines(await parameters.products(on), parameters.starts().length);
}

function expectClose(actual: readonly Vectors[], expected: readonly Vectors[], digits = 4): void {
  expect(actual.map((own) => Object.keys(own))).toEqual(expected.map((own) => Object.keys(own)));
  for (const [c, own] of expected.entries())
    for (const [name, vector] of Object.entries(own))
      for (const [k, x] of vector.entries()) expect(actual[c]![name]![k]).toBeCloseTo(x, digits);
}

/** The formulas, written for one pair and one tensor at a time. */
function cosineOf(a: Vectors, b: Vectors): number {
  const shared = Object.keys(a).filter((name) => b[name]);
  const sum = (x: Vectors, y: Vectors) => shared.reduce((all, name) => all + dot(x[name]!, y[name]!), 0);
  const norm = Math.sqrt(sum(a, a)) * Math.sqrt(sum(b, b));
  return norm === 0 ? 0 : sum(a, b) / norm;
}
function mixedOf(clients: readonly Holder[]): Vectors[] {
  return clients.map(({ trained, row }) => {
    const mix = (name: string, own: readonly number[]) => {
      const holders = [...clients.keys()].filter((j) => clients[j]!.trained[name]);
      const total = holders.reduce((sum, j) => sum + row[j]!, 0);
      if (total === 0) return own;
      return own.map((_, k) =>
        holders.reduce((sum, j) => sum + (row[j]! / total) * clients[j]!.trained[name]![k]!, 0),
      );
    };
    return Object.fromEntries(Object.entries(trained).map(([name, own]) => [name, mix(name, own)]));
  });
}

for (const [place, lie] of Object.entries(places)) {
  const hold = async (clients: readonly Holder[]) => {
    const own = clients.map(({ start }) => tensors(start));
    const parameters = await heldParameters({
      held: own,
      starts: own.map((start) => async () => start),
      open: (group) => lie({ ...group, products: plainProducts }),
    });
    for (const [c, { trained }] of clients.entries()) await parameters.keep(c, tensors(trained));
    return parameters;
  };

  describe(`tensors that some hold, ${place}`, () => {
    it('are given back to who holds them, in one order', async () => {
      await fc.assert(
        fc.asyncProperty(anyHolders, async (clients) => {
          const parameters = await hold(clients);
          const found = await Promise.all(parameters.starts().map((start) => start()));
          await parameters.close();
          expect(found.map((own) => [...own])).toEqual(clients.map(({ start }) => [...tensors(start)]));
        }),
        { numRuns: 30 },
      );
    });

    it('are compared where two share them, and mixed among their holders, as the formulas say', async () => {
      await fc.assert(
        fc.asyncProperty(anyHolders, async (clients) => {
          const parameters = await hold(clients);
          for (const on of ['update', 'parameters'] as const) {
            const x = clients.map(({ start, trained }): Vectors => {
              if (on === 'parameters') return trained;
              const learned = ([name, own]: [string, readonly number[]]) =>
                [name, own.map((y, k) => y - start[name]![k]!)] as const;
              return Object.fromEntries(Object.entries(trained).map(learned));
            });
            const found = await cosinesBetween(parameters, on);
            for (const [i, a] of x.entries())
              for (const [j, b] of x.entries())
                expect(found[i]![j]).toBeCloseTo(i === j ? 1 : cosineOf(a, b), 10);
          }
          await parameters.mix(clients.map(({ row }) => row));
          expectClose(await read(parameters), mixedOf(clients));
          await parameters.close();
        }),
        { numRuns: 60 },
      );
    });

    it('are mixtures to the bit as mixing makes them, and compared with starts as the formulas say', async () => {
      await fc.assert(
        fc.asyncProperty(anyHolders, async (clients) => {
          const parameters = await hold(clients);
          const distances = squaredDistances(await parameters.products('displacement'), clients.length);
          const moves = squaredMoves(await parameters.productsWithStarts(), clients.length);
          const away = (x: Vectors, y: Vectors) =>
            Object.keys(x).reduce(
              (sum, name) => sum + x[name]!.reduce((all, v, k) => all + (v - y[name]![k]!) ** 2, 0),
              0,
            );
          for (const [i, a] of clients.entries())
            for (const [j, b] of clients.entries()) {
              const shared = Object.entries(a.trained).filter(([name]) => b.trained[name]);
              const distance = away(Object.fromEntries(shared), b.trained);
              expect(distances[i]![j]).toBeCloseTo(
                shared.length > 0 ? distance : Number.POSITIVE_INFINITY,
                8,
              );
              expect(moves[i]![j]).toBeCloseTo(away(a.start, { ...a.trained, ...b.trained }), 8);
            }
          const wanted = clients.map(({ row }, client) => ({ client, row }));
          const mixtures = await parameters.mixtures([...wanted, ...wanted.slice(0, 1)]);
          const found = (await Promise.all(mixtures.map((mixture) => mixture()))).map(plain);
          await parameters.mix(clients.map(({ row }) => row));
          const mixed = await read(parameters);
          expect(found).toEqual([...mixed, mixed[0]]);
          await parameters.close();
        }),
        { numRuns: 60 },
      );
    });

    it('that stay with their clients are in a mixture what their own client has, and are not compared', async () => {
      const own = [1, 2].map((x) => tensors({ shared: [x], own: [10 * x] }));
      const parameters = await heldParameters({
        held: own,
        personal: (name) => name === 'own',
        starts: own.map((start) => async () => start),
        open: (group) => lie({ ...group, products: plainProducts }),
      });
      const trained = [3, 5].map((x) => tensors({ shared: [x], own: [10 * x] }));
      for (const [c, after] of trained.entries()) await parameters.keep(c, after);
      const [mixture] = await parameters.mixtures([{ client: 0, row: [0, 1] }]);
      expect(plain(await mixture!())).toEqual({ shared: [5], own: [30] });
      expect(squaredMoves(await parameters.productsWithStarts(), 2)).toEqual([
        [4, 16],
        [1, 9],
      ]);
      await parameters.close();
    });

    it('are mixed by weights that sum to 1: what all agree on stays', async () => {
      await fc.assert(
        fc.asyncProperty(anyHolders, async (clients) => {
          const agreed = clients.map(({ trained, ...client }) => {
            const ones = Object.keys(trained).map((name) => [name, [1, -2]] as const);
            return { ...client, trained: Object.fromEntries(ones) };
          });
          const parameters = await hold(agreed);
          await parameters.mix(agreed.map(({ row }) => row));
          expectClose(
            await read(parameters),
            agreed.map(({ trained }) => trained),
            6,
          );
          await parameters.close();
        }),
        { numRuns: 30 },
      );
    });

    it('permuted, mix to the same permuted', async () => {
      const permuted = anyHolders.chain((clients) =>
        fc.tuple(
          fc.constant(clients),
          fc.shuffledSubarray([...clients.keys()], { minLength: clients.length, maxLength: clients.length }),
        ),
      );
      await fc.assert(
        fc.asyncProperty(permuted, async ([clients, order]) => {
          const straight = await hold(clients);
          const other = await hold(
            order.map((c) => ({ ...clients[c]!, row: order.map((j) => clients[c]!.row[j]!) })),
          );
          const expected = await cosinesBetween(straight, 'update');
          const found = await cosinesBetween(other, 'update');
          for (const [p, i] of order.entries())
            for (const [q, j] of order.entries()) expect(found[p]![q]).toBeCloseTo(expected[i]![j]!, 10);
          await straight.mix(clients.map(({ row }) => row));
          await other.mix(order.map((c) => order.map((j) => clients[c]!.row[j]!)));
          const before = await read(straight);
          expectClose(
            await read(other),
            order.map((c) => before[c]!),
          );
          for (const parameters of [straight, other]) await parameters.close();
        }),
        { numRuns: 30 },
      );
    });

    it('that all hold are one group, to the bit', async () => {
      const all = Array.from({ length: 5 }, (_, c): Holder => {
        const vectors = (phase: number) =>
          Object.fromEntries(names.map((name, n) => [name, [1, 2, 3].map((k) => Math.sin(phase * k + n))]));
        const weights = [1, 2, 3, 4, 5].map((j) => 1 / (j + c));
        const total = weights.reduce((sum, weight) => sum + weight, 0);
        return { start: vectors(c), trained: vectors(c + 7), row: weights.map((weight) => weight / total) };
      });
      const together = await hold(all);
      const starts = all.map(({ start }) => tensors(start));
      const single = await lie({
        like: starts[0]!,
        starts: starts.map((start) => async () => start),
        products: plainProducts,
      });
      for (const [c, { trained }] of all.entries()) await single.keep(c, tensors(trained));
      for (const on of ['update', 'parameters'] as const)
        expect(await cosinesBetween(together, on)).toEqual(await cosinesOf(single, on));
      for (const parameters of [together, single]) await parameters.mix(all.map(({ row }) => row));
      const expected = await Promise.all(single.starts().map((start) => start()));
      expect(await Promise.all(together.starts().map((start) => start()))).toEqual(expected);
      for (const parameters of [together, single]) await parameters.close();
    });
  });
}

describe('a matrix among holders', () => {
  it('keeps its bits where nothing is lost, and leaves who took from non-holders alone its own', () => {
    // The first row's sum is a bit less than 1.
    const matrix = [
      [0.7, 0.2, 0.1, 0],
      [0.25, 0.25, 0.25, 0.25],
      [0, 0, 0.75, 0.25],
      [1, 0, 0, 0],
    ];
    expect(amongHolders([0, 1, 2, 3], matrix)).toBe(matrix);
    expect(amongHolders([0, 1, 2], matrix)).toEqual([
      [0.7, 0.2, 0.1],
      [1 / 3, 1 / 3, 1 / 3],
      [0, 0, 1],
    ]);
    expect(amongHolders([1, 3], matrix)).toEqual([
      [0.5, 0.5],
      [0, 1],
    ]);
  });
});

describe('a group that cannot be opened', () => {
  it('closes those that are open', async () => {
    const [ab, b] = [tensors({ a: [1], b: [2] }), tensors({ b: [3] })];
    let opened = 0;
    const opening = heldParameters({
      held: [ab, b],
      starts: [ab, b].map((start) => async () => start),
      open(group) {
        if (++opened === 2) throw new Error('no room');
        return onDisk(folder, { ...group, products: plainProducts });
      },
    });
    await expect(opening).rejects.toThrow('no room');
    expect(openFilesBelow(folder)).toEqual([]);
  });
});

describe('a federation of clients that hold different tensors', () => {
  const initial = tensors({ embedding: [0, 1], layer: [2, 3, 4], head: [5] });
  const clients = [
    halfway('all', { target: 1, samples: 10 }),
    halfway('lower', { target: 2, holds: ['embedding', 'layer'], samples: 20 }),
    halfway('ends', { target: 3, holds: ['head', 'embedding'], samples: 30 }),
  ];
  const strategy = fellrec({ similarityOn: 'update', heating: false });
  const options: FederateOptions = { clients, strategy, initial, rounds: 3, patience: 9 };
  const finished = async (run: FederateOptions) => {
    const rounds: { record: object; state: object; bytes: { down: number; up: number } }[] = [];
    for await (const event of federate(run))
      if (event.type === 'round-finished') {
        const { state, seconds: _, ...record } = event;
        rounds.push({ record, state: await loaded(state), bytes: event.bytes });
      }
    return rounds;
  };
  const parametersOf = ({ state }: { state: object }) =>
    [...(state as { parameters: Map<string, NamedTensors> }).parameters.values()].map(plain);

  it('mixes each tensor among its holders, and gives and takes no other', async () => {
    const given: string[] = [];
    const spied = clients.map(
      (client): Client => ({
        ...client,
        train(parameters, context) {
          given.push(`${client.name}: ${[...parameters.keys()]}`);
          return client.train(parameters, context);
        },
      }),
    );
    const [round] = await finished({ ...options, clients: spied, strategy: fedavg(), rounds: 1 });
    expect(given).toEqual(['all: embedding,layer,head', 'lower: embedding,layer', 'ends: embedding,head']);
    const own = async (c: number): Promise<Vectors> => {
      const held = new Map([...initial].filter(([name]) => clients[c]!.holds?.(name) ?? true));
      return plain((await clients[c]!.train(held, { round: 0 })).parameters);
    };
    const row = [10 / 60, 20 / 60, 30 / 60];
    const trained = await Promise.all([0, 1, 2].map(own));
    expectClose(
      parametersOf(round!),
      mixedOf(trained.map((vectors) => ({ start: {}, trained: vectors, row }))),
    );
    expect(round!.bytes).toEqual({ down: 4 * (6 + 5 + 3), up: 4 * (6 + 5 + 3) });
    const elsewhere = clients.map((client) => ({
      ...client,
      crosses: (name: string) => name !== 'embedding',
    }));
    const [counted] = await finished({ ...options, clients: elsewhere, strategy: fedavg(), rounds: 1 });
    const embeddings = round!.bytes.up - counted!.bytes.up;
    expect(embeddings).toBe(4 * 3 * initial.get('embedding')!.data.length);
    expect(counted!.bytes.down).toBe(counted!.bytes.up);
  });

  it('is on disk what it is in memory', async () => {
    const memory = await finished(options);
    const disk = await finished({ ...options, spill: { directory: folder, aboveBytes: 0 } });
    expect(openFilesBelow(folder)).toEqual([]);
    for (const [r, round] of disk.entries()) expectClose(parametersOf(round), parametersOf(memory[r]!), 6);
  });

  it('is the same to the bit where all hold all, whether they say so or not', async () => {
    const homogeneous = [1, 2, 3].map((target) => halfway(`client-${target}`, { target }));
    const saying = homogeneous.map((client): Client => ({ ...client, holds: () => true }));
    const expected = await finished({ ...options, clients: homogeneous });
    expect(await finished({ ...options, clients: saying })).toEqual(expected);
  });

  it('refuses a tensor that nobody holds, and a client that holds nothing', async () => {
    const start = (...some: Client[]) => finished({ ...options, clients: some });
    await expect(start(clients[1]!)).rejects.toThrow(
      'no client holds 1 of 3 tensors of the common start: head',
    );
    const nothing = halfway('nothing', { target: 1, holds: ['elsewhere'] });
    await expect(start(clients[0]!, nothing)).rejects.toThrow('nothing would hold no tensor');
  });

  it('refuses tensors that a client does not hold, when it returns them and when it goes on from them', async () => {
    const generous: Client = {
      ...clients[1]!,
      train: async () => ({ parameters: initial, loss: 1, samples: 1 }),
    };
    const run = { ...options, clients: [clients[0]!, generous], strategy: local() };
    await expect(finished(run)).rejects.toThrow(
      /round 1: tensors differ from those of what lower holds of the common start:\n {2}lower has a "head"$/,
    );
    let last: (FederationEvent & { type: 'round-finished' }) | undefined;
    for await (const event of federate({ ...options, rounds: 1 }))
      if (event.type === 'round-finished') last = event;
    const parameters = new Map([...last!.state.parameters, ['lower', async () => initial] as const]);
    await expect(finished({ ...options, resume: { ...last!.state, parameters } })).rejects.toThrow(
      /the state to go on from: .*what lower holds.*\n {2}lower has a "head"$/,
    );
  });
});
