// RecFormer as a recommender, on a tiny random encoder with a tokenizer of single letters: against plain formulas.
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { float32, type NamedTensors, nodeRuntime } from '@fellrec/graph';
import {
  type EncoderModel,
  encoderModel,
  openRecformer,
  readParameters,
  type Tokenizer,
  writeRandomRecformer,
  writeRecformer,
} from '@fellrec/models';
import fc from 'fast-check';
import { beforeAll, expect, test } from 'vitest';
import { catalogue } from '../src/catalogue.ts';
import { type RecformerOptions, recformer } from '../src/recformer/recommender.ts';
import { tableRound } from '../src/recformer/schedule.ts';
import { itemText } from '../src/recformer/text.ts';
import type { TrainOptions } from '../src/recommender.ts';
import type { Sample } from '../src/samples.ts';
import { temporaryFolder } from './shared.ts';

const folder = temporaryFolder();
/** Letters are tokens 3, 4, ...; there are no others. */
const letters: Tokenizer = {
  hash: 'letters',
  encode: (text) => letters.encodeContinuation(text),
  encodeContinuation: (text) => [...text].map((letter) => 3 + (letter.codePointAt(0)! % 27)),
  decode: () => '',
};
const titles = ['axe', 'bow', 'cup', 'dice', 'egg', 'fan', 'gun', 'hat', 'ink', 'jar', 'kit', 'lamp'];
const items = catalogue(
  titles.map((title, i) => ({
    id: `i${i}`,
    title,
    attributes: (i % 2 === 0 ? { brand: `b${i}`, colour: 'red' } : { colour: 'blue' }) as Record<
      string,
      string
    >,
  })),
);
const limits = { maxAttributes: 3, maxAttributeLength: 8, maxItems: 5, maxTokens: 48 };
const lora = {
  rank: 2,
  alpha: 4,
  dropout: 0,
  targetModules: ['query', 'value', 'query_global', 'value_global'] as const,
};

const runtime = nodeRuntime({ threads: 1 });
let model: EncoderModel;
beforeAll(async () => {
  const directory = join(folder, 'encoder');
  await writeRandomRecformer(
    directory,
    {
      vocabularySize: 30,
      hiddenSize: 16,
      intermediateSize: 24,
      layerCount: 2,
      headCount: 2,
      headDim: 8,
      positionCount: 50,
      tokenTypeCount: 4,
      itemPositionCount: 6,
      attentionWindows: [4, 4],
      normEpsilon: 1e-5,
      pooling: 'cls',
      startId: 0,
      padId: 1,
      limits,
    },
    7,
  );
  // Weights large enough that vectors differ.
  const small = await openRecformer(directory, { cacheDir: folder });
  const tensors = [...(await readParameters(small))].map(([name, { data, dims }]) => {
    const factor = name.includes('LayerNorm') ? 1 : 15;
    return [
      name,
      float32(
        data.map((x) => factor * x),
        dims,
      ),
    ] as const;
  });
  await writeRecformer(directory, small.config, new Map(tensors));
  model = encoderModel(await openRecformer(directory, { cacheDir: folder }), runtime);
});

let caches = 0;
const open = (options: Partial<RecformerOptions> = {}) =>
  recformer({
    model,
    runtime,
    tokenizer: letters,
    catalogue: items,
    attributes: ['title', 'brand'],
    tune: lora,
    temperature: 0.05,
    negatives: 'all',
    cacheDir: join(folder, `cache-${caches++}`),
    ...options,
  });

const samples: Sample[] = Array.from({ length: 8 }, (_, u) => {
  const seen = [u, (u + 3) % 12, (u + 5) % 12];
  return { user: `u${u}`, history: seen, seen, targets: [(u + 1) % 12] };
});
const training: TrainOptions = {
  epochs: 2,
  batchSize: 4,
  microBatch: 2,
  learningRate: 0.01,
  warmupSteps: 0,
  weightDecay: 0,
  clipNorm: 1,
  stream: [1, 'client', 0],
};

const text = () =>
  itemText({
    catalogue: items,
    tokenizer: letters,
    attributes: ['title', 'brand'],
    config: { limits, startId: 0 },
  });

/** Cosines of histories with all items, from the encoder's vectors alone. */
async function plainCosines(
  histories: readonly (readonly number[])[],
  own?: NamedTensors,
): Promise<number[][]> {
  const { history, item } = text();
  const parameters = own && { lora, tensors: own };
  const encode = async (sequences: Parameters<EncoderModel['encode']>[0]) => {
    const { data, dims } = await model.encode(sequences, parameters);
    return sequences.map((_, i) => [...data.subarray(i * dims[1]!, (i + 1) * dims[1]!)]);
  };
  const users = await encode(histories.map((one) => history(one).sequence));
  const all = await encode(titles.map((_, i) => item(i).sequence));
  const dot = (a: number[], b: number[]) => a.reduce((sum, x, i) => sum + x * b[i]!, 0);
  return users.map((user) => all.map((one) => dot(user, one) / Math.sqrt(dot(user, user) * dot(one, one))));
}

