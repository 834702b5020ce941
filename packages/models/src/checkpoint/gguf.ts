// GGUF files of the llama architecture: dequantised once into a safetensors file of the cache, with Hugging Face's names
// and row order, and mapped from there.
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, open } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { elementCount } from '@fellrec/graph';
import { GGMLQuantizationType, type GGUFTensorInfo, gguf } from '@huggingface/gguf';
import { type LlamaConfig, parseConfig } from './config.ts';
import { encodings } from './dequantize.ts';
import { readJsonObject } from './json.ts';
import {
  readExactly,
  readSafetensorsIndex,
  type SafetensorsIndex,
  writeSafetensorsStream,
} from './safetensors.ts';

type Metadata = Readonly<Record<string, unknown>>;

/** @throws on another architecture or quantisation (by name), a truncated file (naming the tensor), or a config.json that disagrees. */
export async function openGguf(
  file: string,
  cacheDir: string,
): Promise<{ readonly config: LlamaConfig; readonly index: SafetensorsIndex }> {
  const path = resolve(file);
  const header = await gguf(path, { allowLocalFile: true }).catch((cause) => {
    throw new Error(`model: ${file} is no GGUF file, or its header is damaged: ${cause.message}`, { cause });
  });
  const handle = await open(path);
  try {
    const { size } = await handle.stat();
    // The reader takes what lies behind the end of a file for zeros.
    if (header.tensorDataOffset > size)
      throw new Error(
        `model: ${file} is truncated: its header ends at byte ${header.tensorDataOffset}, the file has ${size}; download it again`,
      );
    const config = await configOf(header.metadata as unknown as Metadata, header.tensorInfos, path);
    const tensors = header.tensorInfos.map((info) =>
      describe(info, Number(header.tensorDataOffset), config, file),
    );
    const beyond = tensors.find(({ at, bytes }) => at + bytes > size);
    if (beyond)
      throw new Error(
        `model: ${file} is truncated: "${beyond.ggufName}" ends at byte ${beyond.at + beyond.bytes}, the file has ${size}; download it again`,
      );
    await mkdir(cacheDir, { recursive: true });
    // The order of rows goes by the heads, which may be config.json's.
    const name = `gguf-${await fileHash(path)}-${config.headCount}-${config.keyValueHeadCount}.safetensors`;
    const cached = join(resolve(cacheDir), name);
    if (!existsSync(cached)) {
      const byName = new Map(tensors.map((tensor) => [tensor.name, tensor]));
      await writeSafetensorsStream(
        cached,
        new Map(tensors.map(({ name, dims }) => [name, { dtype: 'float32', dims }])),
        async (name) => {
          const { at, bytes, encoding, dims, heads } = byName.get(name)!;
          const { buffer } = await readExactly(handle, at, bytes, file);
          const values = encoding.decode(new DataView(buffer), elementCount(dims));
          return heads === undefined ? values : halfSplitRows(values, dims, heads);
        },
      );
    }
    return { config, index: await readSafetensorsIndex(cached) };
  } finally {
    await handle.close();
  }
}

function describe(
  { name: ggufName, shape, dtype, offset }: GGUFTensorInfo,
  dataStart: number,
  config: LlamaConfig,
  file: string,
) {
  const encoding = encodings.get(dtype);
  if (!encoding)
    throw new Error(
      `model: ${file}: "${ggufName}" has the unsupported quantisation ${GGMLQuantizationType[dtype] ?? `type ${dtype}`}; supported: ${[...encodings.values()].map(({ name }) => name).join(', ')}`,
    );
  const dims = shape.map(Number).reverse();
  if ((dims.at(-1) ?? 1) % encoding.blockElements !== 0)
    throw new Error(
      `model: ${file}: "${ggufName}" is ${encoding.name} with rows of ${dims.at(-1)}, no multiple of ${encoding.blockElements}; the file is damaged`,
    );
  const heads = ggufName.endsWith('attn_q.weight')
    ? config.headCount
    : ggufName.endsWith('attn_k.weight')
      ? config.keyValueHeadCount
      : undefined;
  const bytes = (elementCount(dims) / encoding.blockElements) * encoding.blockBytes;
  return {
    ggufName,
    name: huggingFaceName(ggufName),
    dims,
    encoding,
    heads,
    at: dataStart + Number(offset),
    bytes,
  };
}

const layerNames: Readonly<Record<string, string>> = {
  attn_norm: 'input_layernorm',
  attn_q: 'self_attn.q_proj',
  attn_k: 'self_attn.k_proj',
  attn_v: 'self_attn.v_proj',
  attn_output: 'self_attn.o_proj',
  ffn_norm: 'post_attention_layernorm',
  ffn_gate: 'mlp.gate_proj',
  ffn_up: 'mlp.up_proj',
  ffn_down: 'mlp.down_proj',
};

