// What must hold for an encoder: it equals PyTorch, cut anywhere it computes the same, both forms of its attention agree,
// neither padding nor the batch changes a vector, an adapter is what it is as a change of the weights.
import { cpSync } from 'node:fs';
import { join } from 'node:path';
import {
  type Float32Tensor,
  float32,
  input,
  int64,
  type NamedTensors,
  nodeRuntime,
  type Outputs,
  partialGradients,
  random,
  type Tensor,
  times,
  type Value,
} from '@fellrec/graph';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { chunks } from '../src/batch.ts';
import { readSafetensors, readTensor, writeSafetensors } from '../src/checkpoint/safetensors.ts';
import { runLayers } from '../src/layered-model.ts';
import { encoderProjections, freshAdapter, type LoraConfig, loraName } from '../src/lora.ts';
import { attentionForm, encoderBatch, type ItemSequence } from '../src/recformer/batch.ts';
import { openRecformer, type RecformerCheckpoint } from '../src/recformer/checkpoint.ts';
import { adaptedEncoderProjections } from '../src/recformer/config.ts';
import type { ContrastOptions, LabelledSequence } from '../src/recformer/contrast.ts';
import { recformer } from '../src/recformer/layers.ts';
import {
  type EncoderParameters,
  encoderModel,
  unitRows,
  type WholeEncoderModel,
} from '../src/recformer/model.ts';
import { contrastiveLoss, type Encoder, pooled, sequenceGraph } from '../src/recformer/programs.ts';
import { verifyFixture } from '../src/verify-fixture.ts';
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
  readonly loss: number;
  readonly zero_gradient: readonly string[];
  readonly cancelling_gradient: readonly string[];
}

const folder = temporaryFolder();
const cacheDir = join(folder, 'cache');
const directory = fixture('recformer-tiny');
const cases: Cases = readJson(join(directory, 'cases.json'));
const forms = ['dense', 'blocks'] as const;
const runtime = nodeRuntime();

const histories = cases.built.map(
  (built): ItemSequence => ({
    ids: built.input_ids,
    tokenTypes: built.token_type_ids,
    itemPositions: built.item_position_ids,
  }),
);
const batch = histories.map((sequence, b): LabelledSequence => ({ sequence, label: cases.labels[b]! }));
let checkpoint: RecformerCheckpoint;
let expected: ReadonlyMap<string, Tensor>;
/** The checkpoint's tensors, to be trained. */
let all: NamedTensors;
let options: ContrastOptions;
let models: Record<(typeof forms)[number], WholeEncoderModel>;
let model: WholeEncoderModel;
beforeAll(async () => {
  checkpoint = await openRecformer(directory, { cacheDir });
  expected = await readSafetensors(join(directory, 'expected.safetensors'));
  all = new Map(
    await Promise.all(
      [...checkpoint.tensors].map(async ([name, stored]) => [name, await readTensor(stored)] as const),
    ),
  );
  options = {
    items: unitRows(expected.get('items') as Float32Tensor),
    temperature: cases.temperature,
  };
  models = {
    dense: encoderModel(checkpoint, runtime, { form: 'dense' }),
    blocks: encoderModel(checkpoint, runtime, { form: 'blocks' }),
  };
  model = models.dense;
});
afterAll(async () => {
  for (const form of forms) await models[form].release();
});

/** Any sequence of a length that the fixture's position table allows. */
function sequenceOf(length: number, seed: number): ItemSequence {
  const { integer } = random(seed, 'sequence', length);
  const behindFirst = (of: () => number) => Array.from({ length: length - 1 }, of);
  return {
    ids: [0, ...behindFirst(() => 3 + integer(117))],
    tokenTypes: [0, ...behindFirst(() => 1 + integer(2))],
    itemPositions: [0, ...behindFirst(() => 1 + integer(10)).sort((a, b) => a - b)],
  };
}
const anySequences = fc
  .tuple(fc.array(fc.integer({ min: 1, max: 138 }), { minLength: 1, maxLength: 5 }), fc.nat(999))
  .map(([lengths, seed]) => lengths.map((length, i) => sequenceOf(length, seed + i)));

