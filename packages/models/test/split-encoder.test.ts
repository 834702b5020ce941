// A RecFormer cut after any layer computes what it computes whole: losses, gradients, steps, vectors.
import { join } from 'node:path';
import {
  adamW,
  type Float32Tensor,
  float32,
  globalNorm,
  type NamedTensors,
  nodeRuntime,
  random,
} from '@fellrec/graph';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { readSafetensors } from '../src/checkpoint/safetensors.ts';
import {
  encoderProjections,
  freshAdapter,
  type LoraConfig,
  layerOf,
  loraName,
  ofLayers,
} from '../src/lora.ts';
import type { ItemSequence } from '../src/recformer/batch.ts';
import { openRecformer, type RecformerCheckpoint, readParameters } from '../src/recformer/checkpoint.ts';
import { adaptedEncoderProjections, recformerTensors } from '../src/recformer/config.ts';
import type { ContrastOptions, LabelledSequence } from '../src/recformer/contrast.ts';
import { type EncoderModel, type EncoderParameters, encoderModel, unitRows } from '../src/recformer/model.ts';
import { splitEncoder } from '../src/split/encoder.ts';
import { type CutLayers, cutLayers } from '../src/split/layers.ts';
import { type LocalMiddle, localMiddle } from '../src/split/local-middle.ts';
import { recformerCut } from '../src/split/recformer.ts';
import { largestDifference, norm, relativeDifference } from './numbers.ts';
import { fixture, readJson, temporaryFolder } from './shared.ts';

interface Cases {
  readonly built: readonly {
    readonly input_ids: number[];
    readonly token_type_ids: number[];
    readonly item_position_ids: number[];
  }[];
  readonly labels: readonly number[];
  readonly temperature: number;
  readonly cancelling_gradient: readonly string[];
}

const directory = fixture('recformer-tiny');
const cases: Cases = readJson(join(directory, 'cases.json'));
const cacheDir = temporaryFolder();
const runtime = nodeRuntime({ threads: 1 });
const layerCount = 3;
const last = layerCount - 1;
const cuts = Array.from({ length: layerCount }, (_, k) => k);
const forms = ['dense', 'blocks'] as const;
type Form = (typeof forms)[number];

const histories = cases.built.map(
  (built): ItemSequence => ({
    ids: built.input_ids,
    tokenTypes: built.token_type_ids,
    itemPositions: built.item_position_ids,
  }),
);
const batch = histories.map((sequence, b): LabelledSequence => ({ sequence, label: cases.labels[b]! }));

/** A model whole, and its layers to be cut, in one form of attention. */
interface Models {
  readonly checkpoint: RecformerCheckpoint;
  readonly whole: EncoderModel;
  readonly kept: CutLayers;
  readonly recomputed: CutLayers;
}
let options: ContrastOptions;
/** Windows that are all alike, as the checkpoint has them, and others. */
const models = { even: new Map<Form, Models>(), uneven: new Map<Form, Models>() };
type Windows = keyof typeof models;
let trained: Record<'lora' | 'full', EncoderParameters>;

beforeAll(async () => {
  const checkpoint = await openRecformer(directory, { cacheDir });
  const expected = await readSafetensors(join(directory, 'expected.safetensors'));
  options = {
    items: unitRows(expected.get('items') as Float32Tensor),
    temperature: cases.temperature,
    microBatch: 2,
  };
  // The widest window is not the last layer's, and wider than the multiples that dense sequences are padded to.
  const uneven = { ...checkpoint, config: { ...checkpoint.config, attentionWindows: [4, 16, 2] } };
  for (const [windows, opened] of [
    ['even', checkpoint],
    ['uneven', uneven],
  ] as const)
    for (const form of forms) {
      const cut = recformerCut(opened, () => form);
      models[windows].set(form, {
        checkpoint: opened,
        whole: encoderModel(opened, runtime, { form }),
        kept: cutLayers(cut, runtime),
        recomputed: cutLayers(cut, runtime, { recompute: true }),
      });
    }
  trained = {
    lora: { lora, tensors: moved(checkpoint) },
    full: { tensors: await readParameters(checkpoint) },
  };
});
afterAll(async () => {
  for (const { whole, kept, recomputed } of [...models.even.values(), ...models.uneven.values()])
    for (const one of [whole, kept, recomputed]) await one.release();
});

