// Many clients' adapters are compared and mixed on the engine, in the round that `train` runs.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  type Client,
  federate,
  fellrec,
  type Mixing,
  type Products,
  plainProducts,
} from '@fellrec/federation';
import { float32, nodeRuntime, random, rowProducts } from '@fellrec/graph';
import { expect, onTestFinished, test, vi } from 'vitest';
import { fellrec as command, readJson, workspace } from './shared.ts';

// Beside other tests.
vi.setConfig({ testTimeout: 300_000 });

test('the engine and disk have the rounds of plain TypeScript and memory', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'fellrec-aggregation-'));
  const engine = rowProducts(nodeRuntime({ threads: 1 }));
  onTestFinished(async () => {
    await engine.dispose();
    await rm(folder, { recursive: true });
  });
  const draw = random(1, 'aggregation');
  const vector = (length: number) => Float32Array.from({ length }, draw.normal);
  // Longer than a block of the file, cut elsewhere.
  const lengths = { a: 3000, b: 5200, c: 1 };
  const adapter = () =>
    new Map(Object.entries(lengths).map(([name, length]) => [name, float32(vector(length), [length])]));
  const clients = Array.from({ length: 17 }, (_, c): Client => {
    const learned = adapter();
    return {
      name: `client-${c}`,
      samples: 1,
      async train(start) {
        const parameters = new Map(
          [...start].map(([name, { data, dims }]) => [
            name,
            float32(
              data.map((x, k) => x / 2 + learned.get(name)!.data[k]!),
              dims,
            ),
          ]),
        );
        return { parameters, loss: 1 + c / 17, samples: 1 };
      },
      evaluate: async () => ({ loss: 1, samples: 1 }),
    };
  });
  const heating = { alpha: 0.7, beta: 2, temperature: 0.5, exponent: 't/beta' } as const;
  const options = {
    clients,
    strategy: fellrec({ similarityOn: 'update', heating, neighbours: 4 }),
    initial: adapter(),
    rounds: 2,
    patience: 5,
  };
  const roundsOf = async (products: Products, spill?: { directory: string; aboveBytes: number }) => {
    const rounds: { matrix: number[]; parameters: number[] }[] = [];
    for await (const event of federate({ ...options, products, ...(spill && { spill }) })) {
      if (event.type !== 'round-finished') continue;
      const read = await Promise.all([...event.state.parameters.values()].map((own) => own()));
      const parameters = read.flatMap((own) => [...own.values()].flatMap(({ data }) => [...data]));
      rounds.push({ matrix: event.mixing.matrix.flat(), parameters });
    }
    return rounds;
  };
  const largestError = (actual: readonly number[], expected: readonly number[]) => {
    expect(actual.length).toBe(expected.length);
    return expected.reduce((worst, value, k) => Math.max(worst, Math.abs(value - actual[k]!)), 0);
  };
  const expected = await roundsOf(plainProducts);
  for (const found of [await roundsOf(engine), await roundsOf(engine, { directory: folder, aboveBytes: 0 })])
    for (const [r, { matrix, parameters }] of found.entries()) {
      expect(largestError(matrix, expected[r]!.matrix)).toBeLessThan(1e-6);
      expect(largestError(parameters, expected[r]!.parameters)).toBeLessThan(1e-5);
    }
});

test('train mixes many clients, and only the neighbours that the configuration says', async () => {
  const place = await workspace();
  onTestFinished(() => place.remove());
  const config = await place.config({
    name: 'many',
    data: { trainSamples: 40, testUsers: 1 },
    partition: { method: 'random', clients: 8 },
    federation: { rounds: 1, neighbours: 2 },
  });
  const { code, stderr } = await command('train', '-c', config);
  expect(stderr).not.toContain('fellrec:');
  expect(code).toBe(0);
  const { clients, mixing }: { clients: string[]; mixing: Mixing } = await readJson(
    place.run('many'),
    'rounds/0000/round.json',
  );
  expect(clients).toHaveLength(8);
  for (const row of mixing.matrix) expect(row.filter((weight) => weight > 0)).toHaveLength(3);
});
