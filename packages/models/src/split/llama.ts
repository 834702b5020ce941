// LLaMA cut between layers. What all sequences begin with is computed once: its tokens come first, the sequences' after.
import {
  concat,
  type Dim,
  input,
  int64,
  plus,
  reshape,
  slice,
  type Tensor,
  times,
  type Value,
} from '@fellrec/graph';
import { selfAttention } from '../attention.ts';
import { batchOf, dropoutFeeds, sharedPrefix } from '../batch.ts';
import type { LlamaConfig } from '../checkpoint/config.ts';
import { decodingCache } from '../decoding.ts';
import type { Attended, CausalModel, LayerContext } from '../layered-model.ts';
import { adaptedProjections, type LoraGraph, loraGraph, ofLayers } from '../lora.ts';
import { decodingContext, grownName, keyName, valueName } from '../programs.ts';
import { type CutModel, isIn, type LayerOptions, type LayerRange, runRange } from './cut-model.ts';
import type { TokenLayout } from './middle.ts';

/** With tokens that all sequences begin with, or without. */
export type PackedForm = 'prefixed' | 'plain';

export const packedForm = ({ prefix }: Pick<TokenLayout, 'prefix'>): PackedForm =>
  prefix > 0 ? 'prefixed' : 'plain';

export function llamaCut(model: CausalModel, config: LlamaConfig): CutModel {
  const loraOf = (range: LayerRange, { trained, training }: LayerOptions): LoraGraph | undefined => {
    if (!trained?.lora) return undefined;
    const shapes = ofLayers(adaptedProjections(config, trained.lora), isIn(range));
    return loraGraph(shapes, trained.lora, { training });
  };
  return {
    layerCount: config.layerCount,
    hiddenSize: config.hiddenSize,
    vocabularySize: config.vocabularySize,
    tied: config.tied,
    words: model.words,
    embedding: () => ({ states: model.embed(input('ids', 'int64', ['tokens'])) }),
    layout(sequences) {
      const prefix = sharedPrefix(sequences);
      const lengths = sequences.map(({ ids }) => ids.length);
      return { lengths, prefix, time: batchOf(config, sequences, { prefix }).time };
    },
    embeddingFeeds(sequences, { time, prefix }) {
      const own = sequences.flatMap(({ ids }) =>
        Array.from({ length: time }, (_, t) => ids[prefix + t] ?? 0),
      );
      const all = [...(sequences[0]?.ids.slice(0, prefix) ?? []), ...own];
      return { ids: int64(all, [all.length]) };
    },
    head: (hidden) => model.logits(model.normalize(hidden)),
    adapted: (lora) => adaptedProjections(config, lora),
    problem({ lengths }) {
      const longest = Math.max(...lengths);
      return longest > config.contextLength
        ? `a sequence has ${longest} tokens, the model's context is ${config.contextLength}`
        : undefined;
    },
    form: packedForm,
    layers(range, form, options) {
      const lora = loraOf(range, options);
      const read: Record<string, Value> = {};
      const { tokens, context } = packedContext(config, form as PackedForm, {
        lora,
        onRead(layer, keys, values) {
          read[keyName(layer)] = keys;
          read[valueName(layer)] = values;
        },
      });
      const hidden = input('hidden', 'float32', [tokens, config.hiddenSize]);
      const states = runRange(model, range, hidden, context);
      return {
        hidden,
        states,
        parameters: lora?.parameters ?? new Map(),
        masks: lora?.masks ?? new Map(),
        read,
      };
    },
    feeds: (layout) => packedFeeds(config, layout),
    dropout(masks, rate, { lengths, time, prefix }, { seed, sequences }) {
      const rows = sequences.map((stream, i) => ({
        stream,
        tokens: lengths[i]! - prefix,
        stride: time,
        labels: 0,
      }));
      return dropoutFeeds(masks, rate, [...prefixRows(prefix), ...rows], seed);
    },
    decoding: {
      layers(range, options) {
        const outputs: Record<string, Value> = {};
        const { rows, context } = decodingContext(config, {
          lora: loraOf(range, options),
          onRead(layer, keys, values) {
            outputs[grownName(keyName(layer))] = keys;
            outputs[grownName(valueName(layer))] = values;
          },
        });
        const hidden = input('hidden', 'float32', [rows, config.hiddenSize]);
        return { states: runRange(model, range, hidden, context), ...outputs };
      },
      cache: (read, { lengths, time, prefix }, beams) =>
        decodingCache(config, read, { lengths, time: prefix + time, beams }),
    },
  };
}

