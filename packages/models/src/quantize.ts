// A base of 8-bit integers: faster than float32 and another model than it, so an option that is never called equal.
// Weights are rounded per column, twice: by output for the forward pass, by input for the gradient. Activations are
// rounded as they come, which their few large columns would spoil; so, as SmoothQuant (arXiv 2211.10438), each column of
// activations is divided by a fold that its weights are multiplied by: x W^T = (x / fold) (W fold)^T. The divisions are
// free: they sit in norm weights, and in the rows of up_proj.
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import {
  type Float32Tensor,
  float32,
  input,
  type QuantizedMatrix,
  quantizedLinear,
  type Runtime,
} from '@fellrec/graph';
import { batchOf } from './batch.ts';
import type { Checkpoint } from './checkpoint/checkpoint.ts';
import { assertWhole } from './checkpoint/part.ts';
import { readSafetensorsIndex, readTensor, writeSafetensorsStream } from './checkpoint/safetensors.ts';
import { type FoldedGroup, foldName, llama, type QuantizedBase } from './llama.ts';
import { adaptedProjections, projections } from './lora.ts';
import { tappingProgram } from './programs.ts';

export const bases = ['float32', 'int8', 'int8-fast'] as const;
/** How the frozen weights are held. */
export type Base = (typeof bases)[number];

export interface QuantizeOptions {
  readonly base: Exclude<Base, 'float32'>;
  /** Token sequences like those to come: a column's fold follows the largest activation on them. */
  readonly calibration: readonly (readonly number[])[];
  readonly runtime: Runtime;
  /** Where the quantised weights are kept. */
  readonly cacheDir: string;
}

/** Of the quantised file: raised when the same inputs give other contents. */
const format = 1;

/** 8-bit terms that activations are rounded to, and SmoothQuant's alpha: how much of their range moves into the weights. */
const settings: Record<QuantizeOptions['base'], { readonly terms: 1 | 2; readonly strength: number }> = {
  int8: { terms: 2, strength: 0.5 },
  'int8-fast': { terms: 1, strength: 0.65 },
};

/** Projections that read one input and so share its fold. */
const groups: Record<FoldedGroup, readonly string[]> = {
  attention: ['self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj'],
  mlp: ['mlp.gate_proj', 'mlp.up_proj'],
  down: ['mlp.down_proj'],
};
const groupsInOrder = Object.entries(groups) as [FoldedGroup, readonly string[]][];

/** Opens the quantised weights of a checkpoint; computes them first if this checkpoint, base and calibration are new. */
export async function quantizeBase(
  checkpoint: Checkpoint,
  { base, calibration, runtime, cacheDir }: QuantizeOptions,
): Promise<QuantizedBase> {
  if (calibration.length === 0) throw new Error('model: a quantised base needs sequences to calibrate on');
  assertWhole(checkpoint, 'a quantised base');
  const { terms, strength } = settings[base];
  const key = createHash('sha256')
    .update(JSON.stringify([format, checkpoint.hash, strength, calibration]))
    .digest('hex')
    .slice(0, 32);
  const file = join(resolve(cacheDir), `int8-${key}.safetensors`);
  if (!existsSync(file)) {
    await mkdir(cacheDir, { recursive: true });
    const largest = await largestActivations(checkpoint, calibration, runtime);
    await writeQuantized(file, checkpoint, await foldsOf(checkpoint, largest, strength));
  }
  const signed = await openQuantized(file);
  if (await hasExactProducts(signed, runtime)) return baseOf(signed, terms);
  const unsignedFile = join(resolve(cacheDir), `uint8-${key}.safetensors`);
  if (!existsSync(unsignedFile)) await writeUnsigned(unsignedFile, signed);
  const unsigned = await openQuantized(unsignedFile);
  if (await hasExactProducts(unsigned, runtime)) return baseOf(unsigned, terms);
  throw new Error(
    'model: 8-bit products are not exact on this processor, so a quantised base would be wrong; use the base float32',
  );
}

type Quantized = QuantizedBase['tensors'];
const openQuantized = async (file: string): Promise<Quantized> => (await readSafetensorsIndex(file)).tensors;

function matrixOf(tensors: Quantized, name: string): QuantizedMatrix {
  return { name, values: tensors.get(`${name}.values`)!, scales: tensors.get(`${name}.scales`)! };
}

function baseOf(tensors: Quantized, terms: 1 | 2): QuantizedBase {
  const matrix = (name: string) => matrixOf(tensors, name);
  return {
    tensors,
    layer: (path) => ({ forward: matrix(`${path}.forward`), backward: matrix(`${path}.backward`), terms }),
    head: (backward) => ({ forward: matrix('head.forward'), backward, terms }),
  };
}