/** Gradients are equal up to a share of each tensor's largest, and to rounding where they cancel. */
function expectGradients(found: NamedTensors, wanted: NamedTensors, share: number): void {
  expect([...found.keys()]).toEqual([...wanted.keys()]);
  for (const [name, { data }] of found) {
    const golden = wanted.get(name)!.data;
    const tolerance = Math.max(share * Math.max(...golden.map(Math.abs)), 1e-7);
    expect(largestDifference(data, golden), name).toBeLessThanOrEqual(tolerance);
  }
}

describe('the golden fixture', () => {
  test('equals PyTorch', async () => {
    const groups = await verifyFixture(directory, cacheDir);
    expect(groups.filter(({ pass }) => !pass)).toEqual([]);
    const ofForm = [
      'embeddings',
      'layers',
      'pooled vectors',
      'item vectors',
      'scores',
      'loss',
      'gradients',
      'gradients that are 0',
      'gradients that cancel',
      'training losses',
      'trained norms',
      'changes of norms',
      'trained values',
      'trained noise',
    ];
    expect(groups.map(({ group }) => group)).toEqual([
      'input construction',
      'batches',
      ...forms.flatMap((form) => ofForm.map((group) => `${group} (${form})`)),
    ]);
  });

  test('with a changed weight is reported', async () => {
    const tampered = join(folder, 'tampered');
    cpSync(directory, tampered, { recursive: true });
    const file = join(tampered, 'model.safetensors');
    const tensors = new Map(
      [...(await readSafetensors(file))].filter(
        (entry): entry is [string, Float32Tensor] => entry[1].dtype === 'float32',
      ),
    );
    const name = 'longformer.encoder.layer.1.attention.self.value_global.weight';
    const { data, dims } = tensors.get(name)!;
    const values = data.slice();
    values[5]! += 0.5;
    await writeSafetensors(file, tensors.set(name, float32(values, dims)));
    const groups = await verifyFixture(tampered, cacheDir);
    const named = (passing: boolean) =>
      groups.filter(({ pass }) => pass === passing).map(({ group }) => group);
    for (const form of forms) {
      expect(named(false)).toEqual(
        expect.arrayContaining(
          ['layers', 'pooled vectors', 'item vectors', 'scores', 'loss', 'gradients'].map(
            (group) => `${group} (${form})`,
          ),
        ),
      );
      expect(named(true)).toContain(`embeddings (${form})`);
    }
    expect(named(true)).toEqual(expect.arrayContaining(['input construction', 'batches']));
  });
});