/** The prefix has dropout masks of its own, as where it is computed alone. */
export function prefixRows(prefix: number) {
  return prefix === 0 ? [] : [{ stream: 'prefix', tokens: prefix, stride: prefix, labels: 0 }];
}

interface PackedOptions {
  readonly lora?: LoraGraph | undefined;
  readonly onRead?: (layer: number, keys: Value, values: Value) => void;
}

/** The context of packed tokens, and how many there are. */
export function packedContext(
  { headCount: H, keyValueHeadCount: KV, headDim }: LlamaConfig,
  form: PackedForm,
  { lora, onRead }: PackedOptions,
): { readonly tokens: Dim; readonly context: LayerContext } {
  const own = times('batch', 'time');
  const positions = reshape(input('positions', 'int64', ['batch', 'time']), [own]);
  const groups = H / KV;
  const behind = form === 'prefixed' ? plus('prefix', 'time') : 'time';
  const mask = input('mask', 'float32', ['batch', 1, times(groups, 'time'), behind]);
  const sequences = { batch: 'batch', time: 'time', headDim, mask } as const;
  const tables = {
    cos: input('cos', 'float32', ['table', headDim / 2]),
    sin: input('sin', 'float32', ['table', headDim / 2]),
  };
  const adapt = lora && { adapt: lora.adapt };
  if (form === 'plain')
    return {
      tokens: own,
      context: {
        ...tables,
        ...adapt,
        positions,
        attend(layer, attended) {
          const found = selfAttention(attended, sequences);
          onRead?.(layer, found.keys, found.values);
          return found.read;
        },
      },
    };
  const prefixMask = input('prefixMask', 'float32', [1, 1, times(groups, 'prefix'), 'prefix']);
  return {
    tokens: plus('prefix', own),
    context: {
      ...tables,
      ...adapt,
      positions: concat([input('prefixPositions', 'int64', ['prefix']), positions], 0),
      attend(layer, attended) {
        const first = selfAttention(part(attended, 0, 'prefix'), {
          batch: 1,
          time: 'prefix',
          headDim,
          mask: prefixMask,
        });
        const rest = selfAttention(part(attended, 'prefix', own), { ...sequences, prefix: first });
        onRead?.(layer, rest.keys, rest.values);
        return concat([first.read, rest.read], 0);
      },
    },
  };
}

function part({ queries, keys, values }: Attended, before: Dim, size: Dim): Attended {
  const rows = (x: Value) => slice(x, 0, before, size);
  return { queries: rows(queries), keys: rows(keys), values: rows(values) };
}

/** What `packedContext` reads. */
function packedFeeds(config: LlamaConfig, { lengths, time, prefix }: TokenLayout): Record<string, Tensor> {
  // Which tokens they are does not matter here.
  const blank = (length: number) => ({ ids: new Array<number>(length).fill(0) });
  const sequences = lengths.map(blank);
  const { ids: _, ...feeds } = batchOf(config, sequences, { prefix, time }).feeds;
  if (prefix === 0) return feeds;
  const first = batchOf(config, [blank(prefix)], { time: prefix }).feeds;
  const positions = Array.from({ length: prefix }, (_, t) => t);
  return { ...feeds, prefixPositions: int64(positions, [prefix]), prefixMask: first.mask! };
}

/** Rows among the sequences' tokens as rows among all. */
export function packedRows(rows: Tensor, { prefix }: TokenLayout): Tensor {
  return int64(
    Array.from(rows.data as BigInt64Array, (row) => Number(row) + prefix),
    rows.dims,
  );
}
