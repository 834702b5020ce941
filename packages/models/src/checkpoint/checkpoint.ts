// A LLaMA checkpoint on disk: its configuration and where its tensors lie.
import { createHash } from 'node:crypto';
import { open, readdir, stat } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import type { StoredTensor } from '@fellrec/graph';
import { z } from 'zod';
import { type LlamaConfig, parseConfig } from './config.ts';
import { openGguf } from './gguf.ts';
import { readJsonObject } from './json.ts';
import { readSafetensorsIndex, type SafetensorsIndex } from './safetensors.ts';

export interface Checkpoint {
  readonly config: LlamaConfig;
  /** By Hugging Face's names. */
  readonly tensors: ReadonlyMap<string, StoredTensor>;
  /** Names the weights: sha256 over configuration, tensor layout and samples of the files' bytes. */
  readonly hash: string;
  /** Where tokenizer and configuration lie. */
  readonly directory: string;
  /** Tensors of the files that the architecture does not use. */
  readonly unused: readonly string[];
}

export interface OpenOptions {
  /** Where dequantised weights are kept. */
  readonly cacheDir: string;
}

/**
 * Opens a Hugging Face folder (`model.safetensors`, or sharded with its index), a GGUF file, or a folder with one.
 * @throws if files are missing or damaged, or weights and configuration disagree (all mismatches at once).
 */
export async function openCheckpoint(path: string, { cacheDir }: OpenOptions): Promise<Checkpoint> {
  const found = await stat(path).catch(() => undefined);
  if (!found) throw new Error(`model: ${path} does not exist; give a Hugging Face folder or a .gguf file`);
  if (found.isFile() && path.endsWith('.safetensors'))
    throw new Error(`model: ${path} is a file of a checkpoint; give the folder that it lies in`);
  if (found.isFile()) return fromGguf(path, cacheDir);
  const names = await readdir(path);
  const single = names.includes('model.safetensors');
  const sharded = names.includes('model.safetensors.index.json');
  const ggufs = names.filter((name) => name.endsWith('.gguf'));
  if (!single && !sharded) {
    if (ggufs.length === 1) return fromGguf(join(path, ggufs[0]!), cacheDir);
    if (ggufs.length > 1)
      throw new Error(`model: ${path} holds ${ggufs.length} .gguf files; name one: ${ggufs.join(', ')}`);
    if (names.some((name) => name.endsWith('.bin')))
      throw new Error(
        `model: ${path} holds PyTorch .bin weights; convert them: python -c "from transformers import AutoModelForCausalLM as M; M.from_pretrained('${path}').save_pretrained('${path}', safe_serialization=True)"`,
      );
    throw new Error(`model: ${path} holds no model.safetensors, model.safetensors.index.json or .gguf file`);
  }
  const configFile = join(path, 'config.json');
  const config = parseConfig(await readJsonObject(configFile), configFile);
  const index = single ? await readSafetensorsIndex(join(path, 'model.safetensors')) : await readShards(path);
  return assemble(config, index, resolve(path));
}

async function fromGguf(file: string, cacheDir: string): Promise<Checkpoint> {
  const { config, index } = await openGguf(file, cacheDir);
  return assemble(config, index, resolve(dirname(file)));
}

async function assemble(
  config: LlamaConfig,
  { tensors, others }: SafetensorsIndex,
  directory: string,
): Promise<Checkpoint> {
  const expected = expectedTensors(config);
  const problems: string[] = [];
  for (const [name, dims] of expected) {
    const stored = tensors.get(name);
    const unsupported = stored?.dtype === 'int8' ? 'I8' : others.get(name);
    if (unsupported)
      problems.push(`"${name}" has the unsupported type ${unsupported} (supported: F32, F16, BF16)`);
    else if (!stored) problems.push(`"${name}" is missing, config says [${dims}]`);
    else if (stored.dims.join() !== dims.join())
      problems.push(`"${name}" is [${stored.dims}], config says [${dims}]`);
  }
  if (problems.length > 0)
    throw new Error(
      `model: weights and config.json of ${directory} disagree; is this the right config.json?\n  ${problems.join('\n  ')}`,
    );
  const unused = [...tensors.keys(), ...others.keys()].filter((name) => !expected.has(name));
  return { config, tensors, hash: await contentHash(config, tensors), directory, unused };
}

function expectedTensors(config: LlamaConfig): Map<string, readonly number[]> {
  const {
    hiddenSize: d,
    intermediateSize: f,
    vocabularySize,
    headCount,
    keyValueHeadCount,
    headDim,
  } = config;
  const [q, kv] = [headCount * headDim, keyValueHeadCount * headDim];
  const layer = {
    'input_layernorm.weight': [d],
    'self_attn.q_proj.weight': [q, d],
    'self_attn.k_proj.weight': [kv, d],
    'self_attn.v_proj.weight': [kv, d],
    'self_attn.o_proj.weight': [d, q],
    'post_attention_layernorm.weight': [d],
    'mlp.gate_proj.weight': [f, d],
    'mlp.up_proj.weight': [f, d],
    'mlp.down_proj.weight': [d, f],
  };
  return new Map<string, readonly number[]>([
    ['model.embed_tokens.weight', [vocabularySize, d]],
    ...Array.from({ length: config.layerCount }).flatMap((_, index) =>
      Object.entries(layer).map(([name, dims]) => [`model.layers.${index}.${name}`, dims] as const),
    ),
    ['model.norm.weight', [d]],
    ...(config.tied ? [] : [['lm_head.weight', [vocabularySize, d]] as const]),
  ]);
}

async function readShards(directory: string): Promise<SafetensorsIndex> {
  const file = join(directory, 'model.safetensors.index.json');
  const parsed = z
    .looseObject({ weight_map: z.record(z.string(), z.string()) })
    .safeParse(await readJsonObject(file));
  if (!parsed.success)
    throw new Error(`model: ${file} is not a shard index:\n${z.prettifyError(parsed.error)}`);
  const tensors = new Map<string, StoredTensor>();
  const others = new Map<string, string>();
  for (const shard of new Set(Object.values(parsed.data.weight_map))) {
    if (basename(shard) !== shard || shard === '..' || shard === '.')
      throw new Error(`model: ${file} names "${shard}", which is not a file of its folder`);
    const index = await readSafetensorsIndex(join(directory, shard));
    for (const [name, stored] of index.tensors) tensors.set(name, stored);
    for (const [name, type] of index.others) others.set(name, type);
  }
  return { tensors, others };
}

/** Samples instead of all bytes: a 13 GB model would take a minute at every start. */
async function contentHash(config: LlamaConfig, tensors: ReadonlyMap<string, StoredTensor>): Promise<string> {
  const hash = createHash('sha256').update(JSON.stringify(config));
  const sample = Buffer.alloc(4096);
  const handles = new Map<string, Awaited<ReturnType<typeof open>>>();
  try {
    for (const [name, { dtype, dims, file, byteOffset, byteLength }] of [...tensors].sort(([a], [b]) =>
      a < b ? -1 : 1,
    )) {
      const handle = handles.get(file) ?? (await open(file));
      handles.set(file, handle);
      const middle = byteOffset + Math.max(0, Math.floor(byteLength / 2) - sample.length / 2);
      const { bytesRead } = await handle.read(sample, 0, Math.min(sample.length, byteLength), middle);
      hash.update(`${name} ${dtype} ${dims}`).update(sample.subarray(0, bytesRead));
    }
  } finally {
    for (const handle of handles.values()) await handle.close();
  }
  return hash.digest('hex');
}