describe('cut into three programs', () => {
  const layerCount = 3;
  const cuts = forms.flatMap((form) => Array.from({ length: layerCount }, (_, k) => [form, k] as const));

  test.each(cuts)("%s, after %i layers: the whole model's loss and gradients", async (form, k) => {
    const parameters = new Map([...all].map(([name, { dims }]) => [name, input(name, 'float32', dims)]));
    const whole = recformer(checkpoint, parameters);
    const graph = sequenceGraph(checkpoint.config, form);
    const { tokens, context } = graph;
    const rows = times(context.batch, context.time);
    const hidden = input('hidden', 'float32', [rows, checkpoint.config.hiddenSize]);
    const upstream = input('upstream', 'float32', [rows, checkpoint.config.hiddenSize]);
    /** Layers `from` to before `to`, over hidden states from another program. */
    const layers = (from: number, to: number, embed: Encoder['embed'] = () => hidden): Encoder => ({
      ...whole,
      layerCount: to - from,
      embed,
      layer: (index, ...rest) => whole.layer(from + index, ...rest),
    });
    const bottom = runLayers(layers(0, k, whole.embed), tokens, context);
    const middle = runLayers(layers(k, layerCount - 1), tokens, context);
    const loss = contrastiveLoss(pooled(layers(layerCount - 1, layerCount), graph, 'cls'), {
      temperature: cases.temperature,
      candidates: 'all',
    });

    const found = new Map<string, Float32Tensor>();
    const feeds: Record<string, Tensor> = {
      ...encoderBatch(checkpoint.config, histories, form).feeds,
      ...Object.fromEntries(all),
      items: options.items,
      labels: int64(cases.labels, [batch.length]),
      weights: float32(new Float32Array(batch.length).fill(1 / batch.length), [batch.length]),
    };
    const run = async (outputs: Outputs, own: Record<string, Tensor>) => {
      const program = await runtime.compile(outputs);
      const available = Object.entries({ ...feeds, ...own });
      const results = await program.run(
        Object.fromEntries(available.filter(([name]) => program.inputs.has(name))),
      );
      await program.dispose();
      return results as Record<string, Float32Tensor>;
    };
    const forward = async (out: Value, own: Record<string, Tensor>) => (await run({ out }, own)).out!;
    /** The gradients of a program's tensors into `found`; returns that of the hidden states it begins with. */
    const backward = async (
      seeds: Parameters<typeof partialGradients>[0],
      own: Record<string, Tensor>,
    ): Promise<Float32Tensor | undefined> => {
      const wrt = new Map(parameters).set('hidden', hidden);
      const gradients = partialGradients(seeds, [...wrt.values()]);
      const outputs = [...wrt.keys()].flatMap((name, i) =>
        gradients[i] ? [[`gradient.${name}`, gradients[i]] as const] : [],
      );
      const { 'gradient.hidden': down, ...others } = await run(Object.fromEntries(outputs), own);
      for (const [output, gradient] of Object.entries(others)) {
        const name = output.replace('gradient.', '');
        expect(found.has(name), name).toBe(false); // a tensor belongs to one program
        found.set(name, gradient);
      }
      return down;
    };

    const atCut = await forward(bottom, {});
    const hasMiddle = k < layerCount - 1;
    const atTop = hasMiddle ? await forward(middle, { hidden: atCut }) : atCut;
    const { data } = await forward(loss, { hidden: atTop });
    const pulled = (value: Value) => [{ value, gradient: upstream }];
    let down = (await backward(loss, { hidden: atTop }))!;
    if (hasMiddle) down = (await backward(pulled(middle), { hidden: atCut, upstream: down }))!;
    expect(await backward(pulled(bottom), { upstream: down })).toBeUndefined();

    const unsplit = await models[form].gradients(batch, { tensors: all }, options);
    expect(data[0]! / unsplit.loss - 1).toBeCloseTo(0, 6);
    expect(data[0]! - cases.loss).toBeCloseTo(0, 5);
    const complete = new Map(
      [...all].map(([name, { dims, data }]) => [
        name,
        found.get(name) ?? float32(new Float32Array(data.length), dims),
      ]),
    );
    expectGradients(complete, unsplit.gradients, 1e-6);
    // A bias of the global keys shifts all scores alike and is not in the graph.
    const absent = [...all.keys()].filter((name) => !found.has(name) && !name.endsWith('key_global.bias'));
    expect(new Set(absent)).toEqual(new Set(cases.zero_gradient));
    for (const [name, { data }] of found) {
      const golden = expected.get(`grad.${name}`)!.data as Float32Array;
      if (cases.cancelling_gradient.includes(name))
        expect(largestDifference(data, golden), name).toBeLessThan(1e-6);
      else expect(relativeDifference(data, golden), name).toBeLessThan(1e-4);
    }
  });
});