/** The same integers around 128. */
async function writeUnsigned(file: string, tensors: Quantized): Promise<void> {
  const layout = new Map(
    [...tensors].map(([name, { dtype, dims }]) => [
      name,
      { dtype: dtype === 'int8' ? ('uint8' as const) : dtype, dims },
    ]),
  );
  await writeSafetensorsStream(file, layout, async (name) => {
    const { data } = await readTensor(tensors.get(name)!);
    return layout.get(name)!.dtype === 'uint8' ? around128(data) : data;
  });
}

function around128(values: Float32Array): Uint8Array {
  const shifted = new Uint8Array(values.length);
  for (let i = 0; i < values.length; i++) shifted[i] = values[i]! + 128;
  return shifted;
}

/** Not where a processor adds 8-bit products in 16 bits: a row of ones is to give the sums of a matrix' columns. */
async function hasExactProducts(tensors: Quantized, runtime: Runtime): Promise<boolean> {
  const matrix = matrixOf(tensors, 'layers.0.mlp.down_proj.forward');
  const [rows, columns] = matrix.values.dims as [number, number];
  const x = input('x', 'float32', [1, rows]);
  const y = quantizedLinear(x, {
    forward: matrix,
    backward: input('unused', 'float32', [columns, rows]),
    terms: 1,
  });
  const program = await runtime.compile({ y }, { prepack: false });
  const found = (await program.run({ x: float32(new Float32Array(rows).fill(1), [1, rows]) })).y;
  await program.dispose();
  const [{ data: values }, { data: scales }] = await Promise.all([
    readTensor(matrix.values),
    readTensor(matrix.scales),
  ]);
  const zero = matrix.values.dtype === 'uint8' ? 128 : 0;
  return scales.every((scale, j) => {
    let sum = 0;
    for (let i = 0; i < rows; i++) sum += values[i * columns + j]! - zero;
    // Half an integer: the sums are whole.
    return Math.abs(Number(found.data[j]) / scale - sum) <= 0.5;
  });
}

/** The largest magnitude of every column that a group of projections reads, by `foldName`. */
async function largestActivations(
  checkpoint: Checkpoint,
  calibration: readonly (readonly number[])[],
  runtime: Runtime,
): Promise<Map<string, Float32Array>> {
  const { config } = checkpoint;
  const tapped = tappingProgram(llama(checkpoint), config);
  const outputs = Object.fromEntries(
    Array.from({ length: config.layerCount }).flatMap((_, layer) =>
      groupsInOrder.map(([group, [first]]) => [foldName(layer, group), tapped[`layers.${layer}.${first}`]!]),
    ),
  );
  const program = await runtime.compile(outputs, { prepack: false });
  const largest = new Map<string, Float32Array>();
  try {
    for (const ids of calibration) {
      const found = await program.run(batchOf(config, [{ ids }], { step: 1 }).feeds);
      for (const [fold, { data, dims }] of Object.entries(found) as [string, Float32Tensor][])
        largest.set(fold, columnMaxima(data, dims[1]!, largest.get(fold)));
    }
  } finally {
    await program.dispose();
  }
  return largest;
}

/** fold_j = max|x_j|^strength / max|W_j|^(1 - strength), divided by the geometric mean of all columns'. */
async function foldsOf(
  { config, tensors }: Checkpoint,
  largest: ReadonlyMap<string, Float32Array>,
  strength: number,
): Promise<Map<string, Float32Array>> {
  const folds = new Map<string, Float32Array>();
  for (let layer = 0; layer < config.layerCount; layer++)
    for (const [group, names] of groupsInOrder) {
      const fold = foldName(layer, group);
      const activations = largest.get(fold)!;
      let weights: Float32Array | undefined;
      for (const name of names) {
        const { data } = await readTensor(tensors.get(`model.layers.${layer}.${name}.weight`)!);
        weights = columnMaxima(data, activations.length, weights);
      }
      const logs = Float64Array.from(
        activations,
        (x, j) =>
          strength * Math.log(Math.max(x, 1e-5)) - (1 - strength) * Math.log(Math.max(weights![j]!, 1e-5)),
      );
      const mean = logs.reduce((sum, log) => sum + log, 0) / logs.length;
      folds.set(
        fold,
        Float32Array.from(logs, (log) => Math.exp(log - mean)),
      );
    }
  return folds;
}

type Pass = 'forward' | 'backward';
interface Entry {
  readonly dtype: 'float32' | 'int8';
  readonly dims: readonly number[];
  readonly values: () => Promise<Float32Array | Int8Array>;
}