const lora: LoraConfig = { rank: 2, alpha: 4, dropout: 0.2, targetModules: encoderProjections };

/** An adapter with all halves random: no part of it is silent. */
function moved({ config }: RecformerCheckpoint): NamedTensors {
  const fresh = freshAdapter(adaptedEncoderProjections(config, lora), lora, 1);
  return new Map(
    [...fresh].map(([name, { dims, data }]) => {
      const { normal } = random(2, name);
      return [
        name,
        float32(
          data.map(() => 0.1 * normal()),
          dims,
        ),
      ];
    }),
  );
}

type Tune = 'lora' | 'full';
/** Whether the middle layers learn too. */
type Middle = 'frozen middle' | 'trained middle';
// A large epsilon: where gradients cancel, steps would be in the direction of what rounding left.
const settings = { clipNorm: 0.05, weightDecay: 0.01, epsilon: 1e-4 };

interface SplitOptions {
  readonly tune: Tune;
  readonly middle: Middle;
  readonly windows?: Windows;
  readonly form: Form;
  readonly layers?: 'kept' | 'recomputed';
  readonly pooling?: 'cls' | 'avg';
}

interface Split {
  readonly model: EncoderModel;
  readonly own: EncoderParameters;
  readonly elsewhere: LocalMiddle;
  /** What is compared with: the model whole, with the parameters of both sides. */
  readonly whole: EncoderModel;
  readonly unsplit: EncoderParameters;
}

/** The model cut after k layers, each side with its parameters. */
function split(
  k: number,
  { tune, middle, windows = 'even', form, layers = 'kept', pooling }: SplitOptions,
): Split {
  const found = models[windows].get(form)!;
  const inMiddle = (layer: number) => layer >= k && layer < last;
  const all = trained[tune];
  const others = ofLayers(all.tensors, inMiddle);
  const own: EncoderParameters = {
    ...all,
    ...(all.lora && { lora: { ...all.lora, layers: cuts.filter((layer) => !inMiddle(layer)) } }),
    tensors: new Map([...all.tensors].filter(([name]) => !others.has(name))),
  };
  const trains = middle === 'trained middle' && others.size > 0;
  const elsewhere = localMiddle({
    layers: found[layers],
    range: { from: k, to: last },
    ...(trains && { trained: { ...all, tensors: others } }),
    optimizer: settings,
  });
  const { checkpoint } = found;
  return {
    model: splitEncoder({ checkpoint, runtime, layers: found[layers], kept: k, middle: elsewhere, pooling }),
    own,
    elsewhere,
    whole: pooling ? encoderModel(checkpoint, runtime, { form, pooling }) : found.whole,
    unsplit: trains ? all : own,
  };
}

/** Equal up to a share of each tensor's largest; where rounding is all that is left of a gradient, up to rounding. */
function expectNear(found: NamedTensors, expected: NamedTensors, share: number): void {
  expect([...found.keys()].sort()).toEqual([...expected.keys()].sort());
  for (const [name, { data }] of expected) {
    const rest = cases.cancelling_gradient.includes(name) ? 1e-7 : 0;
    const tolerance = Math.max(share * Math.max(...data.map(Math.abs)), rest);
    expect(largestDifference(found.get(name)!.data, data), name).toBeLessThanOrEqual(tolerance);
  }
}

const of = (tensors: NamedTensors, names: NamedTensors): NamedTensors =>
  new Map([...tensors].filter(([name]) => names.has(name)));

