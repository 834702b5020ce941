// A LLaMA cut after any layer computes what it computes whole: losses, gradients, steps, vectors, generated tokens,
// likelihoods.
import { join } from 'node:path';
import { adamW, type Float32Tensor, float32, type NamedTensors, nodeRuntime, random } from '@fellrec/graph';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ignoredLabel, type Sequence } from '../src/batch.ts';
import { type Checkpoint, openCheckpoint } from '../src/checkpoint/checkpoint.ts';
import { readSafetensors } from '../src/checkpoint/safetensors.ts';
import type { Hypothesis } from '../src/generation.ts';
import { type Adapter, languageModel, type WholeLanguageModel } from '../src/language-model.ts';
import type { Likelihood } from '../src/likelihood.ts';
import { llama } from '../src/llama.ts';
import { initialAdapter, type LoraConfig, ofLayers, projections } from '../src/lora.ts';
import { splitLanguageModel } from '../src/split/language-model.ts';
import { type CutLayers, cutLayers } from '../src/split/layers.ts';
import { llamaCut } from '../src/split/llama.ts';
import { type LocalMiddle, localMiddle } from '../src/split/local-middle.ts';
import { tokenTree } from '../src/token-tree.ts';
import { f32, safetensors, writeFolder } from './checkpoint-files.ts';
import { largestDifference, relativeDifference } from './numbers.ts';
import { readJson, stories260k, temporaryFolder } from './shared.ts';
import { end, prompts, titles } from './titles.ts';

const cacheDir = temporaryFolder();
const runtime = nodeRuntime({ threads: 1 });
let checkpoint: Checkpoint;
let whole: WholeLanguageModel;
const layers = new Map<string, CutLayers>();
beforeAll(async () => {
  checkpoint = await openCheckpoint(stories260k, { cacheDir });
  whole = languageModel(checkpoint, runtime);
  const cut = llamaCut(llama(checkpoint), checkpoint.config);
  layers.set('kept', cutLayers(cut, runtime));
  layers.set('recomputed', cutLayers(cut, runtime, { recompute: true }));
});
afterAll(async () => {
  await whole.release();
  for (const one of layers.values()) await one.release();
});

const layerCount = 5;
const last = layerCount - 1;
const cuts = Array.from({ length: layerCount }, (_, k) => k);
const draw = random(3, 'split');
const tokens = (length: number) => Array.from({ length }, () => 3 + draw.integer(500));
const shared = [1, ...tokens(11)];
/** Five sequences that begin alike, and three that do not: with a prefix that is computed once, and without. */
const batches: Record<string, Sequence[]> = {
  prefixed: [4, 9, 17, 5, 12].map((length) => {
    const ids = [...shared, ...tokens(length)];
    return { ids, labels: ids.map((id, t) => (t < ids.length - 3 ? ignoredLabel : id)) };
  }),
  plain: [6, 3, 19].map((length) => {
    const ids = [1, ...tokens(length)];
    return { ids, labels: ids.map((id, t) => (t < 2 ? ignoredLabel : id)) };
  }),
};

/** All halves random: nothing has a gradient of 0. */
function adapterOf(lora: LoraConfig, { config } = checkpoint): Adapter {
  const tensors: NamedTensors = new Map(
    [...initialAdapter(config, lora, 1)].map(([name, { dims, data }]): [string, Float32Tensor] => {
      const { normal } = random(5, name);
      return [
        name,
        float32(
          Float32Array.from(data, () => 0.1 * normal()),
          dims,
        ),
      ];
    }),
  );
  return { config: lora, tensors };
}
const lora: LoraConfig = { rank: 2, alpha: 4, dropout: 0.2, targetModules: projections };

type Mode = 'client-layers' | 'all-layers';
const settings = { clipNorm: 0.05, weightDecay: 0.01 };

