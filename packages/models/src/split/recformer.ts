// RecFormer cut between layers.
import { input, linear, times, type Value } from '@fellrec/graph';
import { loraGraph, ofLayers } from '../lora.ts';
import {
  type AttentionForm,
  attentionForm,
  encoderBatch,
  layoutFeeds,
  lengthStepOf,
} from '../recformer/batch.ts';
import type { RecformerCheckpoint } from '../recformer/checkpoint.ts';
import { adaptedEncoderProjections } from '../recformer/config.ts';
import { encoderDropout } from '../recformer/dropout.ts';
import { recformer } from '../recformer/layers.ts';
import { type Encoder, type SequenceGraph, sequenceGraph, tensorInputs } from '../recformer/programs.ts';
import { type CutModel, isIn, type LayerOptions, type LayerRange, runRange } from './cut-model.ts';

/** `formOf` is to be the same on both sides of a cut. */
export function recformerCut(
  checkpoint: RecformerCheckpoint,
  formOf: (lengths: readonly number[]) => AttentionForm = (lengths) =>
    attentionForm(Math.max(...lengths), checkpoint.config),
): CutModel {
  const { config } = checkpoint;
  const whole = recformer(checkpoint);
  return {
    layerCount: config.layerCount,
    hiddenSize: config.hiddenSize,
    vocabularySize: config.vocabularySize,
    tied: true,
    words: whole.words,
    // The form has no part in the embeddings.
    embedding: () => ({ states: whole.embed(sequenceGraph(config, 'dense').tokens) }),
    layout(sequences) {
      const lengths = sequences.map(({ ids }) => ids.length);
      const step = lengthStepOf(config, formOf(lengths));
      return { lengths, time: Math.ceil(Math.max(...lengths) / step) * step, prefix: 0 };
    },
    embeddingFeeds(sequences, { lengths }) {
      const typed = sequences.map(({ ids, tokenTypes, itemPositions }) => ({
        ids,
        tokenTypes: tokenTypes ?? ids.map(() => 0),
        itemPositions: itemPositions ?? ids.map(() => 0),
      }));
      return encoderBatch(config, typed, formOf(lengths)).feeds;
    },
    head: (hidden) => linear(hidden, whole.words()),
    adapted: (lora) => adaptedEncoderProjections(config, lora),
    problem({ lengths, time, prefix }) {
      const longest = Math.max(...lengths);
      const step = lengthStepOf(config, formOf(lengths));
      if (prefix > 0) return 'an encoder has no prefix';
      if (longest > config.positionCount - 2)
        return `a sequence has ${longest} tokens, the position table is for ${config.positionCount - 2}`;
      return time % step === 0 ? undefined : `sequences are padded to ${time} tokens, no multiple of ${step}`;
    },
    form: ({ lengths }) => formOf(lengths),
    layers(range, form, options) {
      const { model, graph, hidden, ...inputs } = rangeGraph(
        checkpoint,
        range,
        form as AttentionForm,
        options,
      );
      return { ...inputs, hidden, states: runRange(model, range, hidden, graph.context), read: {} };
    },
    feeds: ({ lengths, time }) => layoutFeeds(config, lengths, time, formOf(lengths)),
    dropout: (masks, rate, { lengths, time }, { seed, sequences }) =>
      encoderDropout(
        masks,
        rate,
        lengths.map((tokens, i) => ({ stream: sequences[i]!, tokens })),
        time,
        seed,
      ),
  };
}

export interface RangeGraph {
  /** To be asked for layers of the range only. */
  readonly model: Encoder;
  readonly graph: SequenceGraph;
  /** The input `hidden`, [batch * time, d], before the range. */
  readonly hidden: Value;
  /** What is trained of the range, as inputs by their names. */
  readonly parameters: ReadonlyMap<string, Value>;
  /** Dropout masks, known once the layers are built. */
  readonly masks: ReadonlyMap<string, Value>;
}

/** What the graph of a range of layers is made of. */
export function rangeGraph(
  checkpoint: RecformerCheckpoint,
  range: LayerRange,
  form: AttentionForm,
  { trained, training }: LayerOptions,
): RangeGraph {
  const { config } = checkpoint;
  const lora =
    trained?.lora &&
    loraGraph(ofLayers(adaptedEncoderProjections(config, trained.lora), isIn(range)), trained.lora, {
      training,
    });
  const own = tensorInputs(trained && !lora ? ofLayers(trained.tensors, isIn(range)) : new Map());
  // Blocks of the widest window of these layers: a program's inputs have to name what it counts in.
  const widest = Math.max(...config.attentionWindows.slice(range.from, range.to));
  const attentionWindows = config.attentionWindows.map((window, layer) =>
    isIn(range)(layer) ? window : widest,
  );
  const graph = sequenceGraph({ ...config, attentionWindows }, form, lora);
  const { batch, time } = graph.context;
  return {
    model: recformer(checkpoint, own),
    graph,
    hidden: input('hidden', 'float32', [times(batch, time), config.hiddenSize]),
    parameters: lora?.parameters ?? own,
    masks: lora?.masks ?? new Map(),
  };
}
