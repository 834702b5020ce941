// A LLaMA checkpoint on disk: its configuration and where its tensors lie.
import { existsSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import type { StoredTensor } from '@fellrec/graph';
import { type LlamaConfig, parseConfig } from './config.ts';
import { openGguf } from './gguf.ts';
import { readJsonObject } from './json.ts';
import { type ModelPart, modelHash, ofPart, readPart } from './part.ts';
import type { SafetensorsIndex } from './safetensors.ts';
import { assertTensors, filesOf, readWeights } from './weights.ts';

export interface Checkpoint {
  readonly config: LlamaConfig;
  /** By Hugging Face's names; those of a part, where this is one. */
  readonly tensors: ReadonlyMap<string, StoredTensor>;
  /**
   * Names the weights: sha256 over configuration, tensor layout and samples of the files' bytes. Of a part it is the
   * whole model's.
   */
  readonly hash: string;
  /** Which tensors there are, if not all of the model's. */
  readonly part?: ModelPart;
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
 * Opens a Hugging Face folder (`model.safetensors`, or sharded with its index), a GGUF file, or a folder with one; or a
 * folder with a part of a model.
 * @throws if files are missing or damaged, or weights and configuration disagree (all mismatches at once).
 */
export async function openCheckpoint(path: string, { cacheDir }: OpenOptions): Promise<Checkpoint> {
  if (path.endsWith('.gguf') && existsSync(path)) return fromGguf(path, cacheDir);
  const names = await filesOf(path, 'a Hugging Face folder or a .gguf file');
  const index = await readWeights(path, names);
  const ggufs = names.filter((name) => name.endsWith('.gguf'));
  if (!index) {
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
  return assemble(config, index, resolve(path));
}

async function fromGguf(file: string, cacheDir: string): Promise<Checkpoint> {
  const { config, index } = await openGguf(file, cacheDir);
  return assemble(config, index, resolve(dirname(file)));
}

async function assemble(
  config: LlamaConfig,
  index: SafetensorsIndex,
  directory: string,
): Promise<Checkpoint> {
  const record = await readPart(directory, config.layerCount);
  const part = record && { side: record.side, k: record.k };
  const expected = ofPart(expectedTensors(config), part, config.layerCount);
  assertTensors(expected, index, directory, part !== undefined);
  const { tensors, others } = index;
  const unused = [...tensors.keys(), ...others.keys()].filter((name) => !expected.has(name));
  const hash = await modelHash(config, tensors, record, directory);
  return { config, tensors, hash, ...(part && { part }), directory, unused };
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