describe('sequences of any lengths', () => {
  test('have the same hidden states by a mask over all pairs and in blocks', async () => {
    await fc.assert(
      fc.asyncProperty(anySequences, async (sequences) => {
        const [dense, blocks] = await Promise.all(
          forms.map((form) => models[form].trace(sequences, undefined, form)),
        );
        const d = checkpoint.config.hiddenSize;
        for (const [name, { data }] of Object.entries(dense!.hidden))
          for (const [b, { ids }] of sequences.entries()) {
            const real = (states: Tensor['data'], time: number) =>
              states.subarray(b * time * d, (b * time + ids.length) * d) as Float32Array;
            const difference = largestDifference(
              real(blocks!.hidden[name]!.data, blocks!.time),
              real(data, dense!.time),
            );
            expect(difference, name).toBeLessThan(1e-5);
          }
      }),
      { numRuns: 20 },
    );
  });

  test.each(forms)('have the gradients by a mask over all pairs that they have: %s', async (form) => {
    const sequences = [1, 4, 5, 8, 9, 137].map(
      (length, i): LabelledSequence => ({ sequence: sequenceOf(length, i), label: i }),
    );
    const found = await models[form].gradients(sequences, { tensors: all }, options);
    const other = await models.dense.gradients(sequences, { tensors: all }, { ...options, microBatch: 1 });
    expect(found.loss / other.loss - 1).toBeCloseTo(0, 5);
    expectGradients(found.gradients, other.gradients, 1e-5);
  });

  test.each(forms)('have the vectors that they have alone: %s', async (form) => {
    await fc.assert(
      fc.asyncProperty(anySequences, async (sequences) => {
        for (const pooling of ['cls', 'avg'] as const) {
          const encode = (some: readonly ItemSequence[]) =>
            models[form].encode(some, undefined, { pooling }).then(({ data }) => [...data]);
          const alone = [];
          for (const sequence of sequences) alone.push(...(await encode([sequence])));
          expect(largestDifference(await encode(sequences), alone)).toBeLessThan(1e-5);
        }
      }),
      { numRuns: 10 },
    );
  });

  test.each([...forms, 'full'] as const)(
    'are the same whatever stands at padded places: %s',
    async (form) => {
      const { config } = checkpoint;
      const graph = sequenceGraph(config, form);
      const encoder = recformer(checkpoint);
      const program = await runtime.compile({
        cls: pooled(encoder, graph, 'cls'),
        avg: pooled(encoder, graph, 'avg'),
      });
      const { feeds, time } = encoderBatch(config, histories, form);
      const { integer } = random(3, 'padding');
      const sizes = { ids: 120, positions: 140, tokenTypes: 4, itemPositions: 11 };
      const changed = Object.entries(sizes).map(([name, size]) => {
        const { data, dims } = feeds[name]!;
        const others = Array.from(data as BigInt64Array, (id, i) =>
          i % time < histories[Math.floor(i / time)]!.ids.length ? Number(id) : integer(size),
        );
        return [name, int64(others, dims)] as const;
      });
      const run = (fed: Record<string, Tensor>) =>
        program.run(Object.fromEntries(Object.entries(fed).filter(([name]) => program.inputs.has(name))));
      const before = await run(feeds);
      const after = await run({ ...feeds, ...Object.fromEntries(changed) });
      await program.dispose();
      for (const name of ['cls', 'avg'] as const)
        expect(largestDifference(after[name].data, before[name].data), name).toBeLessThan(1e-6);
    },
  );

  test('beyond the position table, or without a token, are refused', async () => {
    await expect(model.encode([sequenceOf(139, 1)])).rejects.toThrow(
      'a sequence has 139 tokens, the position table is for 138',
    );
    await expect(model.encode([{ ids: [], tokenTypes: [], itemPositions: [] }])).rejects.toThrow(
      'a sequence has no token',
    );
    expect(await model.encode([])).toEqual(float32([], [0, 32]));
  });
});

describe('windows by layer', () => {
  const sequences = [137, 40, 9].map((length) => sequenceOf(length, 1));
  const states = async (attentionWindows: readonly number[], form: (typeof forms)[number]) => {
    const config = { ...checkpoint.config, attentionWindows };
    const own = encoderModel({ ...checkpoint, config }, runtime);
    const { hidden, time } = await own.trace(sequences, undefined, form);
    await own.release();
    // At real tokens.
    return Object.values(hidden).map(({ data }) =>
      sequences.flatMap(({ ids }, b) => [
        ...(data as Float32Array).subarray(b * time * 32, (b * time + ids.length) * 32),
      ]),
    );
  };

  test.each(forms)('each reads by its own: %s', async (form) => {
    const found = await states([2, 4, 8], form);
    // Up to a layer only the windows before it count.
    for (const [windows, equal] of [
      [[2, 2, 2], 1],
      [[2, 4, 4], 2],
      [[8, 8, 8], 0],
    ] as const) {
      const others = await states(windows, form);
      for (const [i, state] of others.entries())
        if (i <= equal) expect(largestDifference(state, found[i]!), `${windows} ${i}`).toBeLessThan(1e-5);
        else expect(largestDifference(state, found[i]!), `${windows} ${i}`).toBeGreaterThan(1e-3);
    }
  });

  test('are the same in blocks, whichever is widest', async () => {
    for (const windows of [
      [2, 4, 8],
      [8, 2, 4],
      [16, 4, 4],
    ]) {
      const [dense, blocks] = [await states(windows, 'dense'), await states(windows, 'blocks')];
      expect(largestDifference(blocks.flat(), dense.flat()), `${windows}`).toBeLessThan(1e-5);
    }
  });

  test('are computed in blocks only where they are parts of the widest', () => {
    const form = (attentionWindows: readonly number[]) =>
      attentionForm(1000, { ...checkpoint.config, attentionWindows });
    expect([form([4, 8, 16]), form([4, 6, 8]), form([8, 8, 8])]).toEqual(['blocks', 'dense', 'blocks']);
  });
});

