import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { elementCount, float32, type NamedTensors, nodeRuntime } from '@fellrec/graph';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type Baseline, evaluateBaseline } from '../src/baselines/baseline.ts';
import { fitSasrec, type SasrecOptions, type SasrecProgress } from '../src/baselines/sasrec.ts';
import { initialParameters, type SasrecModel, sasrecModel } from '../src/baselines/sasrec-model.ts';
import { asked, batches, packed, type Row, trainingWindows } from '../src/baselines/sasrec-windows.ts';
import { meanMetrics } from '../src/metrics.ts';
import { testSamples } from '../src/samples.ts';
import { user } from './shared.ts';

const runtime = nodeRuntime({ threads: 1 });

/** Written by fixtures/sasrec.py. */
const fixture: {
  readonly shape: { itemCount: number; hidden: number; layers: number; heads: number; maxLength: number };
  readonly rate: number;
  readonly rows: readonly Row[];
  readonly loss: number;
  readonly scores: readonly number[][];
  readonly gradients: Readonly<Record<string, { readonly dims: number[]; readonly data: number[] }>>;
} = JSON.parse(readFileSync(join(import.meta.dirname, 'fixtures/sasrec.json'), 'utf8'));
const { shape, rate } = fixture;

/** As sasrec.py makes them. */
const fixtureParameters: NamedTensors = new Map(
  Object.entries(fixture.gradients).map(([name, { dims }], n) => {
    const origin = name.endsWith('Norm.weight') ? 1 : 0;
    const numbers = Array.from(
      { length: elementCount(dims) },
      (_, i) => origin + 0.4 * Math.sin(1 + 0.7 * i * i + n),
    );
    return [name, float32(numbers, dims)];
  }),
);

function expectClose(found: ArrayLike<number>, expected: readonly number[], what: string): void {
  expect(found.length, what).toBe(expected.length);
  const furthest = expected.reduce((most, value, i) => Math.max(most, Math.abs(value - found[i]!)), 0);
  expect(furthest, what).toBeLessThan(1e-6);
}

describe('SASRec beside PyTorch', () => {
  let model: SasrecModel;
  beforeAll(async () => {
    model = await sasrecModel(shape, rate, runtime);
  });
  afterAll(() => model.dispose());

  it('has the parameters', () => {
    const dims = (tensors: NamedTensors) =>
      Object.fromEntries([...tensors].map(([name, tensor]) => [name, tensor.dims]));
    expect(dims(initialParameters(shape, 1))).toEqual(dims(fixtureParameters));
  });

  it('has the scores, of windows that share rows', async () => {
    const { data, dims } = await model.score(fixture.rows, fixtureParameters);
    expect(dims).toEqual([fixture.scores.length, shape.itemCount]);
    expectClose(data, fixture.scores.flat(), 'scores');
  });

  it('has the loss and every gradient, with dropout', async () => {
    const masks = Object.fromEntries(
      Object.entries(model.masks(fixture.rows.length, [1])).map(([name, { dims }], n) => {
        const data = Uint8Array.from({ length: elementCount(dims) }, (_, i) =>
          Number(((i * 7919 + n * 104729) % 10007) % 4 !== 0),
        );
        return [name, { dtype: 'bool' as const, dims, data }];
      }),
    );
    const { loss, gradients } = await model.gradients(fixture.rows, fixtureParameters, masks);
    expect(Math.abs(loss - fixture.loss)).toBeLessThan(1e-6);
    expect([...gradients.keys()]).toEqual(Object.keys(fixture.gradients));
    for (const [name, { data }] of gradients) expectClose(data, fixture.gradients[name]!.data, name);
  });

  it('draws masks that keep as much as they should', () => {
    const masks = Object.values(model.masks(100, [1, 'dropout'])).flatMap(({ data }) =>
      [...data].map(Number),
    );
    const share = masks.reduce((sum, value) => sum + value, 0) / masks.length;
    expect(masks.length).toBeGreaterThan(10_000);
    expect(Math.abs(share - (1 - rate))).toBeLessThan(0.02);
  });

  it('scores a place by what is before it alone, whatever follows and shares the row', async () => {
    const sequence = fc.array(fc.nat(shape.itemCount - 1), { minLength: 1, maxLength: shape.maxLength });
    const whole = (items: readonly number[]) => ({ items, from: 0 });
    await fc.assert(
      fc.asyncProperty(sequence, sequence, fc.nat(), async (items, others, cut) => {
        const length = 1 + (cut % items.length);
        const alone = await model.score([[whole(items.slice(0, length))]], fixtureParameters);
        const rows = packed([whole(others), whole(items)], shape.maxLength);
        const together = await model.score(rows, fixtureParameters);
        const from = others.length * shape.itemCount;
        expectClose(together.data.subarray(from, from + alone.data.length), [...alone.data], 'scores');
      }),
      { numRuns: 50 },
    );
  });
});

