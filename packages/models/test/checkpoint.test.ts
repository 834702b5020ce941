// Checkpoints on disk: Hugging Face folders, whole and sharded, their configuration, and everything that is refused.
import { copyFileSync, readdirSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { type Float32Tensor, nodeRuntime } from '@fellrec/graph';
import { beforeAll, describe, expect, test } from 'vitest';
import { openCheckpoint } from '../src/checkpoint/checkpoint.ts';
import { parseConfig } from '../src/checkpoint/config.ts';
import {
  readSafetensors,
  readSafetensorsIndex,
  readTensor,
  writeSafetensors,
  writeSafetensorsStream,
} from '../src/checkpoint/safetensors.ts';
import { languageModel } from '../src/language-model.ts';
import {
  bf16,
  bytesOf,
  type Entry,
  f16,
  f32,
  safetensors,
  withHeader,
  writeFolder,
} from './checkpoint-files.ts';
import { largestDifference } from './numbers.ts';
import { fixture, readJson, temporaryFolder } from './shared.ts';

const folder = temporaryFolder();
const cacheDir = join(folder, 'cache');
const opened = (name: string, files: Parameters<typeof writeFolder>[1]) =>
  openCheckpoint(writeFolder(join(folder, name), files), { cacheDir });

const source = fixture('llama-mha-untied'); // 3 layers, an own head
const config = readJson<Record<string, unknown>>(join(source, 'config.json'));
let tensors: Map<string, Float32Tensor>;
let entries: Record<string, Entry>;
beforeAll(async () => {
  tensors = (await readSafetensors(join(source, 'model.safetensors'))) as Map<string, Float32Tensor>;
  entries = Object.fromEntries([...tensors].map(([name, tensor]) => [name, f32(tensor)]));
});

async function logits(path: string) {
  const model = languageModel(await openCheckpoint(path, { cacheDir }), nodeRuntime());
  const { logits } = await model.trace([{ ids: [1, 7, 30, 12] }]);
  await model.release();
  return logits!.data;
}

describe('a folder', () => {
  test("of links, as the Hugging Face hub's cache has them, computes what they lead to", async () => {
    const snapshot = writeFolder(join(folder, 'hub/snapshots/main'), {});
    const blobs = writeFolder(join(folder, 'hub/blobs'), {});
    for (const [i, name] of ['config.json', 'model.safetensors'].entries()) {
      copyFileSync(join(source, name), join(blobs, `${i}`));
      symlinkSync(`../../blobs/${i}`, join(snapshot, name));
    }
    expect(largestDifference(await logits(snapshot), await logits(source))).toBe(0);
  });

  test('of shards computes what the whole file computes', async () => {
    const names = Object.keys(entries);
    const shardOf = (i: number) => `model-0000${(i % 3) + 1}-of-00003.safetensors`;
    const shards = Object.fromEntries(
      [0, 1, 2].map((shard) => [
        shardOf(shard),
        safetensors(
          Object.fromEntries(names.flatMap((name, i) => (i % 3 === shard ? [[name, entries[name]!]] : []))),
        ),
      ]),
    );
    const index = {
      metadata: { total_size: 0 },
      weight_map: Object.fromEntries(names.map((name, i) => [name, shardOf(i)])),
    };
    const path = writeFolder(join(folder, 'sharded'), {
      'config.json': config,
      'model.safetensors.index.json': index,
      ...shards,
    });
    expect(largestDifference(await logits(path), await logits(source))).toBe(0);

    const others = without(shards, shardOf(1));
    await expect(
      opened('shard-absent', { 'config.json': config, 'model.safetensors.index.json': index, ...others }),
    ).rejects.toThrow(`${shardOf(1)}: no such file`);
  });

  test.each([
    ['F16', f16, 2e-2],
    ['BF16', bf16, 2e-1],
  ] as const)('of %s computes nearly what float32 computes', async (type, halve, limit) => {
    const path = writeFolder(join(folder, type), {
      'config.json': config,
      'model.safetensors': safetensors(
        Object.fromEntries([...tensors].map(([name, tensor]) => [name, halve(tensor)])),
      ),
    });
    const difference = largestDifference(await logits(path), await logits(source));
    expect(difference).toBeGreaterThan(0);
    expect(difference).toBeLessThan(limit);
  });

  test('with more tensors than the architecture has names them', async () => {
    const extra = {
      ...entries,
      'model.rotary.inv_freq': f32({ dtype: 'float32', dims: [1], data: new Float32Array(1) }),
      'model.scale': { dtype: 'F8_E8M0', shape: [3], bytes: new Uint8Array(3) },
      'model.position_ids': { dtype: 'I64', shape: [1], bytes: new Uint8Array(8) },
    };
    const found = await opened('extra', { 'config.json': config, 'model.safetensors': safetensors(extra) });
    expect(found.unused).toEqual(['model.rotary.inv_freq', 'model.scale', 'model.position_ids']);
    expect((await openCheckpoint(source, { cacheDir })).unused).toEqual([]);
  });

  test('is named by its weights and configuration', async () => {
    const { hash } = await openCheckpoint(source, { cacheDir });
    const same = { 'config.json': config, 'model.safetensors': safetensors(entries) };
    expect((await opened('same', same)).hash).toBe(hash);
    const name = 'model.norm.weight';
    const moved = tensors.get(name)!.data.map((x) => x + 1);
    const changed = { ...entries, [name]: f32({ ...tensors.get(name)!, data: moved }) };
    expect((await opened('moved', { ...same, 'model.safetensors': safetensors(changed) })).hash).not.toBe(
      hash,
    );
    const other = { ...same, 'config.json': { ...config, rope_theta: 77 } };
    expect((await opened('other', other)).hash).not.toBe(hash);
  });
});

describe('refused', () => {
  test('all tensors that are missing or have another shape than config.json says, at once', async () => {
    const opening = opened('mismatch', {
      'config.json': { ...config, intermediate_size: 50 },
      'model.safetensors': safetensors(without(entries, 'model.norm.weight')),
    });
    const found = await opening.catch((error: Error) => error.message.split('\n  '));
    expect(found).toHaveLength(1 + 3 * 3 + 1);
    expect((found as string[])[0]).toContain('is this the right config.json?');
    const { dims } = tensors.get('model.layers.0.mlp.up_proj.weight')!;
    expect(found).toContain(`"model.layers.0.mlp.up_proj.weight" is [${dims}], config says [50,${dims[1]}]`);
    expect(found).toContain(`"model.norm.weight" is missing, config says [${dims[1]}]`);
  });

  test('a weight of a type that is not computed, by name', async () => {
    const name = 'model.norm.weight';
    const { shape } = entries[name]!;
    const small = { dtype: 'F8_E4M3', shape, bytes: new Uint8Array(shape[0]!) };
    await expect(
      opened('small', {
        'config.json': config,
        'model.safetensors': safetensors({ ...entries, [name]: small }),
      }),
    ).rejects.toThrow(`"${name}" has the unsupported type F8_E4M3 (supported: F32, F16, BF16)`);
  });

  test('one file of a folder', async () => {
    await expect(openCheckpoint(join(source, 'model.safetensors'), { cacheDir })).rejects.toThrow(
      'give the folder that it lies in',
    );
  });

  test('an untied model without a head', async () => {
    await expect(
      opened('headless', {
        'config.json': config,
        'model.safetensors': safetensors(without(entries, 'lm_head.weight')),
      }),
    ).rejects.toThrow('"lm_head.weight" is missing');
  });

  test.each(['../model.safetensors', '/etc/passwd', 'a/b.safetensors', '..'])(
    'the shard %s',
    async (shard) => {
      const index = { weight_map: { 'model.norm.weight': shard } };
      await expect(
        opened('traversal', { 'config.json': config, 'model.safetensors.index.json': index }),
      ).rejects.toThrow(`names "${shard}", which is not a file of its folder`);
    },
  );

  test('an index that is none', async () => {
    await expect(
      opened('index', { 'config.json': config, 'model.safetensors.index.json': { weight_map: [1] } }),
    ).rejects.toThrow('is not a shard index');
  });

  test('a folder without weights, saying what is there', async () => {
    await expect(opened('empty', { 'config.json': config })).rejects.toThrow('holds no model.safetensors');
    await expect(opened('pickles', { 'pytorch_model.bin': new Uint8Array(1) })).rejects.toThrow(
      'PyTorch .bin weights; convert them: python -c',
    );
    const two = { 'a.gguf': new Uint8Array(1), 'b.gguf': new Uint8Array(1) };
    await expect(opened('two', two)).rejects.toThrow('holds 2 .gguf files; name one: a.gguf, b.gguf');
    await expect(openCheckpoint(join(folder, 'nowhere'), { cacheDir })).rejects.toThrow('does not exist');
    await expect(opened('bare', { 'model.safetensors': safetensors(entries) })).rejects.toThrow(
      'config.json does not exist',
    );
    await expect(
      opened('broken', { 'model.safetensors': safetensors(entries), 'config.json': Buffer.from('{') }),
    ).rejects.toThrow('config.json is not valid JSON');
    await expect(
      opened('null', { 'model.safetensors': safetensors(entries), 'config.json': Buffer.from('null') }),
    ).rejects.toThrow('config.json holds no JSON object');
  });
});

describe('config.json', () => {
  const parse = (change: Record<string, unknown>) => parseConfig({ ...config, ...change }, 'config.json');
  test.each([
    [{ model_type: 'mistral' }, 'unsupported architecture "mistral"; supported: llama'],
    [{ rope_scaling: { rope_type: 'yarn', factor: 4 } }, 'RoPE scaling "yarn" (supported: default, llama3)'],
    [{ rope_scaling: { type: 'linear', factor: 2 } }, 'RoPE scaling "linear"'],
    [{ rope_parameters: { rope_type: 'dynamic' } }, 'RoPE scaling "dynamic"'],
    [{ rope_scaling: { rope_type: 'llama3' } }, 'llama3 RoPE scaling without a factor'],
    [
      { rope_scaling: { rope_type: 'llama3', factor: 8, low_freq_factor: 4 } },
      'a low_freq_factor of 4 that is not below the high_freq_factor of 4',
    ],
    [
      { rope_parameters: { rope_type: 'default', partial_rotary_factor: 0.5 } },
      'a partial_rotary_factor of 0.5 (supported: 1)',
    ],
    [{ num_hidden_layers: 2 ** 24 }, '→ at num_hidden_layers'],
    [{ hidden_act: 'gelu' }, 'hidden_act "gelu" (supported: silu)'],
    [{ attention_bias: true }, 'attention_bias'],
    [{ mlp_bias: true }, 'mlp_bias'],
    [{ num_attention_heads: 4, num_key_value_heads: 3 }, '4 heads that 3 key-value heads do not divide'],
    [{ head_dim: 7 }, 'a head size of 7'],
    [{ vocab_size: -1 }, '→ at vocab_size'],
    [{ hidden_size: undefined }, '→ at hidden_size'],
  ])('%j is refused', (change, message) => {
    expect(() => parse(change)).toThrow(message);
  });

  test('several at once', () => {
    expect(() => parse({ hidden_act: 'gelu', mlp_bias: true })).toThrow(/gelu.*; mlp_bias/);
  });

  test('what may be absent', () => {
    const optional = [
      'num_key_value_heads',
      'head_dim',
      'rope_theta',
      'tie_word_embeddings',
      'eos_token_id',
      'bos_token_id',
    ];
    const found = parseConfig(without(config, ...optional), 'config.json');
    expect(found.keyValueHeadCount).toBe(config.num_attention_heads);
    expect(found.headDim).toBe(Number(config.hidden_size) / Number(config.num_attention_heads));
    expect(found).toMatchObject({ ropeTheta: 10_000, tied: false, eosIds: [] });
    expect(found).not.toHaveProperty('bosId');
    expect(found).not.toHaveProperty('ropeScaling');
  });

  test('where RoPE may stand, and several end tokens', () => {
    expect(parse({ rope_theta: 5, rope_parameters: { rope_theta: 7, rope_type: 'default' } }).ropeTheta).toBe(
      7,
    );
    expect(parse({ eos_token_id: [2, 5] }).eosIds).toEqual([2, 5]);
    const scaling = {
      rope_type: 'llama3',
      factor: 8,
      low_freq_factor: 2,
      original_max_position_embeddings: 64,
    };
    expect(parse({ rope_scaling: scaling }).ropeScaling).toEqual({
      factor: 8,
      lowFrequencyFactor: 2,
      highFrequencyFactor: 4,
      originalMaxPositions: 64,
    });
  });
});

describe('safetensors', () => {
  const path = (name: string, bytes: Uint8Array) => join(writeFolder(folder, { [name]: bytes }), name);
  const two = () => safetensors({ first: f32(vector(4)), second: f32(vector(3)) });

  test('values of every type', async () => {
    const values = { dtype: 'float32', dims: [2, 2], data: Float32Array.of(1, -2.5, 0.375, 1024) } as const;
    const entries: Record<string, Entry> = {
      odd: { dtype: 'U8', shape: [3], bytes: Uint8Array.of(1, 2, 3) }, // leaves the others unaligned
      f32: f32(values),
      f16: f16(values),
      bf16: bf16(values),
      i64: { dtype: 'I64', shape: [2], bytes: bytesOf(BigInt64Array.of(-1n, 2n ** 40n)) },
      i32: { dtype: 'I32', shape: [2], bytes: bytesOf(Int32Array.of(-7, 9)) },
      scalar: { dtype: 'F32', shape: [], bytes: bytesOf(Float32Array.of(3)) },
      empty: { dtype: 'F32', shape: [0, 4], bytes: new Uint8Array() },
    };
    const file = path('types', safetensors(entries));
    const index = await readSafetensorsIndex(file);
    expect([...index.tensors.keys()]).toEqual(['odd', 'f32', 'f16', 'bf16', 'scalar', 'empty']);
    expect([...index.others]).toEqual([
      ['i64', 'I64'],
      ['i32', 'I32'],
    ]);
    for (const name of ['f32', 'f16', 'bf16'])
      expect(await readTensor(index.tensors.get(name)!)).toEqual(values);
    await expect(readSafetensors(file)).rejects.toThrow(`"odd" in ${file} has unsupported type U8`);

    const all = await readSafetensors(path('read', safetensors(without(entries, 'odd'))));
    expect(all.get('i64')).toEqual({ dtype: 'int64', dims: [2], data: BigInt64Array.of(-1n, 2n ** 40n) });
    expect(all.get('i32')).toEqual({ dtype: 'int64', dims: [2], data: BigInt64Array.of(-7n, 9n) });
    expect(all.get('scalar')).toEqual({ dtype: 'float32', dims: [], data: Float32Array.of(3) });
    expect(all.get('empty')).toEqual({ dtype: 'float32', dims: [0, 4], data: new Float32Array() });
  });

  test('what is written is read again, its data aligned', async () => {
    const file = join(folder, 'ours');
    const given = new Map([
      ['first', vector(4)],
      ['second', vector(3)],
    ]);
    await writeSafetensors(file, given);
    expect(await readSafetensors(file)).toEqual(given);
    const { tensors: index } = await readSafetensorsIndex(file);
    expect([...index.values()].map(({ byteLength }) => byteLength)).toEqual([16, 12]);
    expect(index.get('first')!.byteOffset % 8).toBe(0);
  });

  test('a truncated file names the tensor that it cuts', async () => {
    const whole = two();
    for (const [cut, message] of [
      [1, /truncated: "second" ends at byte \d+, the file has \d+; download it again/],
      [13, /truncated: "first" ends at byte/],
      [30, /its header would have \d+ bytes, the file has/],
    ] as const)
      await expect(readSafetensorsIndex(path('cut', whole.subarray(0, whole.length - cut)))).rejects.toThrow(
        message,
      );
    await expect(readSafetensorsIndex(path('stub', whole.subarray(0, 5)))).rejects.toThrow('is truncated');
    await expect(readSafetensorsIndex(path('nothing', new Uint8Array()))).rejects.toThrow('is truncated');
  });

  test.each([
    ['no JSON', () => withHeader('{"a": '), 'is not JSON; is it a safetensors file?'],
    ['no object', () => withHeader('[1, 2]'), /header of .* object|expected record/],
    ['no entry', () => withHeader('{"a": {"dtype": "F32"}}'), /"a" in the header of/],
    ['a negative size', () => safetensors({ a: { ...f32(vector(2)), shape: [-2] } }), /"a" in the header of/],
    [
      'ranges that overlap',
      () =>
        safetensors({ a: f32(vector(2)), b: f32(vector(2)) }, ({ b }) => {
          b!.data_offsets = [4, 12];
        }),
      /"a" and "b" in .* overlap/,
    ],
    [
      'a range that runs backwards, of an unknown type',
      () =>
        safetensors({ a: { ...f32(vector(2)), dtype: 'F8_E4M3' } }, ({ a }) => {
          a!.data_offsets = [8, 0];
        }),
      /"a" in .* but has -8 bytes/,
    ],
    [
      'fewer bytes than its shape',
      () => safetensors({ a: { ...f32(vector(2)), shape: [3] } }),
      /"a" in .* is F32 \[3\] but has 8 bytes/,
    ],
    [
      'a range that runs backwards',
      () =>
        safetensors({ a: f32(vector(2)) }, ({ a }) => {
          a!.data_offsets = [8, 0];
        }),
      /"a" in .* but has -8 bytes/,
    ],
    [
      'a header of 2^60 bytes',
      () => Buffer.concat([Buffer.from([0, 0, 0, 0, 0, 0, 0, 16]), two()]),
      /is no safetensors file, or truncated/,
    ],
  ])('a header with %s is refused', async (_, make, message) => {
    await expect(readSafetensorsIndex(path('header', make()))).rejects.toThrow(message);
  });

  test('several writers of one file do not meet', async () => {
    const file = join(folder, 'contested');
    const given = new Map([['x', vector(100_000)]]);
    await Promise.all(Array.from({ length: 5 }, () => writeSafetensors(file, given)));
    expect(await readSafetensors(file)).toEqual(given);
    expect(readdirSync(folder).filter((name) => name.startsWith('contested'))).toEqual(['contested']);
  });

  test('a file appears whole or not at all', async () => {
    const file = join(folder, 'late');
    const layout = new Map(['a', 'b'].map((name) => [name, { dtype: 'float32' as const, dims: [2] }]));
    const failing = async (name: string) => {
      if (name === 'b') throw new Error('no more');
      return Float32Array.of(1, 2);
    };
    await expect(writeSafetensorsStream(file, layout, failing)).rejects.toThrow(
      `cannot write ${file}: no more`,
    );
    await expect(readSafetensorsIndex(file)).rejects.toThrow('no such file');
    const short = async () => Float32Array.of(1);
    await expect(writeSafetensorsStream(file, layout, short)).rejects.toThrow(
      '"a" for late has 1 values, not [2]',
    );
  });
});

function vector(length: number): Float32Tensor {
  return { dtype: 'float32', dims: [length], data: Float32Array.from({ length }, (_, i) => i + 0.5) };
}

function without<T>(record: Readonly<Record<string, T>>, ...names: readonly string[]): Record<string, T> {
  return Object.fromEntries(Object.entries(record).filter(([name]) => !names.includes(name)));
}
