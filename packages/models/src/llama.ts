// The LLaMA family (arXiv 2302.13971) as a graph: RMSNorm, rotary positions, grouped-query attention, SwiGLU.
// Weights keep the names of Hugging Face's checkpoints.
import {
  add,
  div,
  type Float32Tensor,
  float32,
  gather,
  linear,
  mul,
  type QuantizedMatrix,
  quantizedLinear,
  rmsNorm,
  rotary,
  type StoredTensor,
  scale,
  silu,
  type Value,
  weight,
} from '@fellrec/graph';
import type { Checkpoint } from './checkpoint/checkpoint.ts';
import type { LlamaConfig } from './checkpoint/config.ts';
import { tensorOf } from './checkpoint/part.ts';
import type { CausalModel, LayerContext } from './layered-model.ts';

/** A matrix for the forward pass, what its gradient goes through, and the 8-bit terms that activations are rounded to. */
interface QuantizedProjection {
  readonly forward: QuantizedMatrix;
  readonly backward: QuantizedMatrix | Value;
  readonly terms: 1 | 2;
}

/** Weights as 8-bit integers (`quantize.ts`). */
export interface QuantizedBase {
  /** Norm weights by Hugging Face's names, divided by the folds; the folds by `foldName`. */
  readonly tensors: ReadonlyMap<string, StoredTensor>;
  /** A projection by its path, `layers.0.self_attn.q_proj`. */
  layer(path: string): QuantizedProjection;
  /** The head; its gradient goes through the float32 matrix. */
  head(matrix: Value): QuantizedProjection;
}

/** Projections of a layer that read one input. */
export type FoldedGroup = 'attention' | 'mlp' | 'down';

/** What a group's input is divided by, column by column, and its weights are multiplied by, [in]. */
export function foldName(layer: number, group: FoldedGroup): string {
  return `layers.${layer}.${group}.fold`;
}

/** The graph of a checkpoint; its weights stay in their files. With `quantized`, on that base instead of float32. */
export function llama(checkpoint: Checkpoint, quantized?: QuantizedBase): CausalModel {
  const { config } = checkpoint;
  const { headDim, normEpsilon } = config;
  const stored = (name: string) => weight(name, quantized?.tensors.get(name) ?? tensorOf(checkpoint, name));
  const embedding = () => stored('model.embed_tokens.weight'); // [vocabulary, d]

  const fold = (name: string | undefined) => {
    const found = quantized?.tensors.get(name ?? '');
    return found && weight(name!, found);
  };

  /** Projections of one x. A quantised base has divided x by the fold `columns`, and the projections by theirs in `rows`. */
  function project(
    paths: readonly string[],
    x: Value,
    context: LayerContext,
    { columns, rows = [] }: { columns?: string; rows?: readonly (string | undefined)[] } = {},
  ): Value[] {
    const additions = context.adapt?.(paths, x, fold(columns)) ?? [];
    return paths.map((path, i) => {
      const base = quantized
        ? quantizedLinear(x, quantized.layer(path))
        : linear(x, stored(`model.${path}.weight`));
      const divisor = fold(rows[i]);
      const addition = additions[i] && divisor ? div(additions[i], divisor) : additions[i];
      return addition ? add(base, addition) : base;
    });
  }

  function attention(index: number, x: Value, context: LayerContext): Value {
    const { positions, cos, sin } = context;
    const path = (name: string) => `layers.${index}.self_attn.${name}_proj`;
    const [q, k, v] = project([path('q'), path('k'), path('v')], x, context, {
      columns: foldName(index, 'attention'),
    }) as [Value, Value, Value];
    // The scale of the scores is linear, so it goes into the small tables of the queries' rotation.
    const s = 1 / Math.sqrt(headDim);
    return context.attend(index, {
      queries: rotary(q, positions, scale(cos, s), scale(sin, s)), // [tokens, H * headDim]
      keys: rotary(k, positions, cos, sin), // [tokens, KV * headDim]
      values: v,
    });
  }

  return {
    layerCount: config.layerCount,
    words: embedding,
    embed: (ids) => gather(embedding(), ids), // [tokens, d]
    layer(index, hidden, context, rows) {
      const path = `layers.${index}`;
      const norm = (name: string, x: Value) =>
        rmsNorm(x, stored(`model.${path}.${name}.weight`), normEpsilon);
      const take = (x: Value) => (rows ? gather(x, rows) : x);
      const read = take(attention(index, norm('input_layernorm', hidden), context));
      const x = add(take(hidden), project([`${path}.self_attn.o_proj`], read, context)[0]!);
      const h = norm('post_attention_layernorm', x);
      const inner = [`${path}.mlp.gate_proj`, `${path}.mlp.up_proj`];
      const [gate, up] = project(inner, h, context, {
        columns: foldName(index, 'mlp'),
        rows: [undefined, foldName(index, 'down')],
      }) as [Value, Value];
      const m = mul(silu(gate), up);
      return add(x, project([`${path}.mlp.down_proj`], m, context, { columns: foldName(index, 'down') })[0]!);
    },
    normalize: (hidden) => rmsNorm(hidden, stored('model.norm.weight'), normEpsilon),
    logits(normalized) {
      const head = config.tied ? embedding() : stored('lm_head.weight');
      return quantized ? quantizedLinear(normalized, quantized.head(head)) : linear(normalized, head);
    },
  };
}

/** Rotary angles' cosine and sine for positions 0 .. count - 1, [count, headDim / 2] each; llama3 scaling if configured. */
export function rotaryTables(
  { headDim, ropeTheta, ropeScaling }: LlamaConfig,
  count: number,
): { readonly cos: Float32Tensor; readonly sin: Float32Tensor } {
  const half = headDim / 2;
  const cos = new Float32Array(count * half);
  const sin = new Float32Array(count * half);
  for (let i = 0; i < half; i++) {
    // transformers computes inverse frequencies and angles in float32.
    let frequency = Math.fround(1 / Math.fround(ropeTheta ** Math.fround((2 * i) / headDim)));
    if (ropeScaling) frequency = Math.fround(llama3Frequency(frequency, ropeScaling));
    for (let position = 0; position < count; position++) {
      const angle = Math.fround(position * frequency);
      cos[position * half + i] = Math.cos(angle);
      sin[position * half + i] = Math.sin(angle);
    }
  }
  return { cos: float32(cos, [count, half]), sin: float32(sin, [count, half]) };
}

/** Llama 3.1's scaling: long wavelengths are slowed by `factor`, short ones kept, those between interpolated. */
function llama3Frequency(
  frequency: number,
  {
    factor,
    lowFrequencyFactor,
    highFrequencyFactor,
    originalMaxPositions,
  }: NonNullable<LlamaConfig['ropeScaling']>,
): number {
  const wavelength = (2 * Math.PI) / frequency;
  if (wavelength > originalMaxPositions / lowFrequencyFactor) return frequency / factor;
  if (wavelength < originalMaxPositions / highFrequencyFactor) return frequency;
  const smooth =
    (originalMaxPositions / wavelength - lowFrequencyFactor) / (highFrequencyFactor - lowFrequencyFactor);
  return ((1 - smooth) * frequency) / factor + smooth * frequency;
}
