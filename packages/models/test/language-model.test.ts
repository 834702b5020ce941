// What must hold for every model and adapter: batches change nothing, micro-batches add up, a fresh adapter is silent,
// gradients are slopes of the loss, dropout is reproducible.
import { float32, input, type NamedTensors, nodeRuntime, random } from '@fellrec/graph';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { dropoutFeeds, ignoredLabel, labelCount, type Sequence, sharedPrefix } from '../src/batch.ts';
import { openCheckpoint } from '../src/checkpoint/checkpoint.ts';
import {
  type Adapter,
  languageModel,
  type StepResult,
  type WholeLanguageModel,
} from '../src/language-model.ts';
import { initialAdapter, type LoraConfig, loraName, projections } from '../src/lora.ts';
import { largestDifference, norm, relativeDifference } from './numbers.ts';
import { fixture, temporaryFolder } from './shared.ts';

const cacheDir = temporaryFolder();
let model: WholeLanguageModel;
beforeAll(async () => {
  model = languageModel(await openCheckpoint(fixture('llama-gqa-tied'), { cacheDir }), nodeRuntime());
});
afterAll(() => model.release());

const draw = random(7, 'sequences');
const tokens = (length: number) => [1, ...Array.from({ length: length - 1 }, () => 3 + draw.integer(98))];
/** Labelled from place `from`. */
const sequence = (ids: readonly number[], from = 0): Sequence => ({
  ids,
  labels: ids.map((id, t) => (t < from ? ignoredLabel : id)),
});
// 16 and 17 lie on both sides of a step of the padded length.
const prompts = [3, 17, 30, 16].map(tokens);
const batch = prompts.map((ids, i) => sequence(ids, i));

/** An adapter that is not at its start: all halves random. */
function adapterOf(config: LoraConfig, seed = 3): Adapter {
  const tensors: NamedTensors = new Map(
    [...initialAdapter(model.checkpoint.config, config, seed)].map(([name, { dims, data }]) => {
      const { normal } = random(seed, 'perturb', name);
      return [
        name,
        float32(
          Float32Array.from(data, () => 0.2 * normal()),
          dims,
        ),
      ];
    }),
  );
  return { config, tensors };
}
const plain: LoraConfig = { rank: 3, alpha: 6, dropout: 0, targetModules: ['q_proj', 'v_proj'] };
const all: LoraConfig = { ...plain, targetModules: projections };

describe('sequences of different lengths in one batch', () => {
  test('have the vectors that they have alone', async () => {
    const adapter = adapterOf(plain);
    const together = await model.vectors(prompts, adapter);
    const alone = await Promise.all(prompts.map((ids) => model.vectors([ids], adapter)));
    expect(together.dims).toEqual([4, 32]);
    expect(
      largestDifference(
        together.data,
        alone.flatMap(({ data }) => [...data]),
      ),
    ).toBeLessThan(1e-5);
  });

  test('have the logits that they have alone', async () => {
    const together = (await model.trace(prompts.map((ids) => ({ ids })))).logits!;
    const time = together.dims[0]! / prompts.length;
    for (const [i, ids] of prompts.entries()) {
      const alone = (await model.trace([{ ids }])).logits!.data as Float32Array;
      const rows = (together.data as Float32Array).subarray(i * time * 101, (i * time + ids.length) * 101);
      expect(largestDifference(rows, alone.subarray(0, rows.length))).toBeLessThan(1e-5);
    }
  });

  test('have the loss that they have alone, weighted by their labels', async () => {
    let sum = 0;
    for (const each of batch) sum += (await model.loss([each])) * labelCount([each]);
    const mean = sum / labelCount(batch);
    expect(Math.abs((await model.loss(batch)) - mean)).toBeLessThan(1e-5);
    expect(Math.abs((await model.loss(batch, undefined, 3)) - mean)).toBeLessThan(1e-5);
  });

  test.each([1, 3])('have the continuations that they have alone: %i beams', async (beams) => {
    const options = { beams, maxNewTokens: 12, eosIds: [2] };
    const adapter = adapterOf(plain);
    const together = await model.generate(prompts, options, adapter);
    for (const [i, ids] of prompts.entries()) {
      const [alone] = await model.generate([ids], options, adapter);
      expect(together[i]!.map(({ ids }) => ids)).toEqual(alone!.map(({ ids }) => ids));
      const scores = together[i]!.map(({ score }) => score);
      expect(
        largestDifference(
          scores,
          alone!.map(({ score }) => score),
        ),
      ).toBeLessThan(1e-5);
    }
  });
});

