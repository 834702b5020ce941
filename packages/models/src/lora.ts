// LoRA (arXiv 2106.09685): W x + (alpha / r) B A dropout(x), on any projection of an architecture, with PEFT's names.
import {
  concat,
  dropout,
  elementCount,
  type Float32Tensor,
  input,
  linear,
  matmul,
  mul,
  type NamedTensors,
  random,
  scale,
  slice,
  type Value,
} from '@fellrec/graph';
import type { LlamaConfig } from './checkpoint/config.ts';

export const projections = [
  'q_proj',
  'k_proj',
  'v_proj',
  'o_proj',
  'gate_proj',
  'up_proj',
  'down_proj',
] as const;
export type Projection = (typeof projections)[number];

/** Projections of the encoders, by PEFT's suffix; `dense` are those after the attention and of the feed-forward part. */
export const encoderProjections = [
  'query',
  'key',
  'value',
  'query_global',
  'key_global',
  'value_global',
  'dense',
] as const;
export type EncoderProjection = (typeof encoderProjections)[number];

/** Adapted projections by their paths, in the model's order, with their sizes. */
export type AdaptedProjections = ReadonlyMap<string, readonly [out: number, in_: number]>;

export interface LoraConfig {
  /** r, the inner size of the product. */
  readonly rank: number;
  /** The product is scaled by alpha / rank. */
  readonly alpha: number;
  /** Probability of dropping an element of the product's input in training. */
  readonly dropout: number;
  readonly targetModules: readonly (Projection | EncoderProjection)[];
  /** Layers that are adapted (default: all), PEFT's layers_to_transform. */
  readonly layers?: readonly number[] | undefined;
}

export type Targets = Pick<LoraConfig, 'targetModules' | 'layers'>;

/** The layer that a projection or a tensor belongs to, by its name; undefined if it is of none. */
export function layerOf(name: string): number | undefined {
  const found = /(?:^|\.)(?:layers|encoder\.layer)\.(\d+)\./.exec(name);
  return found ? Number(found[1]) : undefined;
}

/** Whether a tensor belongs to the layers k .. n - 2 of n. */
export function isMiddle(name: string, k: number, layerCount: number): boolean {
  const layer = layerOf(name);
  return layer !== undefined && layer >= k && layer < layerCount - 1;
}

/** What belongs to some layers; embeddings and the like belong to none. */
export function ofLayers<T>(
  named: ReadonlyMap<string, T>,
  holds: (layer: number) => boolean,
): Map<string, T> {
  return new Map(
    [...named].filter(([name]) => {
      const layer = layerOf(name);
      return layer !== undefined && holds(layer);
    }),
  );
}

/** `layers.0.self_attn.q_proj` for every adapted projection, in the model's order, with its [out, in]. */
export function adaptedProjections(
  config: LlamaConfig,
  { targetModules, layers }: Targets,
): AdaptedProjections {
  const shapes = projectionShapes(config);
  return new Map(
    Array.from({ length: config.layerCount }).flatMap((_, index) =>
      projections
        .filter((name) => targetModules.includes(name) && (layers?.includes(index) ?? true))
        .map(
          (name) =>
            [`layers.${index}.${isAttention(name) ? 'self_attn' : 'mlp'}.${name}`, shapes[name]] as const,
        ),
    ),
  );
}

function projectionShapes(config: LlamaConfig): Record<Projection, readonly [out: number, in_: number]> {
  const { hiddenSize: d, intermediateSize: f, headCount, keyValueHeadCount, headDim } = config;
  const [q, kv] = [headCount * headDim, keyValueHeadCount * headDim];
  return {
    q_proj: [q, d],
    k_proj: [kv, d],
    v_proj: [kv, d],
    o_proj: [d, q],
    gate_proj: [f, d],
    up_proj: [f, d],
    down_proj: [d, f],
  };
}

/** PEFT's name of one half of a projection's adapter. A causal LLaMA holds its layers in a module `model`. */
export function loraName(path: string, half: 'A' | 'B'): string {
  const module = path.startsWith('layers.') ? `model.${path}` : path;
  return `base_model.model.${module}.lora_${half}.weight`;
}

/** Whether an adapter adds nothing to its base, whatever its A: every B is 0, as a fresh one's. */
export function addsNothing(adapter: NamedTensors): boolean {
  return [...adapter].every(
    ([name, { data }]) => !name.endsWith('.lora_B.weight') || data.every((x) => x === 0),
  );
}