test('items are attributes in order, each as name and value; what an item lacks is left out', () => {
  const { item, history } = text();
  const tokens = letters.encodeContinuation;
  expect(item(0).sequence.ids).toEqual([0, ...tokens('titleaxe'), ...tokens('brandb0')]);
  expect(item(1).sequence.ids).toEqual([0, ...tokens('titlebow')]);
  expect(item(1).sequence.tokenTypes).toEqual([0, 1, 1, 1, 1, 1, 2, 2, 2]);
  // Newest first.
  expect(history([0, 1]).sequence.ids.slice(0, 9)).toEqual(item(1).sequence.ids);
  expect(history([]).sequence.ids).toEqual([0]);
});

test('an attribute that no item has is refused, with those that there are', () => {
  expect(() => open({ attributes: ['title', 'brnd'] })).toThrow(
    'no item has the attribute "brnd"; the catalogue has title, brand, colour',
  );
});

test("another model's tokenizer is refused when it is opened", () => {
  const larger = { ...letters, encodeContinuation: () => [3, 30] };
  expect(() => open({ tokenizer: larger })).toThrow(
    'there is no token 30, the model has 30; is this its tokenizer?',
  );
});

test('items are ranked by cosine, and what was seen is left out unless it is to be ranked', async () => {
  const recommender = open();
  const start = await recommender.initialParameters(1);
  const expected = await plainCosines(samples.map(({ seen }) => seen));
  for (const maskHistory of [true, false]) {
    const found = await recommender.recommend(samples, start, { k: 12, seed: 1, maskHistory });
    found.forEach(({ items }, u) => {
      const ranked = titles
        .map((_, item) => item)
        .filter((item) => !maskHistory || !samples[u]!.seen.includes(item));
      expect(items.map(({ item }) => item).sort((a, b) => a - b)).toEqual(ranked);
      // Random vectors lie close: near ties may fall either way, scores may not.
      const scores = items.map(({ score }) => score);
      expect(scores).toEqual(scores.toSorted((a, b) => b - a));
      for (const { item, score } of items) expect(Math.abs(score - expected[u]![item]!)).toBeLessThan(1e-6);
    });
  }
});

test('the loss is the mean of -log softmax(cosine / temperature) over all items', async () => {
  const recommender = open();
  const cosines = await plainCosines(samples.map(({ seen }) => seen));
  const expected = cosines.map((row, u) => {
    const scores = row.map((cosine) => cosine / 0.05);
    const sum = scores.reduce((total, score) => total + Math.exp(score), 0);
    return Math.log(sum) - scores[samples[u]!.targets[0]!]!;
  });
  const mean = expected.reduce((a, b) => a + b) / expected.length;
  expect(await recommender.loss(samples, await recommender.initialParameters(1))).toBeCloseTo(mean, 4);
});

test.each([
  ['an adapter, all items', {}],
  ['an adapter, drawn items', { negatives: 3 }],
  ['all tensors', { tune: 'full' }],
] as const)('training lowers the loss, twice alike: %s', async (_, options) => {
  const recommender = open(options);
  const start = await recommender.initialParameters(1);
  const before = await recommender.loss(samples, start);
  const run = () => recommender.train(samples, start, { ...training, epochs: 10, learningRate: 0.02 });
  const found = await run();
  expect(await recommender.loss(samples, found.parameters, start)).toBeLessThan(before - 0.1);
  expect(found.tokens.real).toBeGreaterThan(0);
  expect([...(await run()).parameters]).toEqual([...found.parameters]);
  // What is passed in stays as it is.
  expect(await recommender.loss(samples, start)).toBe(before);
});

test('every epoch draws targets anew, from all items of a user', async () => {
  const labels = new Set<number>();
  let histories = 0;
  const spy: EncoderModel = {
    ...model,
    gradients(batch, ...rest) {
      for (const { label, sequence } of batch) {
        labels.add(label);
        if (sequence.ids.length === 1) histories++;
      }
      return model.gradients(batch, ...rest);
    },
  };
  const recommender = open({ model: spy });
  const start = await recommender.initialParameters(1);
  await recommender.train(samples.slice(0, 1), start, { ...training, epochs: 30 });
  expect([...labels].sort((a, b) => a - b)).toEqual([0, 1, 3, 5]);
  expect(histories).toBeGreaterThan(0);
});