test('a continuation is scored by the loss of its tokens', async () => {
  const prompt = prompts[1]!;
  const [found] = await model.generate([prompt], { beams: 4, maxNewTokens: 6, eosIds: [2] });
  expect(found).toHaveLength(4);
  for (const { ids, score } of found!) {
    const loss = await model.loss([sequence([...prompt, ...ids], prompt.length)]);
    expect(Math.abs(score + loss)).toBeLessThan(1e-5);
  }
  expect(found!.map(({ score }) => score)).toEqual(found!.map(({ score }) => score).sort((a, b) => b - a));
});

describe('gradients', () => {
  test('of micro-batches add up to those of the batch', async () => {
    const adapter = adapterOf(plain);
    // A micro-batch without a label adds nothing.
    const withSilent = [...batch.slice(0, 2), sequence(tokens(9), 9), ...batch.slice(2)];
    const whole = await model.gradients(withSilent, adapter);
    for (const microBatch of [1, 2, 4]) {
      const parts = await model.gradients(withSilent, adapter, { microBatch });
      expect(Math.abs(parts.loss - whole.loss)).toBeLessThan(1e-5);
      expect([...parts.gradients.keys()]).toEqual([...whole.gradients.keys()]);
      for (const [name, { data }] of parts.gradients)
        expect(relativeDifference(data, whole.gradients.get(name)!.data), name).toBeLessThan(1e-5);
    }
    expect(Math.abs(whole.loss - (await model.loss(withSilent, adapter)))).toBeLessThan(1e-5);
    expect(whole.tokens).toEqual({ real: 75, computed: 5 * 32, padding: 5 * 32 - 75 });
  });

  test('are slopes of the loss, for each of the seven projections', async () => {
    const adapter = adapterOf(all);
    const { gradients } = await model.gradients(batch, adapter);
    expect([...gradients.keys()]).toEqual([...adapter.tensors.keys()]);
    expect(gradients.size).toBe(7 * 4 * 2);
    const step = 1e-2;
    for (const [name, { data, dims }] of gradients) {
      const parameter = adapter.tensors.get(name)!;
      const { normal } = random(5, name);
      const gradient = norm(data);
      const drawn = Float32Array.from(data, normal);
      const length = norm(drawn);
      // Half along the gradient, half anywhere.
      const direction = Float32Array.from(data, (g, i) => g / gradient + drawn[i]! / length);
      const lossAt = async (by: number) => {
        const moved = Float32Array.from(parameter.data, (p, i) => p + by * direction[i]!);
        const tensors = new Map(adapter.tensors).set(name, float32(moved, dims));
        return model.loss(batch, { ...adapter, tensors });
      };
      const slope = ((await lossAt(step)) - (await lossAt(-step))) / (2 * step);
      const expected = data.reduce((sum, g, i) => sum + g * direction[i]!, 0);
      expect(Math.abs(slope / expected - 1), `${name}: ${slope}, ${expected}`).toBeLessThan(2e-2);
    }
  });

  test('need a label', async () => {
    const silent = [sequence(tokens(5), 5)];
    await expect(model.gradients(silent, adapterOf(plain))).rejects.toThrow(
      'no token of the batch is labelled',
    );
    await expect(model.loss(silent)).rejects.toThrow('no token is labelled');
    // The first token has nothing before it.
    await expect(model.loss([{ ids: [1, 2], labels: [1, ignoredLabel] }])).rejects.toThrow('no token');
  });
});

describe('refused', () => {
  test.each([-1, 101, 1.5])('a token %d that the model does not know', async (id) => {
    const message = `there is no token ${id}, the model has 101; is this its tokenizer?`;
    await expect(model.vectors([[1, id]])).rejects.toThrow(message);
    await expect(model.generate([[1, id]], { beams: 1, maxNewTokens: 2, eosIds: [2] })).rejects.toThrow(
      message,
    );
    await expect(model.loss([sequence([1, id])])).rejects.toThrow(message);
    const labelled = [{ ids: [1, 2], labels: [ignoredLabel, id] }];
    await expect(model.loss(labelled)).rejects.toThrow(`there is no label ${id}, the model has 101`);
  });

  test('labels of no token', async () => {
    await expect(model.loss([{ ids: [1, 2], labels: [1, 2, 3] }])).rejects.toThrow('3 labels for 2 tokens');
  });

  test.each(['beams', 'maxNewTokens'])('generation with too few %s', async (name) => {
    for (const wrong of [0, 1.5, Number.NaN]) {
      const options = { beams: 2, maxNewTokens: 2, eosIds: [], [name]: wrong };
      await expect(model.generate([[1]], options)).rejects.toThrow(
        `${name} is ${wrong}; it must be a whole number from 1`,
      );
    }
  });
});