async function writeQuantized(
  file: string,
  { config, tensors }: Checkpoint,
  folds: ReadonlyMap<string, Float32Array>,
): Promise<void> {
  const read = async (name: string) => (await readTensor(tensors.get(name)!)).data;
  const vectors = new Map<string, Entry>();
  const matrices = new Map<string, Entry>();
  const vector = (name: string, length: number, values: Entry['values']) =>
    vectors.set(name, { dtype: 'float32', dims: [length], values });
  function matrix(name: string, source: string, pass: Pass, columns?: string, rows?: string): void {
    const [out, in_] = tensors.get(source)!.dims as readonly [number, number];
    const weights = async () =>
      scaled(await read(source), in_, folds.get(columns ?? ''), folds.get(rows ?? ''));
    const [length, dims] = pass === 'forward' ? [out, [in_, out]] : [in_, [out, in_]];
    vector(`${name}.scales`, length, async () => steps(await weights(), in_, pass));
    const values = async () => rounded(await weights(), in_, pass);
    matrices.set(`${name}.values`, { dtype: 'int8', dims, values });
  }

  for (const [fold, data] of folds) vector(fold, data.length, async () => data);
  for (let layer = 0; layer < config.layerCount; layer++)
    for (const [norm, group] of [
      ['input_layernorm', 'attention'],
      ['post_attention_layernorm', 'mlp'],
    ] as const) {
      const name = `model.layers.${layer}.${norm}.weight`;
      const fold = folds.get(foldName(layer, group))!;
      vector(name, config.hiddenSize, async () => (await read(name)).map((w, i) => w / fold[i]!));
    }
  for (const path of adaptedProjections(config, { targetModules: projections }).keys()) {
    const layer = Number(path.split('.')[1]);
    const group = groupsInOrder.find(([, names]) => names.some((name) => path.endsWith(name)))?.[0];
    const columns = group && foldName(layer, group);
    const rows = path.endsWith('up_proj') ? foldName(layer, 'down') : undefined;
    for (const pass of ['forward', 'backward'] as const)
      matrix(`${path}.${pass}`, `model.${path}.weight`, pass, columns, rows);
  }
  matrix('head.forward', config.tied ? 'model.embed_tokens.weight' : 'lm_head.weight', 'forward');
  // Integers last, so that all floats are aligned.
  const entries = new Map([...vectors, ...matrices]);
  await writeSafetensorsStream(file, entries, (name) => entries.get(name)!.values());
}

/** The largest magnitude in each column of [rows, columns], or of `before`. */
function columnMaxima(data: Float32Array, columns: number, before?: Float32Array): Float32Array {
  const largest = before ?? new Float32Array(columns);
  for (let from = 0; from < data.length; from += columns)
    for (let j = 0; j < columns; j++) {
      const magnitude = Math.abs(data[from + j]!);
      if (magnitude > largest[j]!) largest[j] = magnitude;
    }
  return largest;
}

function rowMaxima(data: Float32Array, columns: number): Float32Array {
  return Float32Array.from({ length: data.length / columns }, (_, row) => {
    let largest = 0;
    for (let i = row * columns; i < (row + 1) * columns; i++) largest = Math.max(largest, Math.abs(data[i]!));
    return largest;
  });
}

/** W [out, in], changed in place: times `columns` [in], divided by `rows` [out]. */
function scaled(w: Float32Array, in_: number, columns?: Float32Array, rows?: Float32Array): Float32Array {
  if (!columns && !rows) return w;
  for (let o = 0; o * in_ < w.length; o++) {
    const by = 1 / (rows?.[o] ?? 1);
    for (let i = 0; i < in_; i++) w[o * in_ + i]! *= by * (columns?.[i] ?? 1);
  }
  return w;
}

/** 1/127 of the largest magnitude of W's rows for the forward pass, of its columns for the gradient. */
function steps(w: Float32Array, in_: number, pass: Pass): Float32Array {
  const largest = pass === 'forward' ? rowMaxima(w, in_) : columnMaxima(w, in_);
  return largest.map((x) => Math.max(x, 1e-30) / 127);
}

/** W [out, in] in its steps: transposed to [in, out] for the forward pass. */
function rounded(w: Float32Array, in_: number, pass: Pass): Int8Array {
  const out = w.length / in_;
  const inverse = steps(w, in_, pass).map((step) => 1 / step);
  const values = new Int8Array(w.length);
  if (pass === 'backward') {
    for (let o = 0; o < out; o++)
      for (let i = 0; i < in_; i++) values[o * in_ + i] = Math.round(w[o * in_ + i]! * inverse[i]!);
    return values;
  }
  // Some rows at a time, so that what is read and written stays in the cache.
  const block = 64;
  for (let from = 0; from < out; from += block) {
    const to = Math.min(from + block, out);
    for (let i = 0; i < in_; i++)
      for (let o = from; o < to; o++) values[i * out + o] = Math.round(w[o * in_ + i]! * inverse[o]!);
  }
  return values;
}
