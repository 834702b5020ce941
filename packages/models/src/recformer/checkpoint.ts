// A RecFormer on disk, or a BERT-family encoder that becomes the start of one.
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { type Float32Tensor, float32, type NamedTensors, type StoredTensor } from '@fellrec/graph';
import { readJsonObject } from '../checkpoint/json.ts';
import { assertWhole, type ModelPart, modelHash, ofPart, readPart } from '../checkpoint/part.ts';
import {
  readSafetensorsIndex,
  readTensor,
  type SafetensorsIndex,
  writeSafetensors,
} from '../checkpoint/safetensors.ts';
import { assertTensors, contentHash, filesOf, readWeights } from '../checkpoint/weights.ts';
import {
  type EncoderFamily,
  encoderTypes,
  localProjections,
  parseEncoderConfig,
  type RecformerConfig,
  recformerConfigJson,
  recformerTensors,
} from './config.ts';

export interface RecformerCheckpoint {
  readonly config: RecformerConfig;
  /** By Hugging Face's names, without prefix; those of a part, where this is one. */
  readonly tensors: ReadonlyMap<string, StoredTensor>;
  /** Names the weights; of a part it is the whole model's. */
  readonly hash: string;
  /** Which tensors there are, if not all of the model's. */
  readonly part?: ModelPart;
  readonly directory: string;
  /** Tensors of the files that the encoder does not use: head, item table, pooler, position ids. */
  readonly unused: readonly string[];
  /** What the folder holds; anything but `recformer` is a start. */
  readonly family: EncoderFamily;
}

/**
 * Opens a folder with a RecFormer, or with a Longformer, RoBERTa or BERT: its local projections then serve as global
 * ones too, every token type has its only or first one's embedding, and item positions begin at 0, so that the start
 * encodes as its source does. Or a folder with a part of a RecFormer.
 * @throws if files are missing or damaged, or weights and configuration disagree (all mismatches at once).
 */
export async function openRecformer(
  path: string,
  { cacheDir }: { readonly cacheDir: string },
): Promise<RecformerCheckpoint> {
  const names = await filesOf(path, 'a folder with config.json and model.safetensors');
  const index = await readWeights(path, names);
  if (!index) {
    const bin = names.find(
      (name) =>
        /\.(bin|pt|pth)$/.test(name) && !/optimizer|scheduler|scaler|rng_state|training_args/.test(name),
    );
    throw new Error(
      bin
        ? `model: ${path} holds PyTorch weights; convert them: ${conversion(join(path, bin), join(path, 'model.safetensors'))}`
        : `model: ${path} holds no model.safetensors or model.safetensors.index.json`,
    );
  }
  const configFile = join(path, 'config.json');
  const json = await readJsonObject(configFile);
  const parsed = parseEncoderConfig(json, configFile);
  const { config, family } = {
    ...parsed,
    config: { ...parsed.config, startId: await firstToken(path, names, parsed) },
  };
  for (const [name, id] of [
    ['first', config.startId],
    ['padding', config.padId],
  ] as const)
    if (id >= config.vocabularySize)
      throw new Error(
        `model: ${configFile}: the ${name} token is ${id}, the vocabulary has ${config.vocabularySize}`,
      );
  const named = withoutPrefixes(index, path);
  const { layerCount } = config;
  const record = await readPart(path, layerCount);
  if (record && family !== 'recformer')
    throw new Error(`model: ${path} is a part of a RecFormer, its config.json of a ${family}; cut it again`);
  const part = record && { side: record.side, k: record.k };
  const needed = ofPart(sourceTensors({ config, family, typeRows: parsed.typeRows }), part, layerCount);
  assertTensors(needed, named.index, path, part !== undefined);
  const tensors =
    family === 'recformer'
      ? named.index.tensors
      : await asStart(named.index.tensors, config, family, cacheDir);
  const expected = ofPart(recformerTensors(config), part, layerCount);
  const used = new Map([...expected.keys()].map((name) => [name, tensors.get(name)!]));
  const unused = [...named.originals].flatMap(([name, original]) => (expected.has(name) ? [] : [original]));
  return {
    config,
    tensors: used,
    hash: await modelHash(config, used, record, path),
    ...(part && { part }),
    directory: resolve(path),
    unused,
    family,
  };
}

/** Whether a folder's config.json is one of an encoder. */
export async function holdsEncoder(path: string): Promise<boolean> {
  const file = join(path, 'config.json');
  if (!existsSync(file)) return false;
  const { model_type } = await readJsonObject(file);
  return encoderTypes.some((type) => type === model_type);
}

/** All tensors as float32, to be trained. */
export async function readParameters(checkpoint: RecformerCheckpoint): Promise<NamedTensors> {
  assertWhole(checkpoint, 'training all tensors');
  const parameters = new Map<string, Float32Tensor>();
  for (const [name, stored] of checkpoint.tensors) parameters.set(name, await readTensor(stored));
  return parameters;
}

/** Writes (or replaces) a RecFormer's two files. A tokenizer is not among them: it is the start's. */
export async function writeRecformer(
  directory: string,
  config: RecformerConfig,
  tensors: NamedTensors,
): Promise<void> {
  await mkdir(directory, { recursive: true });
  await writeSafetensors(join(directory, 'model.safetensors'), tensors);
  const json = `${JSON.stringify(recformerConfigJson(config), undefined, 2)}\n`;
  await writeFile(join(directory, 'config.json'), json);
}