test('no prompt is too many', () => {
  expect(sharedPrefix(new Array(500_000).fill({ ids: [1, 2, 3] }))).toBe(2);
});

test('a fresh adapter changes nothing, another one does', async () => {
  const sequences = prompts.map((ids) => ({ ids }));
  const base = (await model.trace(sequences)).logits!.data;
  const fresh = { config: all, tensors: initialAdapter(model.checkpoint.config, all, 1) };
  expect(largestDifference((await model.trace(sequences, fresh)).logits!.data, base)).toBe(0);
  const moved = adapterOf(all);
  expect(largestDifference((await model.trace(sequences, moved)).logits!.data, base)).toBeGreaterThan(0.01);
});

test('a fresh adapter is drawn from its seed: A within its bound, B zero', () => {
  const { config } = model.checkpoint;
  const one = initialAdapter(config, all, 1);
  expect(initialAdapter(config, all, 1)).toEqual(one);
  for (const [name, { data, dims }] of one) {
    if (name.endsWith('lora_B.weight')) expect(norm(data)).toBe(0);
    else {
      const bound = 1 / Math.sqrt(dims[1]!);
      const largest = Math.max(...data.map(Math.abs));
      expect(largest).toBeLessThanOrEqual(bound);
      expect(largest).toBeGreaterThan(0.9 * bound);
      expect(initialAdapter(config, all, 2).get(name)!.data).not.toEqual(data);
    }
  }
  const [down] = [...one.keys()].filter((name) => name.includes('layers.2.mlp.down_proj'));
  expect(down).toBe(loraName('layers.2.mlp.down_proj', 'A'));
  expect(one.get(down!)!.dims).toEqual([3, 72]);
});

describe('dropout', () => {
  const dropping: LoraConfig = { ...plain, dropout: 0.5 };

  test('is named by its seed', async () => {
    const adapter = adapterOf(dropping);
    const run = (...dropoutSeed: [number, ...(string | number)[]]) =>
      model.gradients(batch, adapter, { dropoutSeed });
    const first = await run(1, 'client', 2);
    expect((await run(1, 'client', 2)).gradients).toEqual(first.gradients);
    expect((await run(1, 'client', 3)).loss).not.toBe(first.loss);
    expect((await run(2, 'client', 2)).loss).not.toBe(first.loss);
    await expect(model.gradients(batch, adapter)).rejects.toThrow('pass dropoutSeed');
  });

  test('is absent outside training', async () => {
    const without = await model.loss(batch, adapterOf(plain));
    expect(await model.loss(batch, adapterOf(dropping))).toBe(without);
    const { loss } = await model.gradients(batch, adapterOf(dropping), { dropoutSeed: [1] });
    expect(Math.abs(loss - without)).toBeGreaterThan(1e-3);
  });

  test('drops at its rate, elsewhere in every mask', () => {
    const masks = new Map(
      ['dropout.a', 'dropout.b'].map((name) => [name, input(name, 'bool', ['batch*time', 64])]),
    ).set('dropout.last', input('dropout.last', 'bool', ['labels', 64]));
    for (const rate of [0.05, 0.5]) {
      const rows = [0, 1].map((stream) => ({ stream, tokens: 500, stride: 500, labels: 150 }));
      const feeds = dropoutFeeds(masks, rate, rows, [1, 'x']);
      expect(feeds['dropout.last']!.dims).toEqual([300, 64]);
      expect(feeds['dropout.a']!.dims).toEqual([1000, 64]);
      expect(feeds['dropout.a']!.data).not.toEqual(feeds['dropout.b']!.data);
      for (const { data } of Object.values(feeds)) {
        const kept = Array.from(data as Uint8Array);
        const dropped = kept.filter((x) => x === 0).length / kept.length;
        // Five standard deviations.
        expect(Math.abs(dropped - rate)).toBeLessThan(5 * Math.sqrt((rate * (1 - rate)) / kept.length));
        // Independent: two neighbours are dropped together at rate^2.
        const pairs = kept.filter((x, i) => x === 0 && kept[i + 1] === 0).length / kept.length;
        expect(Math.abs(pairs - rate ** 2)).toBeLessThan(5 * Math.sqrt(rate ** 2 / kept.length) + 1e-4);
      }
    }
  });
});

