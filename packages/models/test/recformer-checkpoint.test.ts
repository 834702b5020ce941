// A RecFormer on disk and the encoders that one starts from: names, tables, what is refused, and MiniLM against
// transformers.
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { type Float32Tensor, float32, nodeRuntime, random } from '@fellrec/graph';
import { beforeAll, describe, expect, test } from 'vitest';
import { readSafetensors, readTensor } from '../src/checkpoint/safetensors.ts';
import { openRecformer, type RecformerCheckpoint } from '../src/recformer/checkpoint.ts';
import { parseEncoderConfig, recformerConfigJson, recformerTensors } from '../src/recformer/config.ts';
import { type EncodeOptions, encoderModel } from '../src/recformer/model.ts';
import { sentenceVectors } from '../src/recformer/sentences.ts';
import { loadTokenizer } from '../src/tokenizer.ts';
import { bytesOf, type Entry, f16, f32, safetensors, writeFolder } from './checkpoint-files.ts';
import { largestDifference } from './numbers.ts';
import { fixture, readJson, sharedModel, temporaryFolder } from './shared.ts';

const folder = temporaryFolder();
const cacheDir = join(folder, 'cache');
const opened = (name: string, files: Parameters<typeof writeFolder>[1]) =>
  openRecformer(writeFolder(join(folder, name), files), { cacheDir });

const source = fixture('recformer-tiny');
const config = readJson<Record<string, unknown>>(join(source, 'config.json'));
const positionIds: Entry = { dtype: 'I64', shape: [1, 140], bytes: bytesOf(new BigInt64Array(140)) };
/** The fixture's encoder by names without prefix. */
let tensors: Map<string, Float32Tensor>;
beforeAll(async () => {
  tensors = new Map(
    [...(await readSafetensors(join(source, 'model.safetensors')))].flatMap(([name, tensor]) =>
      name.startsWith('longformer.') && tensor.dtype === 'float32'
        ? [[name.replace('longformer.', ''), tensor] as const]
        : [],
    ),
  );
});

const entriesOf = (
  named: ReadonlyMap<string, Float32Tensor>,
  prefix = '',
  encode: (tensor: Float32Tensor) => Entry = f32,
): Record<string, Entry> =>
  Object.fromEntries([...named].map(([name, tensor]) => [`${prefix}${name}`, encode(tensor)]));

/** A sequence without types and items, as a plain encoder reads it. */
const plain = (ids: readonly number[]) => ({
  ids,
  tokenTypes: ids.map(() => 0),
  itemPositions: ids.map(() => 0),
});

async function vectors(
  checkpoint: RecformerCheckpoint,
  ids: readonly (readonly number[])[],
  options?: EncodeOptions,
) {
  const model = encoderModel(checkpoint, nodeRuntime());
  const { data } = await model.encode(ids.map(plain), undefined, options);
  await model.release();
  return data;
}

const valuesOf = (checkpoint: RecformerCheckpoint, name: string) =>
  readTensor(checkpoint.tensors.get(name)!).then(({ data }) => data);

