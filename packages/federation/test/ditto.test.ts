// Ditto against closed forms: clients that minimise (x - a)^2 / 2 to the end, so that the personal model with lambda is
// (a + lambda w) / (1 + lambda), w the global one as the round began.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { NamedTensors } from '@fellrec/graph';
import { afterAll, describe, expect, test } from 'vitest';
import {
  type Client,
  ditto,
  dittoClient,
  dittoFormat,
  dittoStart,
  type FederateOptions,
  type FederationEvent,
  fedavg,
  federate,
  local,
  personalTensors,
} from '../src/index.ts';
import { tensors } from './toy.ts';

const folder = mkdtempSync(join(tmpdir(), 'ditto-'));
afterAll(() => rmSync(folder, { recursive: true }));

const targets = [1, 4, -2];
const samples = [1, 2, 5];
const names = ['a', 'b', 'c'];

/** Gradient descent with the proximal term that it is told of. */
function minimising(name: string, target: number, samples: number): Client {
  return {
    name,
    samples,
    async train(parameters, { proximal }) {
      let x = parameters.get('x')!.data[0]!;
      const [weight, centre] = proximal ? [proximal.weight, proximal.centre.get('x')!.data[0]!] : [0, 0];
      for (let step = 0; step < 400; step++) x -= 0.2 * (x - target + weight * (x - centre));
      return { parameters: tensors({ x: [x] }), loss: (x - target) ** 2 / 2, samples };
    },
    async evaluate(parameters) {
      return { loss: (parameters.get('x')!.data[0]! - target) ** 2 / 2, samples: 1 };
    },
  };
}

const clients = targets.map((target, c) => minimising(names[c]!, target, samples[c]!));
const start = tensors({ x: [0] });
const mean = targets.reduce((sum, target, c) => sum + samples[c]! * target, 0) / 8;

async function rounds(options: Pick<FederateOptions, 'clients' | 'strategy' | 'initial'>, count: number) {
  const finished: (FederationEvent & { type: 'round-finished' })[] = [];
  for await (const event of federate({ ...options, rounds: count, patience: count }))
    if (event.type === 'round-finished') finished.push(event);
  const { state } = finished.at(-1)!;
  const all = await Promise.all(names.map((name) => state.parameters.get(name)!()));
  return { bytes: finished.map(({ bytes }) => bytes), all };
}

const withDitto = (lambda: number, count: number) =>
  rounds(
    {
      clients: clients.map((client) => dittoClient(client, lambda)),
      strategy: ditto(),
      initial: dittoStart(start),
    },
    count,
  );
const x = (parameters: NamedTensors) => parameters.get('x')!.data[0]!;

describe('Ditto', () => {
  test('the personal model lies between its own optimum and the global model', async () => {
    for (const lambda of [0.1, 1, 3]) {
      const [first, second] = [await withDitto(lambda, 1), await withDitto(lambda, 2)];
      for (const [c, target] of targets.entries()) {
        expect(x(personalTensors(first.all[c]!))).toBeCloseTo(target / (1 + lambda), 5);
        expect(x(personalTensors(second.all[c]!))).toBeCloseTo((target + lambda * mean) / (1 + lambda), 5);
      }
    }
  });

  test('the global model is that of FedAvg, and only it is exchanged', async () => {
    const both = await withDitto(0.5, 2);
    const alone = await rounds({ clients, strategy: fedavg(), initial: start }, 2);
    expect(both.all.map(x)).toEqual(alone.all.map(x));
    expect(both.bytes).toEqual(alone.bytes);
  });

  test('without a pull everyone trains alone', async () => {
    const both = await withDitto(0, 2);
    const alone = await rounds({ clients, strategy: local(), initial: start }, 2);
    expect(both.all.map((all) => x(personalTensors(all)))).toEqual(alone.all.map(x));
  });

  test('a client that holds a part has that part of both models', () => {
    const client = dittoClient({ ...clients[0]!, holds: (name) => name === 'x' }, 1);
    expect(['x', 'personal.x', 'y', 'personal.y'].map((name) => client.holds!(name))).toEqual([
      true,
      true,
      false,
      false,
    ]);
  });

  test('what a client recommends with lies in its folder, the global model below it', async () => {
    const written = new Map<string, NamedTensors>();
    const format = dittoFormat({
      async write(directory, parameters) {
        written.set(directory, parameters);
      },
      read: async (directory) => written.get(directory)!,
    });
    const parameters = new Map([...dittoStart(start), ...tensors({ 'personal.x': [7] })]);
    await format.write(folder, parameters);
    expect(x(written.get(folder)!)).toBe(7);
    expect(x(written.get(join(folder, 'global'))!)).toBe(0);
    expect(await format.read(folder)).toEqual(parameters);
  });
});