/** Loss and gradients of this side, and the loss alone, are those of the whole model. */
async function expectSame({ model, own, whole, unsplit }: Split, some: readonly LabelledSequence[]) {
  const step = { ...options, dropoutSeed: [1, 'dropout'] as const };
  const expected = await whole.gradients(some, unsplit, step);
  const found = await model.gradients(some, own, step);
  expect(Math.abs(found.loss / expected.loss - 1)).toBeLessThan(1e-6);
  expectNear(found.gradients, of(expected.gradients, own.tensors), 1e-6);
  expect(found.tokens).toEqual(expected.tokens);
  const loss = await whole.loss(some, unsplit, options);
  expect(Math.abs((await model.loss(some, own, options)) / loss - 1)).toBeLessThan(1e-6);
}

async function expectSameVectors({ model, own, whole, unsplit }: Split): Promise<void> {
  for (const pooling of ['cls', 'avg'] as const) {
    const expected = await whole.encode(histories, unsplit, { pooling });
    const found = await model.encode(histories, own, { pooling });
    expect(found.dims).toEqual(expected.dims);
    expect(relativeDifference(found.data, expected.data), pooling).toBeLessThan(1e-6);
  }
}

const each = cuts.flatMap((k) => forms.map((form) => [k, form] as const));

describe.each(each)('cut after %i layers, %s', (k, form) => {
  test.each([
    ['lora', 'frozen middle'],
    ['lora', 'trained middle'],
    ['full', 'frozen middle'],
    ['full', 'trained middle'],
  ] as const)('%s, %s: loss, gradients and vectors', async (tune, middle) => {
    const cut = split(k, { tune, middle, form });
    await expectSame(cut, batch);
    await expectSameVectors(cut);
    await cut.model.release();
  });

  test.each(['lora', 'full'] as const)('%s: with candidates, pooled by the mean', async (tune) => {
    const cut = split(k, { tune, middle: 'trained middle', form, pooling: 'avg' });
    const listed = batch.map((labelled) => ({
      ...labelled,
      candidates: [(labelled.label + 5) % 12, labelled.label, (labelled.label + 1) % 12],
    }));
    await expectSame(cut, listed);
    await cut.model.release();
    await cut.whole.release();
  });

  test.each(['cls', 'avg'] as const)('windows that differ by layer, %s', async (pooling) => {
    const cut = split(k, { tune: 'lora', middle: 'trained middle', windows: 'uneven', form, pooling });
    await expectSame(cut, batch);
    await expectSameVectors(cut);
    await cut.model.release();
    await cut.whole.release();
  });

  test.each(['lora', 'full'] as const)(
    '%s: steps of all layers, clipped by the norm over both sides',
    async (tune) => {
      const { model, own, elsewhere, whole, unsplit } = split(k, { tune, middle: 'trained middle', form });
      const optimizer = adamW(settings);
      let expected = optimizer.init(unsplit.tensors);
      let found = optimizer.init(own.tensors);
      for (let step = 0; step < 3; step++) {
        const stepOptions = { ...options, dropoutSeed: [1, step] as const };
        const tensors = expected.parameters;
        const { gradients } = await whole.gradients(batch, { ...unsplit, tensors }, stepOptions);
        expect(globalNorm(gradients)).toBeGreaterThan(settings.clipNorm);
        ({ state: expected } = optimizer.update(gradients, expected, 0.01));
        const part = await model.gradients(batch, { ...own, tensors: found.parameters }, stepOptions);
        const squares = globalNorm(part.gradients) ** 2;
        const others = (await model.updateElsewhere?.(squares, 0.01)) ?? 0;
        ({ state: found } = optimizer.update(part.gradients, found, 0.01, others));
      }
      expectNear(new Map([...found.parameters, ...elsewhere.parameters]), expected.parameters, 2e-5);
      await model.release();
    },
  );

  test.each(['lora', 'full'] as const)(
    '%s: the same when the forward pass is computed again',
    async (tune) => {
      const step = { ...options, dropoutSeed: [1, 'dropout'] as const };
      const [kept, again] = (['kept', 'recomputed'] as const).map((layers) =>
        split(k, { tune, middle: 'trained middle', form, layers }),
      ) as [Split, Split];
      const expected = await kept.model.gradients(batch, kept.own, step);
      const found = await again.model.gradients(batch, again.own, step);
      expect(found.loss).toBe(expected.loss);
      expectNear(found.gradients, expected.gradients, 1e-6);
      // The middle's too: its step is as long.
      const lengths = [kept, again].map(({ model }) => model.updateElsewhere?.(0, 0) ?? 0);
      const [first, second] = (await Promise.all(lengths)) as [number, number];
      expect(first > 0).toBe(k < last);
      expect(Math.abs(second - first)).toBeLessThanOrEqual(1e-6 * first);
      for (const { model } of [kept, again]) await model.release();
    },
  );
});