describe('a RecFormer', () => {
  test.each(['', 'longformer.', 'module.', 'module.longformer.'])('under the prefix "%s"', async (prefix) => {
    const found = await opened(`prefix-${prefix}`, {
      'config.json': config,
      'model.safetensors': safetensors({
        [`${prefix}embeddings.position_ids`]: positionIds,
        ...entriesOf(tensors, prefix),
        'lm_head.bias': f32(float32([1], [1])),
        item_embedding: f32(float32([1, 2], [2])),
      }),
    });
    const unprefixed = await openRecformer(source, { cacheDir });
    expect(found.hash).toBe(unprefixed.hash);
    expect(found.family).toBe('recformer');
    expect(new Set(found.tensors.keys())).toEqual(new Set(tensors.keys()));
    expect(new Set(found.unused)).toEqual(
      new Set([`${prefix}embeddings.position_ids`, 'lm_head.bias', 'item_embedding']),
    );
    const name = 'encoder.layer.1.output.dense.weight';
    expect(await valuesOf(found, name)).toEqual(tensors.get(name)!.data);
  });

  test('of half precision encodes nearly as of float32', async () => {
    const half = await opened('half', {
      'config.json': config,
      'model.safetensors': safetensors(entriesOf(tensors, '', f16)),
    });
    const ids = [[0, 5, 17, 90, 33]];
    const difference = largestDifference(
      await vectors(half, ids),
      await vectors(await openRecformer(source, { cacheDir }), ids),
    );
    expect(difference).toBeGreaterThan(0);
    expect(difference).toBeLessThan(2e-2);
  });

  test('is named by its weights and configuration', async () => {
    const { hash } = await openRecformer(source, { cacheDir });
    const files = { 'config.json': config, 'model.safetensors': safetensors(entriesOf(tensors)) };
    expect(
      (await opened('other-config', { ...files, 'config.json': { ...config, pooler_type: 'avg' } })).hash,
    ).not.toBe(hash);
    const name = 'embeddings.LayerNorm.bias';
    const { data, dims } = tensors.get(name)!;
    const moved = new Map(tensors).set(
      name,
      float32(
        data.map((x) => x + 1),
        dims,
      ),
    );
    const other = { ...files, 'model.safetensors': safetensors(entriesOf(moved)) };
    expect((await opened('other-weights', other)).hash).not.toBe(hash);
  });
});