/** The model cut after k layers, each side with its part of an adapter. */
function split(k: number, mode: Mode, kept = 'kept') {
  const mine = (layer: number) => layer < k || layer === last;
  const config = { ...lora, layers: cuts.filter(mine) };
  const all = adapterOf(lora);
  const own: Adapter = { config, tensors: ofLayers(all.tensors, mine) };
  const others = ofLayers(all.tensors, (layer) => !mine(layer));
  const range = { from: k, to: last };
  const middle: LocalMiddle = localMiddle({
    layers: layers.get(kept)!,
    range,
    ...(mode === 'all-layers' && others.size > 0 && { trained: { lora, tensors: others } }),
    optimizer: settings,
  });
  const model = splitLanguageModel({ checkpoint, runtime, layers: layers.get(kept)!, kept: k, middle });
  // What is compared with: the same adapter, whole.
  const unsplit = mode === 'all-layers' ? all : own;
  return { model, own, middle, unsplit };
}

function expectNear(found: NamedTensors, expected: NamedTensors, tolerance: number): void {
  expect([...found.keys()].sort()).toEqual([...expected.keys()].sort());
  for (const [name, { data }] of expected)
    expect(relativeDifference(found.get(name)!.data, data), name).toBeLessThan(tolerance);
}

const cases = cuts.flatMap((k) =>
  (['client-layers', 'all-layers'] as const).flatMap((mode) =>
    Object.keys(batches).map((batch) => [k, mode, batch] as const),
  ),
);