describe('a prefix that all sequences share', () => {
  const common = tokens(13);
  const behind = [4, 18, 2, 9, 25].map((length) => [...common, ...tokens(length + 1).slice(1)]);
  const sharing = behind.map((ids) => sequence(ids, 14));
  /** Every sequence in a batch of its own, where nothing is shared. */
  const alone = async (compute: (part: Sequence[]) => Promise<StepResult>) => {
    const total = labelCount(sharing);
    const parts = await Promise.all(
      sharing.map(async (each) => [labelCount([each]), await compute([each])] as const),
    );
    return parts.map(([labels, part]) => ({ weight: labels / total, ...part }));
  };

  test('ends where they differ, before what predicts a label, and leaves each a token', () => {
    expect(sharedPrefix(sharing)).toBe(13);
    expect(sharedPrefix(behind.map((ids) => sequence(ids, 9)))).toBe(8);
    expect(sharedPrefix(behind.map((ids) => sequence(ids)))).toBe(0);
    expect(sharedPrefix([common, common].map((ids) => ({ ids })))).toBe(12);
    expect(sharedPrefix([{ ids: common }])).toBe(0);
    expect(sharedPrefix([])).toBe(0);
    const padded = { ids: common, attention: common.map(() => 1) };
    expect(sharedPrefix([padded, padded])).toBe(0);
  });

  test.each([plain, all])('changes neither loss nor gradients: $targetModules', async (config) => {
    const adapter = adapterOf(config);
    for (const microBatch of [1, 2, 5]) {
      const found = await model.gradients(sharing, adapter, { microBatch });
      const real = 5 * 13 + 58;
      const own = { 1: 8 + 24 + 8 + 16 + 32, 2: 2 * 8 + 2 * 24 + 32, 5: 5 * 32 }[microBatch]!;
      expect(found.tokens).toEqual({ real, computed: 13 + own, padding: own - 58 });
      const parts = await alone((part) => model.gradients(part, adapter));
      const loss = parts.reduce((sum, part) => sum + part.weight * part.loss, 0);
      expect(Math.abs(found.loss / loss - 1)).toBeLessThan(1e-6);
      expect(Math.abs((await model.loss(sharing, adapter)) / loss - 1)).toBeLessThan(1e-6);
      for (const [name, { data }] of found.gradients) {
        const sum = Float64Array.from(data, (_, i) =>
          parts.reduce((n, { weight, gradients }) => n + weight * gradients.get(name)!.data[i]!, 0),
        );
        expect(relativeDifference(data, sum), name).toBeLessThan(2e-6);
      }
    }
  });

  test.each([1, 3])('changes no continuation: %i beams', async (beams) => {
    const adapter = adapterOf(all);
    const options = { beams, maxNewTokens: 8, eosIds: [2] };
    const together = await model.generate(behind, { ...options, batch: 2 }, adapter);
    for (const [i, ids] of behind.entries()) {
      const [own] = await model.generate([ids], options, adapter);
      expect(together[i]!.map(({ ids }) => ids)).toEqual(own!.map(({ ids }) => ids));
    }
  });

  test('that the adapter has no part in needs no gradient', async () => {
    const { checkpoint } = model;
    const shallow = languageModel(
      { ...checkpoint, config: { ...checkpoint.config, layerCount: 1 } },
      nodeRuntime(),
    );
    const config: LoraConfig = { ...plain, targetModules: ['q_proj'] };
    const tensors = new Map([...adapterOf(config).tensors].filter(([name]) => name.includes('layers.0.')));
    const found = await shallow.gradients(sharing, { config, tensors }, { microBatch: 1 });
    expect(found.tokens.computed).toBeLessThan(found.tokens.real);
    for (const { data } of found.gradients.values()) expect(norm(data)).toBeGreaterThan(0);
    await shallow.release();
  });

  test('drops the same whatever the micro-batches', async () => {
    const adapter = adapterOf({ ...all, dropout: 0.3 });
    const [one, two] = await Promise.all(
      [1, 3].map((microBatch) => model.gradients(sharing, adapter, { microBatch, dropoutSeed: [1] })),
    );
    expect(Math.abs(one!.loss / two!.loss - 1)).toBeLessThan(1e-6);
    for (const [name, { data }] of one!.gradients)
      expect(relativeDifference(data, two!.gradients.get(name)!.data), name).toBeLessThan(1e-5);
  });
});

test('released programs are compiled again when needed', async () => {
  const before = await model.loss(batch);
  await model.release('loss');
  expect(await model.loss(batch)).toBe(before);
  await model.release();
  expect(await model.loss(batch)).toBe(before);
});