describe('refused', () => {
  test('all tensors that are missing or have another shape than config.json says, at once', async () => {
    const fewer = new Map(tensors);
    fewer.delete('embeddings.LayerNorm.bias');
    fewer.delete('encoder.layer.2.attention.self.key_global.weight');
    const opening = opened('mismatch', {
      'config.json': { ...config, intermediate_size: 50 },
      'model.safetensors': safetensors(entriesOf(fewer)),
    });
    const found = await opening.catch((error: Error) => error.message.split('\n  '));
    expect((found as string[])[0]).toContain('is this the right config.json?');
    expect(found).toHaveLength(1 + 2 + 3 * 3);
    expect(found).toContain('"embeddings.LayerNorm.bias" is missing, config says [32]');
    expect(found).toContain(
      '"encoder.layer.2.attention.self.key_global.weight" is missing, config says [32,32]',
    );
    expect(found).toContain('"encoder.layer.0.output.dense.weight" is [32,64], config says [32,50]');
  });

  test('a folder with PyTorch weights only, with the command that converts them', async () => {
    const opening = opened('pickled', { 'config.json': config, 'recformer_ckpt.bin': new Uint8Array(1) });
    const message = await opening.catch((error: Error) => error.message);
    const path = join(folder, 'pickled');
    expect(message).toContain('holds PyTorch weights; convert them: python -c "import sys, torch');
    expect(message).toContain(`" '${join(path, 'recformer_ckpt.bin')}' '${join(path, 'model.safetensors')}'`);
    expect(message).not.toContain('\n');
  });

  test('what else training leaves in a folder is not to be converted, and paths are quoted', async () => {
    const files = {
      'config.json': config,
      'optimizer.pt': new Uint8Array(1),
      'weights.bin': new Uint8Array(1),
    };
    await expect(opened("kid's", files)).rejects.toThrow(`${folder}/kid'\\''s/weights.bin'`);
  });

  test('two tensors of one name', async () => {
    const twice = new Map(tensors);
    twice.set('longformer.embeddings.LayerNorm.bias', tensors.get('embeddings.LayerNorm.bias')!);
    const files = { 'config.json': config, 'model.safetensors': safetensors(entriesOf(twice)) };
    await expect(opened('twice', files)).rejects.toThrow(/both "embeddings.LayerNorm.bias" and "longformer/);
  });

  test('what is no folder of an encoder', async () => {
    await expect(opened('empty', { 'config.json': config })).rejects.toThrow('holds no model.safetensors');
    await expect(openRecformer(join(folder, 'nowhere'), { cacheDir })).rejects.toThrow('does not exist');
    await expect(opened('bare', { 'model.safetensors': safetensors(entriesOf(tensors)) })).rejects.toThrow(
      'config.json does not exist',
    );
  });
});

describe('config.json', () => {
  const parse = (change: Record<string, unknown>) =>
    parseEncoderConfig({ ...config, ...change }, 'config.json');
  test.each([
    [{ model_type: 'llama' }, 'unsupported architecture "llama"'],
    [{ hidden_act: 'relu' }, 'hidden_act "relu" (supported: gelu)'],
    [{ position_embedding_type: 'relative_key' }, 'position_embedding_type "relative_key"'],
    [{ attention_window: [8, 8] }, '2 attention_windows for 3 layers'],
    [{ attention_window: 7 }, 'an odd attention_window (7, 7, 7)'],
    [{ attention_window: [8, 8, 3] }, 'an odd attention_window (8, 8, 3)'],
    [{ num_attention_heads: 5 }, '5 heads that do not divide 32'],
    [{ token_type_size: 3 }, 'a token_type_size of 3 (supported: 4)'],
    [{ pooler_type: 'max' }, '→ at pooler_type'],
    [{ vocab_size: -1 }, '→ at vocab_size'],
    [{ hidden_size: undefined }, '→ at hidden_size'],
    [{ model_type: undefined }, '→ at model_type'],
    [{ num_hidden_layers: 2 ** 24 }, '→ at num_hidden_layers'],
  ])('%j is refused', (change, message) => {
    expect(() => parse(change)).toThrow(message);
  });

  test('several at once', () => {
    expect(() => parse({ hidden_act: 'relu', attention_window: 7 })).toThrow(/relu.*; an odd/);
  });

  test("without RecFormer's fields has the published values", () => {
    const absent = ['token_type_size', 'max_token_num', 'max_item_embeddings', 'max_attr_num'];
    const others = ['max_attr_length', 'pooler_type', 'attention_window'];
    const bare = Object.fromEntries(
      Object.entries(config).filter(([name]) => ![...absent, ...others].includes(name)),
    );
    const found = parseEncoderConfig({ ...bare, max_position_embeddings: 4098 }, 'config.json');
    expect(found).toMatchObject({
      family: 'longformer',
      config: {
        tokenTypeCount: 4,
        itemPositionCount: 51,
        attentionWindows: [64, 64, 64],
        pooling: 'cls',
        limits: { maxAttributes: 3, maxAttributeLength: 32, maxItems: 50, maxTokens: 1024 },
      },
    });
    // No sequence is longer than the positions reach.
    expect(parseEncoderConfig(bare, 'config.json').config.limits.maxTokens).toBe(138);
  });

  test('what is written is read again', () => {
    for (const change of [
      {},
      { pooler_type: 'avg', bos_token_id: 101, pad_token_id: 0, attention_window: [4, 8, 2] },
    ]) {
      const { config: found } = parse(change);
      expect(parseEncoderConfig(recformerConfigJson(found), 'config.json')).toEqual({
        config: found,
        family: 'recformer',
        typeRows: 1,
      });
    }
  });
});

describe('a start', () => {
  const d = 16;
  const shape = {
    vocab_size: 50,
    hidden_size: d,
    intermediate_size: 24,
    num_hidden_layers: 2,
    num_attention_heads: 2,
    layer_norm_eps: 1e-12,
    attention_window: 64,
  };
  const families = {
    roberta: { ...shape, model_type: 'roberta', max_position_embeddings: 92, type_vocab_size: 1 },
    longformer: { ...shape, model_type: 'longformer', max_position_embeddings: 92, type_vocab_size: 1 },
    bert: { ...shape, model_type: 'bert', max_position_embeddings: 90, type_vocab_size: 2, pad_token_id: 0 },
  } as const;
  type Family = keyof typeof families;
  const tokenizer = { model: { vocab: { '[PAD]': 0, a: 1, '[CLS]': 7, '[SEP]': 8 } } };
  const global = (name: string) => name.includes('_global.');

  /** Random tensors, as the family's own folder has them. */
  function tensorsOf(family: Family): Map<string, Float32Tensor> {
    const { config: parsed, typeRows } = parseEncoderConfig(families[family], 'config.json');
    const shapes = recformerTensors(parsed);
    shapes.delete('embeddings.item_position_embeddings.weight');
    shapes.set('embeddings.token_type_embeddings.weight', [typeRows, d]);
    shapes.set('embeddings.position_embeddings.weight', [families[family].max_position_embeddings, d]);
    return new Map(
      [...shapes]
        .filter(([name]) => family === 'longformer' || !global(name))
        .map(([name, dims]) => {
          const { normal } = random(1, name);
          const length = dims.reduce((n, size) => n * size, 1);
          const scale = name.includes('LayerNorm') ? 1 : 0.5;
          return [
            name,
            float32(
              Float32Array.from({ length }, () => scale * normal()),
              dims,
            ),
          ];
        }),
    );
  }

  function filesOf(family: Family, named = tensorsOf(family)) {
    return {
      'config.json': families[family],
      'model.safetensors': safetensors({
        ...entriesOf(named, `${family}.`),
        [`${family}.pooler.dense.bias`]: f32(float32(new Float32Array(d), [d])),
      }),
      ...(family === 'bert' && { 'tokenizer.json': tokenizer }),
    };
  }

  const draw = random(5, 'ids');
  const sequence = (length: number) => [7, ...Array.from({ length: length - 1 }, () => draw.integer(50))];

  test.each(['roberta', 'longformer', 'bert'] as const)('from %s has its tables', async (family) => {
    const own = tensorsOf(family);
    const found = await opened(`start-${family}`, filesOf(family));
    expect(found.family).toBe(family);
    expect(found.unused).toEqual([`${family}.pooler.dense.bias`]);
    expect(found.config.startId).toBe(family === 'bert' ? 7 : 0);
    expect(found.config.positionCount).toBe(92);
    const expected = recformerTensors(found.config);
    expect([...found.tensors.keys()]).toEqual([...expected.keys()]);
    for (const [name, { dims }] of found.tensors) expect(dims, name).toEqual(expected.get(name));

    const types = await valuesOf(found, 'embeddings.token_type_embeddings.weight');
    const first = own.get('embeddings.token_type_embeddings.weight')!.data.subarray(0, d);
    expect(types).toEqual(Float32Array.from({ length: 4 * d }, (_, i) => first[i % d]!));
    expect(await valuesOf(found, 'embeddings.item_position_embeddings.weight')).toEqual(
      new Float32Array(51 * d),
    );
    const positions = own.get('embeddings.position_embeddings.weight')!.data;
    expect(await valuesOf(found, 'embeddings.position_embeddings.weight')).toEqual(
      family === 'bert' ? Float32Array.of(...new Float32Array(2 * d), ...positions) : positions,
    );
    const rest = [...found.tensors.keys()].filter(
      (name) => !name.startsWith('embeddings.') || name.includes('LayerNorm') || name.includes('word'),
    );
    for (const name of rest) {
      const original = family === 'longformer' ? name : name.replace('_global.', '.');
      expect(await valuesOf(found, name), name).toEqual(own.get(original)!.data);
    }
  });

  test('is written once', async () => {
    const starts = () => readdirSync(cacheDir).filter((name) => name.startsWith('recformer-start-'));
    await opened('once', filesOf('roberta'));
    const before = starts();
    await opened('again', filesOf('roberta'));
    expect(starts()).toEqual(before);
    const name = 'embeddings.token_type_embeddings.weight';
    const other = new Map(tensorsOf('roberta')).set(name, float32(new Float32Array(d).fill(3), [1, d]));
    const found = await opened('other', filesOf('roberta', other));
    expect(starts()).toHaveLength(before.length + 1);
    expect(await valuesOf(found, name)).toEqual(new Float32Array(4 * d).fill(3));
  });

  test.each(['roberta', 'bert'] as const)(
    'from %s reads with a window as its source does without, while the window covers the sequence',
    async (family) => {
      const found = await opened(`covered-${family}`, filesOf(family));
      const within = [1, 2, 20, 33].map(sequence);
      const { data } = await encoderModel(found, nodeRuntime()).encode(within.map(plain));
      expect(largestDifference(data, await vectors(found, within, { attention: 'full' }))).toBeLessThan(1e-5);
      const beyond = [sequence(90)];
      expect(
        largestDifference(await vectors(found, beyond), await vectors(found, beyond, { attention: 'full' })),
      ).toBeGreaterThan(1e-3);
    },
  );

  test('from longformer reads by its own global projections', async () => {
    const found = await opened('global', filesOf('longformer'));
    const ids = [sequence(20)];
    expect(
      largestDifference(await vectors(found, ids), await vectors(found, ids, { attention: 'full' })),
    ).toBeGreaterThan(1e-3);
  });

  test('from BERT encodes as a RoBERTa whose positions lie two rows further', async () => {
    const bert = tensorsOf('bert');
    const [types, positions] = ['token_type', 'position'].map(
      (table) => `embeddings.${table}_embeddings.weight`,
    );
    const moved = new Map(bert).set(types!, float32(bert.get(types!)!.data.slice(0, d), [1, d])).set(
      positions!,
      float32(
        [...Array.from({ length: 2 * d }, (_, i) => i), ...bert.get(positions!)!.data], // rows that no token reads
        [92, d],
      ),
    );
    const ids = [1, 9, 90, 34].map(sequence);
    const [found, expected] = [
      await opened('bert', filesOf('bert')),
      await opened('bert-as-roberta', filesOf('roberta', moved)),
    ];
    for (const pooling of ['cls', 'avg'] as const) {
      const options = { attention: 'full', pooling } as const;
      expect(
        largestDifference(await vectors(found, ids, options), await vectors(expected, ids, options)),
      ).toBeLessThan(1e-6);
    }
  });

  test('from BERT needs a tokenizer that knows [CLS]', async () => {
    const { 'config.json': json, 'model.safetensors': weights } = filesOf('bert');
    const files = { 'config.json': json, 'model.safetensors': weights };
    await expect(opened('bert-bare', files)).rejects.toThrow(
      'has no tokenizer.json, which says what [CLS] is',
    );
    for (const vocab of [{}, { '[CLS]': 50 }])
      await expect(
        opened('bert-other', { ...files, 'tokenizer.json': { model: { vocab } } }),
      ).rejects.toThrow('has no [CLS] among its vocabulary');
  });

  test('from BERT lists what its own folder lacks', async () => {
    const fewer = tensorsOf('bert');
    fewer.delete('encoder.layer.0.attention.self.key.bias');
    fewer.set('embeddings.position_embeddings.weight', float32(new Float32Array(92 * d), [92, d]));
    const message = await opened('bert-lacking', filesOf('bert', fewer)).catch(
      (error: Error) => error.message,
    );
    expect((message as string).split('\n  ').slice(1)).toEqual([
      '"embeddings.position_embeddings.weight" is [92,16], config says [90,16]',
      '"encoder.layer.0.attention.self.key.bias" is missing, config says [16]',
    ]);
  });
});

const miniLm = sharedModel('all-minilm-l6-v2');

describe.skipIf(!miniLm)('all-MiniLM-L6-v2 equals transformers and sentence-transformers', () => {
  interface Case {
    readonly text: string;
    readonly ids: readonly number[];
    readonly cls_first8: readonly number[];
    readonly mean_pooled_normalised: readonly number[];
  }
  const cases: Case[] = miniLm ? readJson(join(miniLm, 'cases.json')) : [];

  test('in token ids, sentence vectors and vectors of the first token', async () => {
    const checkpoint = await openRecformer(miniLm!, { cacheDir });
    expect(checkpoint).toMatchObject({ family: 'bert', config: { startId: 101, padId: 0 } });
    const tokenizer = await loadTokenizer(miniLm!);
    const texts = cases.map(({ text }) => text);
    expect(texts.map((text) => tokenizer.encode(text))).toEqual(cases.map(({ ids }) => ids));

    const model = encoderModel(checkpoint, nodeRuntime());
    const progress: number[] = [];
    const sentences = await sentenceVectors(texts, model, tokenizer, (done) => progress.push(done));
    for (const [i, { mean_pooled_normalised }] of cases.entries())
      expect(largestDifference(sentences[i]!, mean_pooled_normalised), texts[i]!).toBeLessThan(1e-5);
    expect(progress).toEqual([cases.length]);

    const { data } = await model.encode(
      cases.map(({ ids }) => plain(ids)),
      undefined,
      { attention: 'full', pooling: 'cls' },
    );
    for (const [i, { cls_first8 }] of cases.entries())
      expect(largestDifference(data.subarray(i * 384, i * 384 + 8), cls_first8), texts[i]!).toBeLessThan(
        1e-5,
      );
    await model.release();
  });
});