test.each(cuts)('cut after %i layers: without parameters, the vectors of the checkpoint', async (k) => {
  const { model, whole } = split(k, { tune: 'lora', middle: 'trained middle', form: 'dense' });
  const expected = await whole.encode(histories);
  expect(relativeDifference((await model.encode(histories)).data, expected.data)).toBeLessThan(1e-6);
  await model.release();
});

describe('some tensors alone', () => {
  test.each([
    ['the last layer', (name: string) => layerOf(name) === last],
    ['the first layer', (name: string) => layerOf(name) === 0],
    ['the word table', (name: string) => name === 'embeddings.word_embeddings.weight'],
    ['a norm', (name: string) => name === 'embeddings.LayerNorm.bias'],
  ] as const)('%s', async (_, holds) => {
    const { model, whole } = split(1, { tune: 'full', middle: 'frozen middle', form: 'dense' });
    const some = { tensors: new Map([...trained.full.tensors].filter(([name]) => holds(name))) };
    const expected = await whole.gradients(batch, some, options);
    const found = await model.gradients(batch, some, options);
    expectNear(found.gradients, expected.gradients, 1e-6);
    await model.release();
  });

  test("without influence have gradients of 0; the middle's have none", async () => {
    for (const tune of ['lora', 'full'] as const) {
      const { model, own } = split(1, { tune, middle: 'frozen middle', form: 'dense' });
      const step = { ...options, dropoutSeed: [1] as const };
      const { gradients } = await model.gradients(batch, trained[tune], step);
      expect([...gradients.keys()]).toEqual([...own.tensors.keys()]);
      const path = `encoder.layer.${last}.attention.self.query`; // the last layer's first token alone is read
      const silent = tune === 'lora' ? loraName(path, 'A') : `${path}.weight`;
      expect(norm(gradients.get(silent)!.data)).toBe(0);
      await model.release();
    }
  });
});

test('tensors belong to their layers by name, and the embeddings to none', () => {
  const { config } = models.even.get('dense')!.checkpoint;
  const names = recformerTensors(config);
  for (const layer of cuts) {
    const ofLayer = [...ofLayers(names, (index) => index === layer).keys()];
    expect(ofLayer).toEqual([...names.keys()].filter((name) => name.startsWith(`encoder.layer.${layer}.`)));
    expect(ofLayer.length).toBeGreaterThan(0);
    expect(layerOf(`base_model.model.encoder.layer.${layer}.output.dense.lora_A.weight`)).toBe(layer);
  }
  const ofNone = [...names.keys()].filter((name) => name.startsWith('embeddings.'));
  expect([...names.keys()].filter((name) => layerOf(name) === undefined)).toEqual(ofNone);
  expect(ofLayers(names, () => true).size).toBe(names.size - ofNone.length);
});

test('what is not there is refused', async () => {
  const { model, own } = split(1, { tune: 'lora', middle: 'frozen middle', form: 'dense' });
  await expect(model.encode(histories, own, { attention: 'full' })).rejects.toThrow(
    'a split encoder has no attention "full"; use a whole one',
  );
  await expect(model.gradients(batch, own, options)).rejects.toThrow('pass dropoutSeed');
  await expect(model.loss([], own, options)).rejects.toThrow('the batch has no sequence');
  await expect(model.loss([{ ...batch[0]!, label: 12 }], own, options)).rejects.toThrow(
    'there is no item 12 among 12',
  );
  expect(await model.encode([], own)).toEqual(float32([], [0, 32]));
  expect(await model.updateElsewhere?.(1, 0)).toBe(0);
});