describe('windows', () => {
  const train = fc.integer({ min: 0, max: 60 }).map((length) => Array.from({ length }, (_, i) => 100 + i));
  const maxLength = fc.integer({ min: 1, max: 12 });

  it('ask each item but the first once, after the item before it and half a window', () => {
    fc.assert(
      fc.property(train, maxLength, (items, length) => {
        const windows = trainingWindows(items, length);
        expect(windows.flatMap(({ targets }) => targets!)).toEqual(items.slice(1));
        for (const window of windows) {
          expect(window.items.length).toBeLessThanOrEqual(length);
          expect(window.targets).toEqual(window.items.slice(window.from).map((item) => item + 1));
          // Items are numbered: how many there are before the first that is asked.
          const before = window.items[window.from]! - 100;
          expect(window.from).toBeGreaterThanOrEqual(Math.min(before, Math.floor(length / 2)));
        }
      }),
    );
  });

  it('fill rows and batches in order', () => {
    fc.assert(
      fc.property(
        fc.array(train, { maxLength: 10 }),
        maxLength,
        fc.integer({ min: 1, max: 50 }),
        (all, length, size) => {
          const windows = all.flatMap((items) => trainingWindows(items, length));
          const rows = packed(windows, length);
          expect(rows.flat()).toEqual(windows);
          for (const row of rows)
            expect(row.flatMap(({ items }) => items).length).toBeLessThanOrEqual(length);
          const found = batches(rows, size);
          expect(found.flat()).toEqual(rows);
          for (const batch of found.slice(0, -1)) {
            const counts = batch.map(asked);
            const count = counts.reduce((a, b) => a + b, 0);
            expect(count).toBeGreaterThanOrEqual(size);
            expect(count - counts.at(-1)!).toBeLessThan(size);
          }
        },
      ),
    );
  });
});

describe('SASRec', () => {
  const itemCount = 12;
  /** Each goes round the items from another one. */
  const users = Array.from({ length: itemCount }, (_, start) => {
    const items = Array.from({ length: 8 }, (_, i) => (start + i) % itemCount);
    return user(`${start}`, {
      train: items.slice(0, 6),
      validation: items.slice(6, 7),
      test: items.slice(7),
    });
  });
  const options: SasrecOptions = {
    hidden: 16,
    layers: 1,
    dropout: 0.1,
    maxLength: 5,
    epochs: 80,
    patience: 80,
    learningRate: 0.01,
    batch: 16,
    seed: 1,
  };
  const fit = (changes: Partial<SasrecOptions> = {}, onProgress?: (progress: SasrecProgress) => void) =>
    fitSasrec(users, itemCount, runtime, { ...options, ...changes }, onProgress);
  async function scoresOf(baseline: Baseline): Promise<number[]> {
    const { data } = await baseline.score(users.flatMap(testSamples));
    await baseline.dispose();
    return [...data];
  }

  it('learns a cycle', async () => {
    const progress: SasrecProgress[] = [];
    const baseline = await fit({}, (p) => progress.push(p));
    const { metrics } = await evaluateBaseline(baseline, users.flatMap(testSamples), { seed: 1 });
    await baseline.dispose();
    expect(meanMetrics(metrics)['mrr@10']).toBe(1);
    expect(progress.at(-1)!.loss).toBeLessThan(progress[0]!.loss / 2);
  });

  it('gives the same bits for the same seed, others for another', async () => {
    const scores = async (seed: number) => scoresOf(await fit({ epochs: 3, seed }));
    const first = await scores(1);
    expect(await scores(1)).toEqual(first);
    expect(await scores(2)).not.toEqual(first);
  });

  it('stops when validation gets no better, and keeps the best epoch', async () => {
    const progress: SasrecProgress[] = [];
    // Too large a rate to get better for long.
    const changes = { learningRate: 0.05, patience: 3 };
    const stopped = await scoresOf(await fit(changes, (p) => progress.push(p)));
    const best = Math.max(...progress.map(({ ndcg }) => ndcg));
    const { epoch } = progress.find(({ ndcg }) => ndcg === best)!;
    expect(progress.length).toBe(epoch + 3);
    expect(stopped).toEqual(await scoresOf(await fit({ ...changes, epochs: epoch })));
  });

  it('says what is wrong with what it is given', async () => {
    const of = (given: typeof users, count = itemCount) => fitSasrec(given, count, runtime, options);
    await expect(of([])).rejects.toThrow('sasrec: 0 users to learn from; pass those of a data set');
    await expect(of(users, 0)).rejects.toThrow('sasrec: the catalogue has 0 items');
    await expect(of(users, 5)).rejects.toThrow('sasrec: user "0" has item 5, the catalogue has items 0 to 4');
    await expect(of([user('a', { train: [1], validation: [2] })])).rejects.toThrow(
      'sasrec: none of 1 users has two training items',
    );
    await expect(of([user('a', { train: [1, 2], test: [3] })])).rejects.toThrow(
      'sasrec: none of 1 users has training and validation items',
    );
    await expect(fit({ hidden: 15, heads: 2, dropout: 1, epochs: 0 })).rejects.toThrow(
      'sasrec: epochs is 0, not a whole number from 1; hidden is 15, not a multiple of heads, which is 2; dropout is 1, not from 0 to below 1; change these options',
    );
    const baseline = await fit({ epochs: 1 });
    const query = (...seen: number[]) => ({ history: seen, seen });
    await expect(baseline.score([query(1), query()])).rejects.toThrow('sasrec: query 1 has no items');
    await expect(baseline.score([query(12)])).rejects.toThrow('sasrec: query 0 has item 12');
    await baseline.dispose();
  });
});
