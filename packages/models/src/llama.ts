// The LLaMA family (arXiv 2302.13971) as a graph: RMSNorm, rotary positions, grouped-query attention, SwiGLU.
// Weights keep the names of Hugging Face's checkpoints.
import {
  add,
  type Float32Tensor,
  float32,
  gather,
  linear,
  mul,
  reshape,
  rmsNorm,
  rotary,
  scale,
  silu,
  times,
  transpose,
  type Value,
  weight,
} from '@fellrec/graph';
import type { Checkpoint } from './checkpoint/checkpoint.ts';
import type { LlamaConfig } from './checkpoint/config.ts';
import type { LayerContext, LayeredModel } from './layered-model.ts';

/** The graph of a checkpoint; its weights stay in their files. */
export function llama({ config, tensors }: Pick<Checkpoint, 'config' | 'tensors'>): LayeredModel {
  const { headCount: H, keyValueHeadCount: KV, headDim, normEpsilon } = config;
  const stored = (name: string) => weight(name, tensors.get(name)!);
  const embedding = stored('model.embed_tokens.weight'); // [vocabulary, d]

  function attention(index: number, x: Value, context: LayerContext): Value {
    const { batch, time, positions, cos, sin } = context;
    const path = `layers.${index}.self_attn`;
    const heads = (name: string, count: number) =>
      transpose(reshape(project(`${path}.${name}`, x, context), [batch, time, count, headDim]), [0, 2, 1, 3]);
    // The scale of the scores is linear, so it goes into the small tables of the queries' rotation.
    const s = 1 / Math.sqrt(headDim);
    const read = context.attend(index, {
      queries: rotary(heads('q_proj', H), positions, scale(cos, s), scale(sin, s)), // [batch, H, time, headDim]
      keys: rotary(heads('k_proj', KV), positions, cos, sin), // [batch, KV, time, headDim]
      values: heads('v_proj', KV),
    });
    return reshape(transpose(read, [0, 2, 1, 3]), [times(batch, time), H * headDim]);
  }

  function project(path: string, x: Value, context: LayerContext): Value {
    const base = linear(x, stored(`model.${path}.weight`));
    const addition = context.adapt?.(path, x);
    return addition ? add(base, addition) : base;
  }

  return {
    layerCount: config.layerCount,
    embed: (ids) => {
      const flat = reshape(ids, [times(...ids.shape)]);
      return gather(embedding, flat); // [batch * time, d]
    },
    layer(index, hidden, context, rows) {
      const path = `layers.${index}`;
      const norm = (name: string, x: Value) =>
        rmsNorm(x, stored(`model.${path}.${name}.weight`), normEpsilon);
      const take = (x: Value) => (rows ? gather(x, rows) : x);
      const read = take(attention(index, norm('input_layernorm', hidden), context));
      const x = add(take(hidden), project(`${path}.self_attn.o_proj`, read, context));
      const h = norm('post_attention_layernorm', x);
      const gate = silu(project(`${path}.mlp.gate_proj`, h, context));
      const up = project(`${path}.mlp.up_proj`, h, context);
      return add(x, project(`${path}.mlp.down_proj`, mul(gate, up), context));
    },
    normalize: (hidden) => rmsNorm(hidden, stored('model.norm.weight'), normEpsilon),
    logits: (normalized) => linear(normalized, config.tied ? embedding : stored('lm_head.weight')),
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
