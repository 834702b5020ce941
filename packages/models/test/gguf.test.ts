// GGUF files of the llama architecture: the logits of the safetensors that they were made from, and what is refused.
import { readdirSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { type Float32Tensor, nodeRuntime } from '@fellrec/graph';
import { beforeAll, describe, expect, test } from 'vitest';
import { openCheckpoint } from '../src/checkpoint/checkpoint.ts';
import { readSafetensors, readTensor } from '../src/checkpoint/safetensors.ts';
import { cutCheckpoint } from '../src/cut.ts';
import { fuseAdapter } from '../src/fuse.ts';
import { languageModel } from '../src/language-model.ts';
import { readAdapter } from '../src/peft.ts';
import { writeFolder } from './checkpoint-files.ts';
import { encode, type GgufMetadata, type GgufTensor, ggufFile, interleaveRows } from './gguf-file.ts';
import { largestDifference } from './numbers.ts';
import { fixture, readJson, temporaryFolder } from './shared.ts';

const folder = temporaryFolder();
const cacheDir = join(folder, 'cache');
// 4 query heads, 2 key-value heads, d 32, tied.
const source = fixture('llama-gqa-tied');
const config = readJson<Record<string, number>>(join(source, 'config.json'));
const metadata: GgufMetadata = {
  'general.architecture': 'llama',
  'llama.vocab_size': config.vocab_size!,
  'llama.embedding_length': config.hidden_size!,
  'llama.feed_forward_length': config.intermediate_size!,
  'llama.block_count': config.num_hidden_layers!,
  'llama.attention.head_count': config.num_attention_heads!,
  'llama.attention.head_count_kv': config.num_key_value_heads!,
  'llama.context_length': config.max_position_embeddings!,
  'llama.rope.freq_base': { float: config.rope_theta! },
  'llama.attention.layer_norm_rms_epsilon': { float: config.rms_norm_eps! },
  'tokenizer.ggml.bos_token_id': 1,
  'tokenizer.ggml.eos_token_id': 2,
};
const layerNames: Readonly<Record<string, string>> = {
  input_layernorm: 'attn_norm',
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  post_attention_layernorm: 'ffn_norm',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
};

let weights: Map<string, Float32Tensor>;
beforeAll(async () => {
  weights = (await readSafetensors(join(source, 'model.safetensors'))) as Map<string, Float32Tensor>;
});

function ggufName(name: string): string {
  if (name === 'model.embed_tokens.weight') return 'token_embd.weight';
  if (name === 'model.norm.weight') return 'output_norm.weight';
  const [, layer, part] = /^model\.layers\.(\d+)\.(.+)\.weight$/.exec(name)!;
  return `blk.${layer}.${layerNames[part!]}.weight`;
}

/** The fixture's weights; matrices whose rows divide into blocks have the encoding `matrices`. */
function tensors(matrices: keyof typeof encode = 'F32'): Record<string, GgufTensor> {
  return Object.fromEntries(
    [...weights].map(([name, tensor]) => {
      const heads = name.includes('q_proj') ? 4 : name.includes('k_proj') ? 2 : undefined;
      const data = heads ? interleaveRows(tensor, heads) : tensor.data;
      const { type, bytes } = encode[tensor.dims.length > 1 && tensor.dims[1]! % 32 === 0 ? matrices : 'F32'];
      return [ggufName(name), { type, dims: tensor.dims, bytes: bytes(data) }];
    }),
  );
}

let count = 0;
/** A folder of its own with the file, and what else lies there. */
const written = (file: Uint8Array, beside: Record<string, object> = {}) =>
  join(writeFolder(join(folder, `${count++}`), { 'model.gguf': file, ...beside }), 'model.gguf');
const opening = (...args: Parameters<typeof written>) => openCheckpoint(written(...args), { cacheDir });

async function logits(path: string) {
  const model = languageModel(await openCheckpoint(path, { cacheDir }), nodeRuntime());
  const found = await model.trace([{ ids: [1, 39, 52, 32, 55, 53, 28] }, { ids: [1, 8, 9] }]);
  await model.release();
  return found.logits!.data;
}

test('configuration and weights are those of the safetensors', async () => {
  const found = await opening(ggufFile(metadata, tensors()));
  const original = await openCheckpoint(source, { cacheDir });
  expect(found.config).toEqual(original.config);
  expect([...found.tensors.keys()].sort()).toEqual([...original.tensors.keys()].sort());
  for (const [name, stored] of found.tensors)
    expect(await readTensor(stored), name).toEqual(weights.get(name));
  expect(largestDifference(await logits(written(ggufFile(metadata, tensors()))), await logits(source))).toBe(
    0,
  );
});

test('without a config.json beside it, it is fused into a folder that opens', async () => {
  const adapter = await readAdapter(join(source, 'adapter'));
  const found = await opening(ggufFile(metadata, tensors()));
  const [fused, expected] = [join(folder, 'fused-gguf'), join(folder, 'fused-safetensors')];
  await fuseAdapter(found, adapter, fused);
  await fuseAdapter(await openCheckpoint(source, { cacheDir }), adapter, expected);
  expect((await openCheckpoint(fused, { cacheDir })).config).toEqual(found.config);
  expect(largestDifference(await logits(fused), await logits(expected))).toBe(0);
});

test('cut, each side has what the dequantised file has', async () => {
  const found = await opening(ggufFile(metadata, tensors('Q8_0')));
  let count = 0;
  for (const side of ['client', 'server'] as const) {
    const directory = join(folder, `cut-${side}`);
    await cutCheckpoint(found, { side, k: 1 }, directory);
    const part = await openCheckpoint(directory, { cacheDir });
    expect(part).toMatchObject({ config: found.config, hash: found.hash, part: { side, k: 1 } });
    for (const [name, stored] of part.tensors)
      expect(await readTensor(stored), name).toEqual(await readTensor(found.tensors.get(name)!));
    count += part.tensors.size;
  }
  expect(count).toBe(found.tensors.size);
});

test('rows of queries and keys that are not interleaved give other logits', async () => {
  const name = 'model.layers.0.self_attn.q_proj.weight';
  const straight = {
    ...tensors(),
    [ggufName(name)]: {
      type: 0,
      dims: weights.get(name)!.dims,
      bytes: encode.F32.bytes(weights.get(name)!.data),
    },
  };
  const difference = largestDifference(
    await logits(written(ggufFile(metadata, straight))),
    await logits(source),
  );
  expect(difference).toBeGreaterThan(1e-2);
});

test.each([
  ['F16', 2e-3],
  ['BF16', 1e-2],
  ['Q8_0', 1e-2],
  ['Q4_0', 0.2],
  ['Q4_1', 0.2],
] as const)('weights as %s', async (encoding, limit) => {
  const found = await opening(ggufFile(metadata, tensors(encoding)));
  let encoded = 0;
  for (const [name, stored] of found.tensors) {
    const { data } = await readTensor(stored);
    const expected = weights.get(name)!;
    const error = largestDifference(data, expected.data) / Math.max(...expected.data.map(Math.abs));
    expect(error, name).toBeLessThan(limit);
    if (error > 0) encoded++;
  }
  expect(encoded).toBeGreaterThan(20);
});

test('dequantised once: the cache is found again by content', async () => {
  const own = join(folder, 'own-cache');
  const file = written(ggufFile(metadata, tensors('Q8_0')));
  const first = await openCheckpoint(file, { cacheDir: own });
  const [cached] = readdirSync(own);
  const { mtimeMs } = statSync(join(own, cached!));
  const copy = written(ggufFile(metadata, tensors('Q8_0')));
  const second = await openCheckpoint(copy, { cacheDir: own });
  expect(second.hash).toBe(first.hash);
  expect(statSync(join(own, cached!)).mtimeMs).toBe(mtimeMs);
  await openCheckpoint(written(ggufFile(metadata, tensors('Q4_0'))), { cacheDir: own });
  expect(readdirSync(own)).toHaveLength(2);
  rmSync(own, { recursive: true });
});

test('opened several times at once, it is there for all', async () => {
  const own = join(folder, 'contested-cache');
  const file = written(ggufFile(metadata, tensors('Q8_0')));
  const all = await Promise.all(Array.from({ length: 5 }, () => openCheckpoint(file, { cacheDir: own })));
  expect(new Set(all.map(({ hash }) => hash)).size).toBe(1);
  expect(readdirSync(own)).toHaveLength(1);
});

describe('a config.json beside the file', () => {
  test('that is none is named', async () => {
    const file = ggufFile(metadata, tensors());
    await expect(opening(file, { 'config.json': Buffer.from('{') })).rejects.toThrow(
      'config.json is not valid JSON',
    );
  });

  test('adds what GGUF lacks', async () => {
    const found = await opening(ggufFile(metadata, tensors()), {
      'config.json': { ...config, eos_token_id: [2, 7] },
    });
    expect(found.config.eosIds).toEqual([2, 7]);
  });

  test('may not contradict it: all contradictions at once', async () => {
    const other = { ...config, rope_theta: 5, num_key_value_heads: 4 };
    const found = opening(ggufFile(metadata, tensors()), { 'config.json': other });
    await expect(found).rejects.toThrow('rope_theta is 100000 in the GGUF file and 5 in config.json');
    await expect(found).rejects.toThrow('num_key_value_heads is 2 in the GGUF file and 4 in config.json');
    const { rope_theta: _, ...rest } = config;
    await expect(
      opening(ggufFile(metadata, tensors()), {
        'config.json': { ...rest, rope_parameters: { rope_type: 'default', rope_theta: 5 } },
      }),
    ).rejects.toThrow('rope_theta is 100000 in the GGUF file and 5 in config.json');
  });

  test('a null there says nothing', async () => {
    const found = await opening(ggufFile(metadata, tensors()), {
      'config.json': { ...config, rope_theta: null, num_key_value_heads: null },
    });
    expect(found.config).toMatchObject({ ropeTheta: 100_000, keyValueHeadCount: 2 });
  });

  test('it says what the header lacks, also after an attempt without it', async () => {
    const {
      'llama.attention.head_count_kv': _,
      'llama.rope.freq_base': __,
      'llama.attention.layer_norm_rms_epsilon': ___,
      ...less
    } = metadata;
    const file = ggufFile(less, tensors());
    await expect(opening(file)).rejects.toThrow('rms_norm_eps');
    const { num_key_value_heads: ____, ...wrong } = config;
    await expect(opening(file, { 'config.json': wrong })).rejects.toThrow('k_proj');
    const path = written(file, { 'config.json': config });
    expect(largestDifference(await logits(path), await logits(source))).toBe(0);
  });
});

describe('refused', () => {
  test('a truncated file, naming the tensor', async () => {
    const file = ggufFile(metadata, tensors('Q4_1'));
    const { bytes } = Object.values(tensors('Q4_1')).at(-1)!;
    const last = Object.keys(tensors()).at(-1)!;
    const cut = file.subarray(0, file.length - bytes.length);
    await expect(opening(cut)).rejects.toThrow(
      new RegExp(`truncated: "${last}" ends at byte \\d+, the file has ${cut.length}`),
    );
    for (const length of [20, 100, 400, 1000])
      await expect(opening(file.subarray(0, length))).rejects.toThrow(
        /truncated: its header ends at byte \d+, the/,
      );
    await expect(opening(Buffer.from('no gguf at all, just text'))).rejects.toThrow('no GGUF file');
  });

  test('another quantisation, by name', async () => {
    const name = 'blk.1.ffn_up.weight';
    const file = ggufFile(metadata, { ...tensors(), [name]: { ...tensors()[name]!, type: 14 } });
    await expect(opening(file)).rejects.toThrow(
      `"${name}" has the unsupported quantisation Q6_K; supported: F32, F16, BF16, Q4_0, Q4_1, Q8_0`,
    );
  });

  test('rows that no blocks fill', async () => {
    const name = 'output_norm.weight';
    const file = ggufFile(metadata, {
      ...tensors(),
      [name]: { type: 8, dims: [31], bytes: new Uint8Array(34) },
    });
    await expect(opening(file)).rejects.toThrow(`"${name}" is Q8_0 with rows of 31, no multiple of 32`);
  });

  test('another architecture, by name', async () => {
    const file = ggufFile({ ...metadata, 'general.architecture': 'qwen2' }, tensors());
    await expect(opening(file)).rejects.toThrow('unsupported architecture "qwen2"; supported: llama');
  });

  test('RoPE scaling that only config.json can describe', async () => {
    const scaled = ggufFile({ ...metadata, 'llama.rope.scaling.type': 'linear' }, tensors());
    await expect(opening(scaled)).rejects.toThrow(
      "scales RoPE, and GGUF does not say how; put the model's config.json",
    );
    const factors = {
      'rope_freqs.weight': { type: 0, dims: [4], bytes: encode.F32.bytes(new Float32Array(4)) },
    };
    await expect(opening(ggufFile(metadata, { ...tensors(), ...factors }))).rejects.toThrow('scales RoPE');
    const rope_scaling = { rope_type: 'llama3', factor: 8 };
    const found = await opening(ggufFile(metadata, { ...tensors(), ...factors }), {
      'config.json': { ...config, rope_scaling },
    });
    expect(found.config.ropeScaling?.factor).toBe(8);
    expect(found.unused).toEqual(['rope_freqs.weight']);
  });

  test('a missing tensor', async () => {
    const { 'blk.2.attn_v.weight': _, ...others } = tensors();
    await expect(opening(ggufFile(metadata, others))).rejects.toThrow(
      '"model.layers.2.self_attn.v_proj.weight" is missing, config says [16,32]',
    );
  });
});