describe('cut after k layers', () => {
  test.each(cases)('k = %i, %s, %s: loss and gradients, with dropout', async (k, mode, batch) => {
    const { model, own, unsplit } = split(k, mode);
    const options = { microBatch: 2, dropoutSeed: [1, 'dropout', k] as const };
    const expected = await whole.gradients(batches[batch]!, unsplit, options);
    const found = await model.gradients(batches[batch]!, own, options);
    expect(Math.abs(found.loss / expected.loss - 1)).toBeLessThan(1e-6);
    expectNear(
      found.gradients,
      new Map([...expected.gradients].filter(([name]) => own.tensors.has(name))),
      2e-6,
    );
    const plainLoss = await whole.loss(batches[batch]!, unsplit);
    expect(Math.abs((await model.loss(batches[batch]!, own)) / plainLoss - 1)).toBeLessThan(1e-6);
    await model.release();
  });

  test.each(cuts)(
    'k = %i: steps of the adapter of all layers, clipped by the norm over both sides',
    async (k) => {
      const { model, own, middle, unsplit } = split(k, 'all-layers');
      const optimizer = adamW(settings);
      let expected = optimizer.init(unsplit.tensors);
      let found = optimizer.init(own.tensors);
      for (let step = 0; step < 3; step++) {
        const options = { microBatch: 2, dropoutSeed: [1, step] as const };
        const batch = batches.prefixed!;
        const whole_ = await whole.gradients(batch, { config: lora, tensors: expected.parameters }, options);
        ({ state: expected } = optimizer.update(whole_.gradients, expected, 0.01));
        const part = await model.gradients(batch, { ...own, tensors: found.parameters }, options);
        const squares = [...part.gradients.values()].reduce(
          (sum, { data }) => sum + data.reduce((s, x) => s + x * x, 0),
          0,
        );
        const elsewhere = (await model.updateElsewhere?.(squares, 0.01)) ?? 0;
        ({ state: found } = optimizer.update(part.gradients, found, 0.01, elsewhere));
      }
      expectNear(new Map([...found.parameters, ...middle.parameters]), expected.parameters, 2e-5);
      await model.release();
    },
  );

  test.each(cuts)('k = %i: vectors and generated tokens', async (k) => {
    const { model, own, unsplit } = split(k, 'all-layers');
    const beginnings = batches.prefixed!.map(({ ids }) => ids);
    const expected = await whole.vectors(beginnings);
    const found = await model.vectors(beginnings);
    expect(relativeDifference(found.data, expected.data)).toBeLessThan(1e-6);
    for (const beams of [1, 3])
      for (const [adapter, all] of [[own, unsplit], []]) {
        const options = { beams, maxNewTokens: 9, eosIds: [2], batch: 3 };
        const hypotheses = await whole.generate(beginnings, options, all);
        const own_ = await model.generate(beginnings, options, adapter);
        expect(own_.map((list) => list.map(({ ids }) => ids))).toEqual(
          hypotheses.map((list) => list.map(({ ids }) => ids)),
        );
      }
    await model.release();
  });

  test.each(cuts)('k = %i: beams along trees, and likelihoods', async (k) => {
    const { model, own, unsplit } = split(k, 'all-layers');
    const catalogue = titles(60, 1);
    const tree = tokenTree(catalogue);
    for (const { given, batch } of [
      { given: prompts(5, 1), batch: 2 },
      { given: [[1], ...prompts(1, 2)], batch: 7 },
    ]) {
      for (const beams of [1, 4]) {
        const trees = given.map((_, i) => tree.without(i === 1 ? catalogue.keys() : [i, i + 20]));
        const options = { beams, maxNewTokens: tree.depth, eosIds: [end], batch, trees };
        const expected = await whole.generate(given, options, unsplit);
        const found = await model.generate(given, options, own);
        const flat = (lists: Hypothesis[][]) => lists.flat().map(({ score }) => score);
        expect(found.map((list) => list.map(({ ids, sequences }) => ({ ids, sequences })))).toEqual(
          expected.map((list) => list.map(({ ids, sequences }) => ({ ids, sequences }))),
        );
        expect(found.map(({ length }) => length)).toEqual(given.map((_, i) => (i === 1 ? 0 : beams)));
        expect(largestDifference(flat(found), flat(expected))).toBeLessThan(1e-5);
      }
      const continuations = given.map((_, i) => catalogue.slice(i, 10));
      const expected = await whole.likelihoods(given, continuations, { batch }, unsplit);
      const found = await model.likelihoods(given, continuations, { batch }, own);
      for (const [i, list] of expected.entries()) {
        const sums = (of: readonly Likelihood[]) => of.map(({ logProbability }) => logProbability);
        expect(relativeDifference(sums(found[i]!), sums(list))).toBeLessThan(1e-6);
        expect(found[i]!.map(({ tokens }) => tokens)).toEqual(list.map(({ tokens }) => tokens));
      }
    }
    await model.release();
  });

  test('and, of ten layers, above a block that learns nothing', async () => {
    const [depth, k] = [10, 9];
    const weights = await readSafetensors(join(stories260k, 'model.safetensors'));
    const deep = [...weights].flatMap(([name, tensor]) =>
      (name.includes('layers.0.') ? [...Array(depth).keys()] : name.includes('layers.') ? [] : [0]).map(
        (layer) => [name.replace('layers.0.', `layers.${layer}.`), f32(tensor as Float32Tensor)] as const,
      ),
    );
    const folder = writeFolder(join(cacheDir, 'deep'), {
      'config.json': { ...readJson<object>(join(stories260k, 'config.json')), num_hidden_layers: depth },
      'model.safetensors': safetensors(Object.fromEntries(deep)),
    });
    const checkpoint = await openCheckpoint(folder, { cacheDir });
    const whole = languageModel(checkpoint, runtime);
    const layers = cutLayers(llamaCut(llama(checkpoint), checkpoint.config), runtime);
    const middle = localMiddle({ layers, range: { from: k, to: depth - 1 } });
    const model = splitLanguageModel({ checkpoint, runtime, layers, kept: k, middle });
    const own = adapterOf({ ...lora, dropout: 0, layers: [k - 1, depth - 1] }, checkpoint);
    const expected = await whole.gradients(batches.plain!, own);
    expectNear((await model.gradients(batches.plain!, own)).gradients, expected.gradients, 2e-6);
    await model.release();
    await whole.release();
    await layers.release();
  });

  test.each(cuts)('k = %i: equal gradients when the forward pass is computed again', async (k) => {
    const options = { microBatch: 2, dropoutSeed: [1, 'dropout', k] as const };
    const kept = split(k, 'all-layers');
    const again = split(k, 'all-layers', 'recomputed');
    const expected = await kept.model.gradients(batches.prefixed!, kept.own, options);
    const found = await again.model.gradients(batches.prefixed!, again.own, options);
    expectNear(found.gradients, expected.gradients, 1e-6);
  });
});
