// The graphs that an encoder runs: vectors, a loss, a training step, all hidden states.
import {
  crossEntropy,
  type Dim,
  div,
  gather,
  input,
  linear,
  matmul,
  mul,
  type NamedTensors,
  type Outputs,
  partialGradients,
  reshape,
  scale,
  sqrt,
  sumLast,
  times,
  total,
  type Value,
} from '@fellrec/graph';
import { selfAttention } from '../attention.ts';
import { type LayeredModel, runLayers } from '../layered-model.ts';
import type { LoraGraph } from '../lora.ts';
import { named } from '../programs.ts';
import { windowAttention } from './attention.ts';
import { type AttentionForm, maskName } from './batch.ts';
import type { RecformerConfig } from './config.ts';
import type { EncoderContext, EncoderTokens } from './layers.ts';

export type Encoder = LayeredModel<EncoderTokens, EncoderContext>;

export interface SequenceGraph {
  readonly tokens: EncoderTokens;
  readonly context: EncoderContext;
}

/** The inputs of a batch of sequences, as `encoderBatch` feeds them. */
export function sequenceGraph(
  { headDim, attentionWindows }: RecformerConfig,
  form: AttentionForm,
  lora?: LoraGraph,
): SequenceGraph {
  const batch = 'batch';
  // Blocks of the widest window; those of a narrower one are parts of them.
  const widest = Math.max(...attentionWindows);
  const time: Dim = form === 'blocks' ? times('blocks', widest) : 'time';
  const rows = times(batch, time);
  const ofTokens = (name: string) => reshape(input(name, 'int64', [batch, time]), [rows]);
  const blocksOf = (window: number) => times(widest / window, 'blocks');
  const masks = new Map(
    form === 'full'
      ? [[0, input(maskName(0), 'float32', [batch, 1, time, time])] as const]
      : attentionWindows.map((window) => {
          const shape: Dim[] =
            form === 'blocks' ? [batch, 1, blocksOf(window), window, 2 * window + 1] : [batch, 1, time, time];
          return [window, input(maskName(window), 'float32', shape)] as const;
        }),
  );
  return {
    tokens: {
      ids: ofTokens('ids'),
      positions: ofTokens('positions'),
      tokenTypes: ofTokens('tokenTypes'),
      itemPositions: ofTokens('itemPositions'),
    },
    context: {
      batch,
      time,
      attend(layer, attended) {
        const window = form === 'full' ? 0 : attentionWindows[layer]!;
        const mask = masks.get(window)!;
        return form === 'blocks'
          ? windowAttention(attended, { batch, blocks: blocksOf(window), window, headDim, mask })
          : selfAttention(attended, { batch, time, headDim, mask }).read;
      },
      ...(form !== 'full' && {
        first: {
          rows: input('firstRows', 'int64', [batch]),
          mask: input('firstMask', 'float32', [batch, 1, time]),
        },
      }),
      ...(lora && { lora }),
    },
  };
}

/** What is trained in the checkpoint's place, as inputs by name. */
export function tensorInputs(tensors: NamedTensors): Map<string, Value> {
  return new Map([...tensors].map(([name, { dims }]) => [name, input(name, 'float32', dims)]));
}

/** One vector a sequence, [batch, d]: the first token's hidden state or the mean of all real tokens'. */
export function pooled(
  model: Encoder,
  { tokens, context }: SequenceGraph,
  pooling: RecformerConfig['pooling'],
): Value {
  const { batch, time, first } = context;
  if (pooling === 'cls') {
    const rows = first?.rows ?? input('firstRows', 'int64', [batch]);
    return runLayers(model, tokens, context, rows);
  }
  const hidden = runLayers(model, tokens, context);
  const d = hidden.shape[1]!;
  const share = input('share', 'float32', [batch, 1, time]);
  return reshape(matmul(share, reshape(hidden, [batch, time, d])), [batch, d]);
}

/** How a vector is compared with the items': by cosine / temperature, with all of them or with some a sequence. */
export interface Contrast {
  readonly temperature: number;
  /** Items a sequence is compared with, if not with all. */
  readonly candidates: 'all' | number;
}

/**
 * The weighted sum of the sequences' losses, -log softmax(cos(h, E) / temperature)[label]. E is the input `items`
 * [items, d] of unit vectors; with candidates, `candidates` [batch, n] says which of them each sequence is compared with.
 */
export function contrastiveLoss(vectors: Value, { temperature, candidates }: Contrast): Value {
  const [batch, d] = vectors.shape as [Dim, number];
  const unit = div(vectors, sqrt(sumLast(mul(vectors, vectors))));
  const items = input('items', 'float32', ['items', d]);
  const cosines =
    candidates === 'all'
      ? linear(unit, items)
      : reshape(
          matmul(reshape(unit, [batch, 1, d]), candidateVectors(items, batch, candidates), {
            transposeB: true,
          }),
          [batch, candidates],
        );
  const losses = crossEntropy(scale(cosines, 1 / temperature), input('labels', 'int64', [batch]));
  return total(mul(losses, input('weights', 'float32', [batch])));
}

function candidateVectors(items: Value, batch: Dim, count: number): Value {
  const places = reshape(input('candidates', 'int64', [batch, count]), [times(batch, count)]);
  return reshape(gather(items, places), [batch, count, items.shape[1]!]);
}

/** `loss`, and its gradient with respect to every parameter that has a part in it, by `gradientName`. */
export function stepOutputs(loss: Value, parameters: ReadonlyMap<string, Value>): Outputs {
  const found = partialGradients(loss, [...parameters.values()]);
  return { loss, ...named([...parameters.keys()], found) };
}

/** `hidden.0` (after the embeddings) ... `hidden.n`, [batch * time, d]. */
export function hiddenStates(model: Encoder, { tokens, context }: SequenceGraph): Outputs {
  let hidden = model.embed(tokens);
  const outputs: Record<string, Value> = { 'hidden.0': hidden };
  for (let index = 0; index < model.layerCount; index++) {
    hidden = model.layer(index, hidden, context);
    outputs[`hidden.${index + 1}`] = hidden;
  }
  return outputs;
}