/** A fresh adapter: A uniform in +-1/sqrt(in) (Kaiming with a = sqrt 5, as PEFT), B zero, so that it changes nothing. */
export function freshAdapter(
  shapes: AdaptedProjections,
  lora: Pick<LoraConfig, 'rank'>,
  seed: number,
): NamedTensors {
  const tensors = new Map<string, Float32Tensor>();
  for (const [path, [out, in_]] of shapes) {
    const { uniform } = random(seed, 'adapter', path);
    const bound = 1 / Math.sqrt(in_);
    const a = Float32Array.from({ length: lora.rank * in_ }, () => bound * (2 * uniform() - 1));
    tensors.set(loraName(path, 'A'), { dtype: 'float32', dims: [lora.rank, in_], data: a });
    const dims = [out, lora.rank];
    tensors.set(loraName(path, 'B'), { dtype: 'float32', dims, data: new Float32Array(elementCount(dims)) });
  }
  return tensors;
}

/** A fresh adapter of a LLaMA. */
export function initialAdapter(config: LlamaConfig, lora: LoraConfig, seed: number): NamedTensors {
  return freshAdapter(adaptedProjections(config, lora), lora, seed);
}

export interface LoraGraph {
  /** The adapter's tensors as inputs, by PEFT's name. */
  readonly parameters: ReadonlyMap<string, Value>;
  /** Dropout masks, inputs too (bool, the shape of a projection's input), by name: known once the graph is built. */
  readonly masks: ReadonlyMap<string, Value>;
  /** For LayerContext. */
  adapt(paths: readonly string[], x: Value, columns?: Value): readonly (Value | undefined)[];
  /** The adapter of one projection as a matrix (alpha / r) B A [out, in], and the x that it is to be multiplied with. */
  matrix(path: string, x: Value): { readonly weights: Value; readonly x: Value } | undefined;
}

/** The inputs and the computation of an adapter. With `training` and dropout above 0, masks are inputs as well. */
export function loraGraph(
  shapes: AdaptedProjections,
  lora: LoraConfig,
  { training }: { training: boolean },
): LoraGraph {
  const parameters = new Map<string, Value>();
  const masks = new Map<string, Value>();
  const dropping = training && lora.dropout > 0;
  for (const [path, [out, in_]] of shapes) {
    parameters.set(loraName(path, 'A'), input(loraName(path, 'A'), 'float32', [lora.rank, in_]));
    parameters.set(loraName(path, 'B'), input(loraName(path, 'B'), 'float32', [out, lora.rank]));
  }
  function masked(path: string, x: Value): Value {
    const name = `dropout.${path}`;
    const mask = input(name, 'bool', x.shape);
    masks.set(name, mask);
    return dropout(mask, x, lora.dropout);
  }
  return {
    parameters,
    masks,
    adapt(paths, x, columns) {
      const adapted = paths.filter((path) => shapes.has(path));
      if (adapted.length === 0) return paths.map(() => undefined);
      // Without dropout of their own, one product with all A; else each of its own masked x.
      const groups = dropping ? adapted.map((path) => [path]) : [adapted];
      const additions = new Map(
        groups.flatMap((group) => {
          const a = concat(
            group.map((path) => parameters.get(loraName(path, 'A'))!),
            0,
          );
          const input = dropping ? masked(group[0]!, x) : x;
          const inner = scale(linear(input, columns ? mul(a, columns) : a), lora.alpha / lora.rank);
          return group.map((path, i) => {
            const own = group.length === 1 ? inner : slice(inner, 1, i * lora.rank, lora.rank); // [n, rank]
            return [path, linear(own, parameters.get(loraName(path, 'B'))!)] as const;
          });
        }),
      );
      return paths.map((path) => additions.get(path));
    },
    matrix(path, x) {
      if (!shapes.has(path)) return undefined;
      const [a, b] = (['A', 'B'] as const).map((half) => parameters.get(loraName(path, half))!);
      return {
        weights: scale(matmul(b!, a!), lora.alpha / lora.rank),
        x: dropping ? masked(path, x) : x,
      };
    },
  };
}

function isAttention(name: Projection): boolean {
  return name === 'q_proj' || name === 'k_proj' || name === 'v_proj' || name === 'o_proj';
}