test.each(forms)('the vector by "avg" is the mean of the last hidden states: %s', async (form) => {
  const { hidden, time } = await models[form].trace(histories, undefined, form);
  const d = checkpoint.config.hiddenSize;
  const last = hidden['hidden.3']!.data as Float32Array;
  const means = histories.flatMap(({ ids }, b) =>
    Array.from({ length: d }, (_, j) => {
      const column = ids.map((_, t) => last[(b * time + t) * d + j]!);
      return column.reduce((sum, x) => sum + x, 0) / ids.length;
    }),
  );
  const averaging = encoderModel(checkpoint, runtime, { form, pooling: 'avg' });
  expect(largestDifference((await averaging.encode(histories)).data, means)).toBeLessThan(1e-5);
  const { data } = await models[form].encode(histories, undefined, { pooling: 'avg' });
  expect(largestDifference(data, means)).toBeLessThan(1e-5);
  await averaging.release();
});

describe('an adapter of all projections', () => {
  const lora: LoraConfig = { rank: 2, alpha: 6, dropout: 0, targetModules: encoderProjections };
  const scale = lora.alpha / lora.rank;
  let fresh: EncoderParameters;
  let moved: EncoderParameters;
  /** The checkpoint's tensors with W + (alpha / r) B A. */
  let merged: NamedTensors;
  let paths: string[];
  const half = (name: 'A' | 'B', path: string) => moved.tensors.get(loraName(path, name))!;
  beforeAll(() => {
    const shapes = adaptedEncoderProjections(checkpoint.config, lora);
    paths = [...shapes.keys()];
    fresh = { lora, tensors: freshAdapter(shapes, lora, 1) };
    const tensors = new Map(
      [...fresh.tensors].map(([name, { data, dims }]) => {
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
    moved = { lora, tensors };
    merged = new Map(
      [...all].map(([name, tensor]) => {
        const path = name.replace(/\.weight$/, '');
        if (!paths.includes(path)) return [name, tensor];
        const product = matrixProduct(half('B', path), half('A', path));
        return [
          name,
          float32(
            tensor.data.map((w, i) => w + scale * product.data[i]!),
            tensor.dims,
          ),
        ];
      }),
    );
  });

  test('has the seven projections of every layer', () => {
    expect(fresh.tensors.size).toBe(2 * 3 * (6 + 3));
    expect(new Set(paths.map((path) => path.split('.').at(-1)))).toEqual(new Set(encoderProjections));
  });

  test.each(forms)('is silent while B is 0: %s', async (form) => {
    const base = (await models[form].encode(histories)).data;
    expect(largestDifference((await models[form].encode(histories, fresh)).data, base)).toBeLessThan(1e-6);
    expect(largestDifference((await models[form].encode(histories, moved)).data, base)).toBeGreaterThan(0.01);
  });

  test.each(forms)('gives the vectors of the weights with it merged in: %s', async (form) => {
    for (const poolOptions of [{}, { pooling: 'avg' }, { attention: 'full' }] as const) {
      const encode = (parameters: EncoderParameters) =>
        models[form].encode(histories, parameters, poolOptions).then(({ data }) => data);
      expect(largestDifference(await encode(moved), await encode({ tensors: merged }))).toBeLessThan(1e-5);
    }
    const [found, wanted] = [
      await models[form].loss(batch, moved, options),
      await models[form].loss(batch, { tensors: merged }, options),
    ];
    expect(found - wanted).toBeCloseTo(0, 5);
  });

  // dA = s B^T dW, dB = s dW A^T
  test.each(forms)('has the gradients that follow from those of the weights: %s', async (form) => {
    const found = await models[form].gradients(batch, moved, options);
    const { loss, gradients } = await models[form].gradients(batch, { tensors: merged }, options);
    expect(found.loss - loss).toBeCloseTo(0, 5);
    const followed = new Map(
      paths.flatMap((path) => {
        const dW = gradients.get(`${path}.weight`)!;
        return [
          [loraName(path, 'A'), scaled(matrixProduct(transposed(half('B', path)), dW), scale)],
          [loraName(path, 'B'), scaled(matrixProduct(dW, transposed(half('A', path))), scale)],
        ] as const;
      }),
    );
    expectGradients(found.gradients, followed, 2e-5);
    const silent = [...found.gradients].filter(([, { data }]) => norm(data) === 0).map(([name]) => name);
    const ofLast = ['query', 'key', 'value'].map((name) => `encoder.layer.2.attention.self.${name}`);
    expect(silent).toEqual(ofLast.flatMap((path) => [loraName(path, 'A'), loraName(path, 'B')]));
  });

  describe('with dropout', () => {
    let dropping: EncoderParameters;
    beforeAll(() => {
      dropping = { ...moved, lora: { ...lora, dropout: 0.3 } };
    });
    const step = (parameters: EncoderParameters, more: { microBatch?: number; seed?: number } = {}) => {
      const { seed = 1, ...rest } = more;
      return model.gradients(batch, parameters, { ...options, ...rest, dropoutSeed: [seed, 'client'] });
    };

    test('needs a seed, and is named by it', async () => {
      await expect(model.gradients(batch, dropping, options)).rejects.toThrow('pass dropoutSeed');
      const first = await step(dropping);
      expect(await step(dropping)).toEqual(first);
      expect((await step(dropping, { seed: 2 })).loss).not.toBe(first.loss);
      const without = await model.loss(batch, moved, options);
      expect(await model.loss(batch, dropping, options)).toBe(without);
      expect(Math.abs(first.loss - without)).toBeGreaterThan(1e-3);
    });

    test('drops elsewhere in every sequence', async () => {
      const losses = [1, 2].map((copies) => {
        const same = Array.from({ length: copies }, () => batch[3]!);
        return model.gradients(same, dropping, { ...options, dropoutSeed: [1] }).then(({ loss }) => loss);
      });
      const [once, twice] = await Promise.all(losses);
      expect(Math.abs(once! - twice!)).toBeGreaterThan(1e-3);
    });

    test.each(forms)('drops the same whatever the micro-batches: %s', async (form) => {
      const whole = await step(dropping);
      for (const microBatch of [1, 2, 3]) {
        const parts = await models[form].gradients(batch, dropping, {
          ...options,
          microBatch,
          dropoutSeed: [1, 'client'],
        });
        expect(parts.loss / whole.loss - 1).toBeCloseTo(0, 5);
        expectGradients(parts.gradients, whole.gradients, 2e-5);
      }
    });

    test('has gradients that are slopes of its loss', async () => {
      const { gradients } = await step(dropping);
      const by = 3e-3;
      for (const [name, { data, dims }] of gradients) {
        const length = norm(data);
        if (length === 0) continue;
        const lossAt = async (distance: number) => {
          const at = dropping.tensors.get(name)!.data.map((p, i) => p + (distance * data[i]!) / length);
          const tensors = new Map(dropping.tensors).set(name, float32(at, dims));
          return (await step({ ...dropping, tensors })).loss;
        };
        const slope = ((await lossAt(by)) - (await lossAt(-by))) / (2 * by);
        expect(Math.abs(slope - length), name).toBeLessThan(0.02 * length + 2e-3);
      }
    });
  });
});

describe('the contrast', () => {
  const count = 12;
  const everyItem = Array.from({ length: count }, (_, i) => i);
  const step = (some: readonly LabelledSequence[], more: Partial<ContrastOptions> = {}) =>
    model.gradients(some, { tensors: all }, { ...options, ...more });

  test('with all items as candidates, in any order, is that with all', async () => {
    const { loss, gradients } = await step(batch);
    for (const candidates of [everyItem, random(1, 'order').shuffle(everyItem)]) {
      const listed = batch.map((each) => ({ ...each, candidates }));
      const found = await step(listed);
      expect(found.loss / loss - 1).toBeCloseTo(0, 6);
      expectGradients(found.gradients, gradients, 2e-6);
      expect((await model.loss(listed, undefined, options)) / loss - 1).toBeCloseTo(0, 6);
    }
  });

  test('with candidates is that with a table of them', async () => {
    const d = checkpoint.config.hiddenSize;
    const sets = batch.map(({ label }, b) => [(label + 1 + b) % count, label, (label + 7) % count]);
    const listed = batch.map((each, b) => ({ ...each, candidates: sets[b]! }));
    const found = await step(listed);
    let loss = 0;
    const sums = new Map([...all].map(([name, { data }]) => [name, new Float64Array(data.length)]));
    for (const [b, each] of batch.entries()) {
      const table = sets[b]!.flatMap((item) => [...options.items.data.subarray(item * d, (item + 1) * d)]);
      const alone = await step([{ ...each, label: 1 }], { items: float32(table, [3, d]) });
      loss += alone.loss / batch.length;
      for (const [name, { data }] of alone.gradients)
        data.forEach((g, i) => {
          sums.get(name)![i]! += g / batch.length;
        });
    }
    expect(found.loss / loss - 1).toBeCloseTo(0, 5);
    const wanted = new Map(
      [...sums].map(([name, sum]) => [name, float32(Float32Array.from(sum), all.get(name)!.dims)]),
    );
    expectGradients(found.gradients, wanted, 1e-5);
  });

  test.each([
    ['all', undefined],
    ['candidates', 4],
  ] as const)('of micro-batches adds up to that of the batch: %s', async (_, size) => {
    const some = size
      ? batch.map((each) => ({
          ...each,
          candidates: Array.from({ length: size }, (_, i) => (each.label + i) % count),
        }))
      : batch;
    const whole = await step(some);
    const lengths = histories.map(({ ids }) => ids.length).sort((a, b) => a - b);
    const real = lengths.reduce((n, length) => n + length, 0);
    for (const microBatch of [1, 2, batch.length]) {
      const parts = await step(some, { microBatch });
      expect(parts.loss / whole.loss - 1).toBeCloseTo(0, 6);
      expectGradients(parts.gradients, whole.gradients, 5e-6);
      // Sorted by length, each part as long as its longest.
      const computed = chunks(lengths, microBatch).reduce((n, part) => n + part.length * part.at(-1)!, 0);
      expect(parts.tokens).toEqual({ real, computed, padding: computed - real });
      const loss = await model.loss(some, undefined, { ...options, microBatch });
      expect(loss / whole.loss - 1).toBeCloseTo(0, 6);
    }
  });

  test('of nothing, without the label, or of different sizes is refused', async () => {
    const [first, second] = batch as [LabelledSequence, LabelledSequence];
    await expect(step([])).rejects.toThrow('the batch has no sequence');
    await expect(model.loss([], undefined, options)).rejects.toThrow('the batch has no sequence');
    await expect(step([{ ...first, candidates: [1, 2] }])).rejects.toThrow(
      'item 0 is the label, but none of the candidates',
    );
    await expect(
      step([
        { ...first, candidates: [0, 1] },
        { ...second, candidates: [6, 1, 2] },
      ]),
    ).rejects.toThrow('different numbers of candidates');
    await expect(step([{ ...first, candidates: [0, 1] }, second])).rejects.toThrow(
      'different numbers of candidates',
    );
    for (const wrong of [-1, 12, 0.5])
      await expect(step([{ ...first, label: wrong }])).rejects.toThrow(`no item ${wrong} among 12`);
    await expect(step([{ ...first, candidates: [0, 99] }])).rejects.toThrow('no item 99 among 12');
  });
});

test('released programs are compiled again when needed', async () => {
  const own = encoderModel(checkpoint, runtime);
  const before = await own.loss(batch, undefined, options);
  await own.release();
  expect(await own.loss(batch, undefined, options)).toBe(before);
  await own.release();
});

/** A B in float64, rounded at its end. */
function matrixProduct(a: Float32Tensor, b: Float32Tensor): Float32Tensor {
  const [n, inner] = a.dims as [number, number];
  const m = b.dims[1]!;
  const data = Float32Array.from({ length: n * m }, (_, at) => {
    const [i, j] = [Math.floor(at / m), at % m];
    let sum = 0;
    for (let k = 0; k < inner; k++) sum += a.data[i * inner + k]! * b.data[k * m + j]!;
    return sum;
  });
  return float32(data, [n, m]);
}

function transposed({ data, dims }: Float32Tensor): Float32Tensor {
  const [n, m] = dims as [number, number];
  return float32(
    Float32Array.from(data, (_, at) => data[(at % n) * m + Math.floor(at / n)]!),
    [m, n],
  );
}

function scaled({ data, dims }: Float32Tensor, factor: number): Float32Tensor {
  return float32(
    data.map((x) => factor * x),
    dims,
  );
}