test('item vectors are computed with the parameters that are given for them', async () => {
  const recommender = open();
  const start = await recommender.initialParameters(1);
  const { parameters } = await recommender.train(samples, start, { ...training, epochs: 6 });
  const fresh = await recommender.loss(samples, parameters);
  expect(await recommender.loss(samples, parameters, parameters)).toBe(fresh);
  expect(await recommender.loss(samples, parameters, start)).not.toBe(fresh);
  const own = await recommender.train(samples, parameters, training);
  const stale = await recommender.train(samples, parameters, { ...training, items: start });
  expect(stale.loss).not.toBe(own.loss);
  const scores = async (items?: NamedTensors) =>
    (
      await recommender.recommend(samples.slice(0, 1), parameters, {
        k: 12,
        seed: 1,
        ...(items && { items }),
      })
    )[0]!;
  expect(await scores(parameters)).toEqual(await scores());
  expect(await scores(start)).not.toEqual(await scores());
});

/** The model, and how many sequences it has encoded. */
function countingModel(): EncoderModel & { readonly encoded: number } {
  let encoded = 0;
  return {
    ...model,
    get encoded() {
      return encoded;
    },
    encode(sequences, ...rest) {
      encoded += sequences.length;
      return model.encode(sequences, ...rest);
    },
  };
}

test("item vectors are computed once for each parameters; those asked for recommendations, and the base's, are stored", async () => {
  const counting = countingModel();
  const cacheDir = join(folder, 'counted');
  const stored = () => readdirSync(cacheDir).length;
  const recommender = open({ model: counting, cacheDir });
  const start = await recommender.initialParameters(1);
  await recommender.loss(samples, start);
  const { parameters } = await recommender.train(samples, start, { ...training, epochs: 1 });
  expect([counting.encoded, stored()]).toEqual([12, 1]);
  await recommender.loss(samples, parameters);
  expect([counting.encoded, stored()]).toEqual([24, 1]);
  await recommender.recommend(samples.slice(0, 1), parameters, { k: 1, seed: 1 });
  expect([counting.encoded, stored()]).toEqual([25, 2]);
  // Another process finds them, and so does one that starts from another fresh adapter: it adds nothing either.
  const other = open({ model: counting, cacheDir });
  await other.recommend(samples.slice(0, 1), parameters, { k: 1, seed: 1 });
  expect(counting.encoded).toBe(26);
  await other.loss(samples, await other.initialParameters(2));
  expect([counting.encoded, stored()]).toEqual([26, 2]);
});

test('without a cache, item vectors are computed whenever they are asked for', async () => {
  const counting = countingModel();
  const recommender = open({ model: counting, cacheDir: undefined });
  const start = await recommender.initialParameters(1);
  expect(await recommender.loss(samples, start)).toBe(await recommender.loss(samples, start));
  expect(counting.encoded).toBe(24);
});

test('what clients exchange are weights: no item table, no position ids', async () => {
  const full = await open({ tune: 'full' }).initialParameters(1);
  expect([...full.keys()]).toEqual([...model.checkpoint.tensors.keys()]);
  expect([...full.keys()].filter((name) => /item_embedding\.|position_ids/.test(name))).toEqual([]);
  const adapter = [...(await open().initialParameters(1)).keys()];
  expect(adapter.every((name) => /\.(query|value)(_global)?\.lora_[AB]\.weight$/.test(name))).toBe(true);
});

test('a loss that is no number says where, and what to do', async () => {
  const recommender = open({ temperature: 1e-40 });
  const start = await recommender.initialParameters(1);
  await expect(recommender.train(samples, start, training)).rejects.toThrow(
    /recformer: the loss is (NaN|Infinity) at step 1 of 4; nothing was learned yet/,
  );
});

test('says how many histories do not fit', () => {
  const long: Sample = { user: 'u', history: [], seen: [0, 1, 2, 3, 4, 5], targets: [6] };
  expect(open().truncated([...samples, long])).toBe(1);
});

test('the item table is refreshed at its cadence, and never after stage 1', () => {
  const rounds = (every: number, stage1Rounds: number) =>
    Array.from({ length: 8 }, (_, round) => tableRound(round, { every, stage1Rounds }));
  expect(rounds(1, 100)).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
  expect(rounds(3, 100)).toEqual([0, 0, 0, 3, 3, 3, 6, 6]);
  expect(rounds(1, 3)).toEqual([0, 1, 2, 2, 2, 2, 2, 2]);
  expect(rounds(2, 4)).toEqual([0, 0, 2, 2, 2, 2, 2, 2]);
  const small = fc.integer({ min: 1, max: 9 });
  fc.assert(
    fc.property(fc.nat(40), small, small, (round, every, stage1Rounds) => {
      const schedule = { every, stage1Rounds };
      const found = tableRound(round, schedule);
      expect(found).toBeLessThanOrEqual(round);
      expect(found).toBeLessThan(stage1Rounds);
      expect(found % every).toBe(0);
      // A round that computes a table has it.
      expect(tableRound(found, schedule)).toBe(found);
      expect(tableRound(round + 1, schedule)).toBeGreaterThanOrEqual(found);
    }),
  );
});
