// Federations of more clients than should be in memory at once: their parameters lie in files.
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { float32 } from '@fellrec/graph';
import { afterAll, describe, expect, it } from 'vitest';
import {
  type Client,
  type FederateOptions,
  type FederationEvent,
  federate,
  fellrec,
  type Products,
  plainProducts,
} from '../src/index.ts';
import { openFilesBelow, seesOpenFiles } from './open-files.ts';
import { loaded, tensors } from './toy.ts';

const folder = mkdtempSync(join(tmpdir(), 'spill-'));
afterAll(() => rmSync(folder, { recursive: true }));
const spill = { directory: folder, aboveBytes: 0 };

const count = 60;
const strategy = fellrec({
  similarityOn: 'update',
  heating: { alpha: 0.7, beta: 3, temperature: 0.5, exponent: 't/beta' },
});

/** Goes half of the way to values of its own. */
function halfway(number: number): Client {
  const target = (k: number) => ((number * (k + 3)) % 97) / 97;
  return {
    name: `client-${number}`,
    samples: number + 1,
    async train(parameters) {
      const halved = [...parameters].map(([name, { data, dims }]) => {
        const moved = new Float32Array(data.length);
        for (let k = 0; k < moved.length; k++) moved[k] = (data[k]! + target(k)) / 2;
        return [name, float32(moved, dims)] as const;
      });
      return { parameters: new Map(halved), loss: 1 + (number % 5) / 5, samples: number + 1 };
    },
    async evaluate(parameters) {
      return { loss: Math.abs(parameters.get('a')!.data[0]! - target(0)), samples: 1 };
    },
  };
}
const clients = Array.from({ length: count }, (_, number) => halfway(number));
const initial = (length: number) =>
  tensors({ a: new Float32Array(length / 4), b: new Float32Array((3 * length) / 4) });
const options: FederateOptions = { clients, strategy, initial: initial(12_000), rounds: 3, patience: 5 };

async function finished(run: FederateOptions) {
  const events: (FederationEvent & { type: 'round-finished' })[] = [];
  const states: Awaited<ReturnType<typeof loaded>>[] = [];
  for await (const event of federate(run))
    if (event.type === 'round-finished') {
      events.push(event);
      states.push(await loaded(event.state));
    }
  return { events, states };
}
const flat = (states: readonly object[]) =>
  (states as { parameters: Map<string, ReadonlyMap<string, { data: Float32Array }>> }[]).flatMap(
    ({ parameters }) =>
      [...parameters.values()].flatMap((own) => [...own.values()].flatMap(({ data }) => [...data])),
  );
function largestError(actual: readonly number[], expected: readonly number[]): number {
  expect(actual.length).toBe(expected.length);
  return expected.reduce((worst, value, k) => Math.max(worst, Math.abs(value - actual[k]!)), 0);
}

describe('a federation on disk', () => {
  it('has the same rounds as one in memory, and leaves nothing in its folder', async () => {
    const memory = await finished(options);
    const disk = await finished({ ...options, spill });
    expect(readdirSync(folder)).toEqual([]);
    expect(openFilesBelow(folder)).toEqual([]);
    for (const [r, { mixing, best, validationLoss, bytes }] of disk.events.entries()) {
      const expected = memory.events[r]!;
      expect(largestError(mixing.matrix.flat(), expected.mixing.matrix.flat())).toBeLessThan(1e-12);
      expect(Object.keys(best)).toEqual(Object.keys(expected.best));
      expect(validationLoss).toBeCloseTo(expected.validationLoss, 6);
      expect(bytes).toEqual({ down: 4 * count * 12_000, up: 4 * count * 12_000 });
    }
    expect(largestError(flat(disk.states), flat(memory.states))).toBeLessThan(1e-6);
  });

  it('goes on from a state as if it had never stopped, to the bit', async () => {
    const whole = await finished({ ...options, spill });
    let stopped: FederationEvent | undefined;
    const events = federate({ ...options, spill, rounds: 1 });
    for await (const event of events)
      if (event.type === 'round-finished') {
        // What a store does: reads each client's parameters before it asks for the next event.
        const kept = await Promise.all(
          [...event.state.parameters].map(async ([name, read]) => [name, await read()] as const),
        );
        const parameters = new Map(kept.map(([name, own]) => [name, async () => own]));
        stopped = { ...event, state: { ...event.state, parameters } };
      }
    const { state } = stopped as FederationEvent & { type: 'round-finished' };
    const rest = await finished({ ...options, spill, resume: state });
    expect(rest.states).toEqual(whole.states.slice(1));
  });

  it('has many clients compared and mixed by the products that it is given, few and small ones in plain TypeScript', async () => {
    const asked: string[] = [];
    const products: Products = {
      gram(blocks) {
        asked.push('gram');
        return plainProducts.gram(blocks);
      },
      mix(matrix, blocks) {
        asked.push('mix');
        return plainProducts.mix(matrix, blocks);
      },
    };
    await finished({ ...options, rounds: 1, products, spill });
    expect(asked).toEqual(['gram', 'mix']);
    await finished({ ...options, rounds: 1, products });
    expect(asked).toEqual(['gram', 'mix', 'gram', 'mix']);
    await finished({ ...options, rounds: 1, products, spill, clients: clients.slice(0, 5) });
    expect(asked.length).toBe(4);
  });

  it('closes its files when a client fails and when nobody listens any more', async () => {
    const bad: Client = { ...clients[1]!, train: () => Promise.reject(new Error('out of memory')) };
    await expect(finished({ ...options, spill, clients: [clients[0]!, bad] })).rejects.toThrow(
      'out of memory',
    );
    for await (const event of federate({ ...options, spill }))
      if (event.type === 'aggregated') {
        if (seesOpenFiles) expect(openFilesBelow(folder)).not.toEqual([]);
        break;
      }
    expect(openFilesBelow(folder)).toEqual([]);
  });

  it("keeps a few of its clients' parameters in memory, whatever their number", async () => {
    setFlagsFromString('--expose-gc');
    const collect = runInNewContext('gc') as () => void;
    /** Buffers are given back behind the collection, later where the machine is busy: until none are any more. */
    const held = async () => {
      let least = Number.POSITIVE_INFINITY;
      for (let calm = 0; calm < 3; ) {
        collect();
        await setTimeout(10);
        const now = process.memoryUsage().arrayBuffers;
        calm = now < least ? 0 : calm + 1;
        least = Math.min(least, now);
      }
      return least;
    };
    /** The most bytes held between events, above those before. */
    const peak = async (run: FederateOptions) => {
      const before = await held();
      let most = 0;
      let last: FederationEvent | undefined;
      for await (const event of federate(run)) {
        last = event;
        if (event.type === 'client-trained' && Number(event.client.slice(7)) % 20 !== 19) continue;
        if (event.type !== 'client-evaluated') most = Math.max(most, (await held()) - before);
      }
      expect(last?.type).toBe('run-finished');
      return most;
    };
    const length = 200_000;
    const adapter = 4 * length;
    const large = { ...options, initial: initial(length), rounds: 2 };
    expect(await peak({ ...large, spill })).toBeLessThan(12 * adapter);
    // The measure can tell: in memory there are starts and trained parameters.
    expect(await peak(large)).toBeGreaterThan(1.9 * count * adapter);
  }, 300_000);
});