/** Names without a counterpart stay as they are and are reported as unused. */
function huggingFaceName(name: string): string {
  if (name === 'token_embd.weight') return 'model.embed_tokens.weight';
  if (name === 'output_norm.weight') return 'model.norm.weight';
  if (name === 'output.weight') return 'lm_head.weight';
  const match = /^blk\.(\d+)\.(\w+)\.weight$/.exec(name);
  const known = match && layerNames[match[2]!];
  return known ? `model.layers.${match[1]}.${known}.weight` : name;
}

/** GGUF interleaves the two halves of each head's rows (2 i, 2 i + 1); Hugging Face keeps them apart (i, i + d/2). */
function halfSplitRows(
  values: Float32Array,
  [rows, columns]: readonly number[],
  heads: number,
): Float32Array {
  const out = new Float32Array(values.length);
  const headDim = rows! / heads;
  for (let head = 0; head < heads; head++)
    for (let i = 0; i < headDim / 2; i++)
      for (const half of [0, 1]) {
        const from = (head * headDim + 2 * i + half) * columns!;
        out.set(
          values.subarray(from, from + columns!),
          (head * headDim + half * (headDim / 2) + i) * columns!,
        );
      }
  return out;
}

/** The configuration in the header; a config.json beside the file adds what GGUF lacks and must not contradict it. */
async function configOf(
  metadata: Metadata,
  infos: readonly GGUFTensorInfo[],
  file: string,
): Promise<LlamaConfig> {
  const architecture = metadata['general.architecture'];
  if (architecture !== 'llama')
    throw new Error(`model: ${file}: unsupported architecture "${architecture}"; supported: llama`);
  const of = (key: string) => metadata[`llama.${key}`];
  const tokens = metadata['tokenizer.ggml.tokens'];
  const scaling = of('rope.scaling.type');
  // Stored as float32: 1e-5 reads 0.00000999...
  const epsilon = of('attention.layer_norm_rms_epsilon');
  const beside = join(dirname(file), 'config.json');
  const hasConfig = existsSync(beside);
  if (
    !hasConfig &&
    ((scaling !== undefined && scaling !== 'none') || infos.some(({ name }) => name === 'rope_freqs.weight'))
  )
    throw new Error(
      `model: ${file} scales RoPE, and GGUF does not say how; put the model's config.json beside it`,
    );
  const found = {
    model_type: 'llama',
    vocab_size: of('vocab_size') ?? (Array.isArray(tokens) ? tokens.length : undefined),
    hidden_size: of('embedding_length'),
    intermediate_size: of('feed_forward_length'),
    num_hidden_layers: of('block_count'),
    num_attention_heads: of('attention.head_count'),
    num_key_value_heads: of('attention.head_count_kv'),
    max_position_embeddings: of('context_length'),
    rope_theta: of('rope.freq_base'),
    tie_word_embeddings: !infos.some(({ name }) => name === 'output.weight'),
    bos_token_id: metadata['tokenizer.ggml.bos_token_id'],
    eos_token_id: metadata['tokenizer.ggml.eos_token_id'],
    rms_norm_eps: epsilon === undefined ? undefined : Number(Number(epsilon).toPrecision(6)),
  };
  if (!hasConfig) return parseConfig(found, file);
  const json = Object.fromEntries(
    Object.entries(await readJsonObject(beside)).filter(([, value]) => value !== null),
  );
  const config = parseConfig({ ...found, ...json }, beside);
  const contradictions = Object.entries(found)
    .map(([key, value]) => ({ key, value, other: key === 'rope_theta' ? config.ropeTheta : json[key] }))
    .filter(
      ({ key, value, other }) =>
        value !== undefined && other !== undefined && key !== 'eos_token_id' && other !== value,
    )
    .map(({ key, value, other }) => `${key} is ${value} in the GGUF file and ${other} in config.json`);
  if (contradictions.length > 0)
    throw new Error(
      `model: ${file} and the config.json beside it disagree:\n  ${contradictions.join('\n  ')}`,
    );
  return config;
}

async function fileHash(file: string): Promise<string> {
  const hash = createHash('sha256');
  const handle = await open(file);
  try {
    for await (const chunk of handle.readableWebStream()) hash.update(chunk as Uint8Array);
  } finally {
    await handle.close().catch(() => {});
  }
  return hash.digest('hex').slice(0, 32);
}