/** The command line that writes PyTorch's weights as safetensors. */
function conversion(from: string, to: string): string {
  const quoted = (text: string) => `'${text.replaceAll("'", `'\\''`)}'`;
  const program =
    "import sys, torch, safetensors.torch as s; s.save_file({k: v.clone() for k, v in torch.load(sys.argv[1], map_location='cpu', weights_only=True).items()}, sys.argv[2])";
  return `python -c "${program}" ${quoted(from)} ${quoted(to)}`;
}

/** What a tensor is called inside the encoder: `module.` is DistributedDataParallel's, the others a task head's. */
function withoutPrefixes(
  { tensors, others }: SafetensorsIndex,
  path: string,
): {
  readonly index: SafetensorsIndex;
  /** The names in the file, by those without prefix. */
  readonly originals: ReadonlyMap<string, string>;
} {
  const plain = (name: string) => name.replace(/^(module\.)?((longformer|roberta|bert)\.)?/, '');
  const originals = new Map<string, string>();
  for (const name of [...tensors.keys(), ...others.keys()]) {
    const other = originals.get(plain(name));
    if (other)
      throw new Error(`model: ${path} has both "${other}" and "${name}"; which one is the encoder's?`);
    originals.set(plain(name), name);
  }
  const rename = <T>(map: ReadonlyMap<string, T>) =>
    new Map([...map].map(([name, entry]) => [plain(name), entry]));
  return {
    index: { tensors: rename(tensors), others: rename(others) },
    originals,
  };
}

interface Source {
  readonly config: RecformerConfig;
  readonly family: EncoderFamily;
  /** Rows of the source's own token type table. */
  readonly typeRows: number;
}

/** The tensors that the folder must have. */
function sourceTensors({ config, family, typeRows }: Source): Map<string, readonly number[]> {
  const expected = recformerTensors(config);
  if (family === 'recformer') return expected;
  const d = config.hiddenSize;
  expected.delete('embeddings.item_position_embeddings.weight');
  expected.set('embeddings.token_type_embeddings.weight', [typeRows, d]);
  if (family === 'bert') expected.set('embeddings.position_embeddings.weight', [config.positionCount - 2, d]);
  if (family !== 'longformer')
    for (const name of expected.keys()) if (name.includes('_global.')) expected.delete(name);
  return expected;
}

/** The tensors of a RecFormer made of those of a source; only the small tables are written, into the cache. */
async function asStart(
  source: ReadonlyMap<string, StoredTensor>,
  config: RecformerConfig,
  family: EncoderFamily,
  cacheDir: string,
): Promise<ReadonlyMap<string, StoredTensor>> {
  const tensors = new Map(source);
  if (family !== 'longformer')
    for (let index = 0; index < config.layerCount; index++)
      for (const name of localProjections)
        for (const part of ['weight', 'bias']) {
          const path = `encoder.layer.${index}.attention.self.${name}`;
          tensors.set(`${path}_global.${part}`, source.get(`${path}.${part}`)!);
        }
  const key = createHash('sha256').update(await contentHash(config, source));
  const file = join(cacheDir, `recformer-start-${key.digest('hex').slice(0, 32)}.safetensors`);
  const made = await startTables(source, config, family);
  const there = existsSync(file) ? await readSafetensorsIndex(file).catch(() => undefined) : undefined;
  const whole = [...made].every(([name, { dims }]) => there?.tensors.get(name)?.dims.join() === dims.join());
  if (!whole) {
    await mkdir(cacheDir, { recursive: true });
    await writeSafetensors(file, made);
  }
  for (const [name, stored] of (await readSafetensorsIndex(file)).tensors) tensors.set(name, stored);
  return tensors;
}

async function startTables(
  source: ReadonlyMap<string, StoredTensor>,
  { hiddenSize: d, tokenTypeCount, itemPositionCount, positionCount }: RecformerConfig,
  family: EncoderFamily,
): Promise<Map<string, ReturnType<typeof float32>>> {
  const values = async (name: string) => (await readTensor(source.get(name)!)).data;
  const table = (rows: number) => float32(new Float32Array(rows * d), [rows, d]);
  const types = table(tokenTypeCount);
  const only = (await values('embeddings.token_type_embeddings.weight')).subarray(0, d);
  for (let row = 0; row < tokenTypeCount; row++) types.data.set(only, row * d);
  const tables = new Map([
    ['embeddings.token_type_embeddings.weight', types],
    ['embeddings.item_position_embeddings.weight', table(itemPositionCount)],
  ]);
  if (family === 'bert') {
    const positions = table(positionCount);
    positions.data.set(await values('embeddings.position_embeddings.weight'), 2 * d);
    tables.set('embeddings.position_embeddings.weight', positions);
  }
  return tables;
}

/** BERT's config.json does not say which token comes first; its vocabulary does. */
async function firstToken(
  path: string,
  names: readonly string[],
  { config, family }: Pick<Source, 'config' | 'family'>,
): Promise<number> {
  if (family !== 'bert') return config.startId;
  if (!names.includes('tokenizer.json'))
    throw new Error(
      `model: ${path} has no tokenizer.json, which says what [CLS] is; put the model's into its folder`,
    );
  const { model } = await readJsonObject(join(path, 'tokenizer.json'));
  const found = (model as { vocab?: Record<string, unknown> } | undefined)?.vocab?.['[CLS]'];
  if (typeof found !== 'number' || found >= config.vocabularySize)
    throw new Error(`model: ${join(path, 'tokenizer.json')} has no [CLS] among its vocabulary`);
  return found;
}
