// RecFormer whose middle layers are elsewhere: the embeddings, the first k layers, the last one, the pooling, the items
// and the labels are here.
import {
  type Feeds,
  type Float32Tensor,
  float32,
  gather,
  input,
  type NamedTensors,
  type Outputs,
  partialGradients,
  type Runtime,
  type Tensor,
} from '@fellrec/graph';
import { addTo } from '../batch.ts';
import { layerOf } from '../lora.ts';
import { type Compiled, programCache } from '../program-cache.ts';
import { gradientName, named } from '../programs.ts';
import { type AttentionForm, encoderBatch, type ItemSequence } from '../recformer/batch.ts';
import type { RecformerCheckpoint } from '../recformer/checkpoint.ts';
import type { RecformerConfig } from '../recformer/config.ts';
import { contrastParts, defaultBatch, tokenCounts } from '../recformer/contrast.ts';
import { recformer, wordTable } from '../recformer/layers.ts';
import { addRows, type EncoderModel, type EncoderParameters, gradientsOf, run } from '../recformer/model.ts';
import {
  type Contrast,
  contrastiveLoss,
  type Encoder,
  pooled,
  sequenceGraph,
  stepOutputs,
  tensorInputs,
} from '../recformer/programs.ts';
import type { CutLayers } from './layers.ts';
import type { MiddleDropout, MiddleLayers, TokenLayout } from './middle.ts';
import { rangeGraph } from './recformer.ts';

export interface SplitEncoderOptions {
  readonly checkpoint: RecformerCheckpoint;
  readonly runtime: Runtime;
  /** The model's layers, of which this side runs the first k. */
  readonly layers: CutLayers;
  /** k, 0 .. n - 1. */
  readonly kept: number;
  readonly middle: MiddleLayers;
  /** How sequences become vectors, if not as the checkpoint says. */
  readonly pooling?: RecformerConfig['pooling'] | undefined;
}

type EmbeddingKind = 'embed' | 'embedGradients';
type TopKind = 'train' | 'loss' | 'encode';

interface Variant {
  readonly form: AttentionForm;
  readonly contrast?: Contrast;
  readonly pooling?: RecformerConfig['pooling'];
  /** With dropout. */
  readonly training?: boolean;
  /** With the gradient of the hidden states. */
  readonly through?: boolean;
}

/** A batch as it goes through the parts of the model. */
interface Batched {
  readonly layout: TokenLayout;
  readonly form: AttentionForm;
  /** Of the embeddings and of the last layer. */
  readonly feeds: Feeds;
}

/**
 * An encoder that is cut after k layers and before the last one. Parameters of the layers between, where they are passed
 * in, have no effect and no gradient.
 */
export function splitEncoder({
  checkpoint,
  runtime,
  layers,
  kept: k,
  middle,
  pooling = checkpoint.config.pooling,
}: SplitEncoderOptions): EncoderModel {
  const { config } = checkpoint;
  const last = config.layerCount - 1;
  const bottom = { from: 0, to: k };
  const programs = programCache<EmbeddingKind | TopKind>();

  /** `trained`: what is trained of the embeddings. */
  function getEmbedding(kind: EmbeddingKind, trained: NamedTensors): Promise<Compiled> {
    return programs.get(kind, [...trained.keys()], async () => ({
      program: await runtime.compile(embeddingOutputs(kind, trained)),
      masks: new Map(),
    }));
  }

  function embeddingOutputs(kind: EmbeddingKind, trained: NamedTensors): Outputs {
    const own = tensorInputs(trained);
    const { tokens } = sequenceGraph(config, 'dense'); // as every form's
    const table = own.get(wordTable);
    const words = table && gather(table, tokens.ids);
    const states = recformer(checkpoint, own).embed({ ...tokens, ...(words && { words }) });
    if (kind === 'embed') return { states };
    // Computed once more: a few rows a token, and no matrix product.
    const seed = { value: states, gradient: input('gradient', 'float32', states.shape) };
    // The gradient of the rows that were read instead of the whole table's.
    if (words) own.set(wordTable, words);
    return named([...own.keys()], partialGradients([seed], [...own.values()]));
  }

  function getTop(
    kind: TopKind,
    parameters: EncoderParameters | undefined,
    variant: Variant,
  ): Promise<Compiled> {
    const trained = parameters && (parameters.lora ?? [...parameters.tensors.keys()]);
    return programs.get(kind, [trained, variant], () => compileTop(kind, parameters, variant));
  }

  async function compileTop(
    kind: TopKind,
    trained: EncoderParameters | undefined,
    { form, contrast, pooling: pool = pooling, training = false, through = false }: Variant,
  ): Promise<Compiled> {
    const range = { from: last, to: last + 1 };
    const { model, graph, hidden, parameters, masks } = rangeGraph(checkpoint, range, form, {
      trained,
      training,
    });
    const lastLayer: Encoder = {
      layerCount: 1,
      words: model.words,
      embed: () => hidden,
      layer: (_, ...rest) => model.layer(last, ...rest),
    };
    const make = async (outputs: Outputs) => ({
      program: await runtime.compile(outputs, { prepack: kind !== 'loss' }),
      masks,
    });
    const vectors = pooled(lastLayer, graph, pool);
    if (kind === 'encode') return make({ vectors });
    const loss = contrastiveLoss(vectors, contrast!);
    if (kind === 'loss') return make({ loss });
    const variables = new Map([...(through ? [['hidden', hidden] as const] : []), ...parameters]);
    return make(stepOutputs(loss, variables));
  }

  function batched(sequences: readonly ItemSequence[]): Batched {
    const lengths = sequences.map(({ ids }) => ids.length);
    const form = layers.model.form({ lengths, prefix: 0 }) as AttentionForm;
    const { feeds, time } = encoderBatch(config, sequences, form);
    return { layout: { lengths, time, prefix: 0 }, form, feeds };
  }

  async function embed(
    { feeds }: Batched,
    parameters: EncoderParameters | undefined,
  ): Promise<Float32Tensor> {
    const { program } = await getEmbedding('embed', ofEmbeddings(parameters));
    return (await run(program, parameters, feeds)).states as Float32Tensor;
  }

  /** Adds the gradients of the embeddings' tensors, given that of the hidden states. */
  async function addEmbeddings(
    sums: Map<string, Float32Tensor>,
    { feeds }: Batched,
    parameters: EncoderParameters,
    gradient: Float32Tensor,
  ): Promise<void> {
    const { program } = await getEmbedding('embedGradients', ofEmbeddings(parameters));
    for (const [name, tensor] of Object.entries(await run(program, parameters, { ...feeds, gradient }))) {
      const found = tensor as Float32Tensor;
      if (name === gradientName(wordTable)) addRows(sums, name, feeds.ids!, found, config.vocabularySize);
      else addTo(sums, name, found);
    }
  }

  /** Hidden states before the last layer. */
  async function statesOf(batch: Batched, parameters: EncoderParameters | undefined): Promise<Float32Tensor> {
    const embedded = await embed(batch, parameters);
    const states = await layers.forward(bottom, embedded, batch.layout, { trained: parameters });
    return middle.forward(states, batch.layout, { adapted: parameters !== undefined });
  }

  return {
    checkpoint,
    pooling,
    updateElsewhere: async (squaredNorm, rate) => (middle.trains ? middle.update(squaredNorm, rate) : 0),

    async encode(sequences, parameters, { attention, pooling: pool = pooling } = {}) {
      if (attention)
        throw new Error(`model: a split encoder has no attention "${attention}"; use a whole one`);
      if (sequences.length === 0) return float32([], [0, config.hiddenSize]);
      const batch = batched(sequences);
      const { program } = await getTop('encode', parameters, { form: batch.form, pooling: pool });
      const hidden = await statesOf(batch, parameters);
      const found = await run(program, parameters, { ...batch.feeds, hidden });
      return found.vectors as Float32Tensor;
    },

    async gradients(batch, parameters, { dropoutSeed, ...options }) {
      const rate = parameters.lora?.dropout ?? 0;
      if (rate > 0 && !dropoutSeed) throw new Error('model: the adapter has dropout; pass dropoutSeed');
      const mine = new Map([...parameters.tensors].filter(([name]) => isHere(layerOf(name))));
      const embeddings = ofEmbeddings(parameters);
      const learns = [...mine.keys()].some((name) => layerOf(name) !== last); // below the middle
      const through = learns || middle.trains;
      const sums = new Map<string, Float32Tensor>();
      const add = (gradients: Iterable<readonly [string, Tensor]>) => {
        for (const [name, tensor] of gradients) addTo(sums, name, tensor);
      };
      let [loss, computed] = [0, 0];
      for (const { sequences, places, contrast, feeds } of contrastParts(batch, options)) {
        const part = batched(sequences);
        const { layout, form } = part;
        computed += sequences.length * layout.time;
        const dropout: MiddleDropout | undefined =
          rate > 0 ? { seed: dropoutSeed!, sequences: places } : undefined;
        const pass = { trained: parameters, dropout };
        const embedded = await embed(part, parameters);
        const below = learns
          ? await layers.forwardKept(bottom, embedded, layout, pass)
          : { states: await layers.forward(bottom, embedded, layout, pass), kept: undefined };
        const hidden = await middle.forward(below.states, layout, {
          ...(through && { keep: 'gradient' }),
          adapted: true,
          ...(dropout && { dropout }),
        });
        const training = dropout !== undefined;
        const { program, masks } = await getTop('train', parameters, { form, contrast, training, through });
        const dropped = dropout && layers.model.dropout(masks, rate, layout, dropout);
        const {
          loss: own,
          [gradientName('hidden')]: gradient,
          ...found
        } = await run(program, parameters, { ...part.feeds, ...feeds, ...dropped, hidden });
        loss += Number(own!.data[0]);
        add(Object.entries(found));
        if (!through) continue;
        const back = await middle.backward(gradient as Float32Tensor);
        const passed = await below.kept?.backward(back, embeddings.size > 0);
        if (!passed) continue;
        add(passed.gradients);
        if (embeddings.size > 0) await addEmbeddings(sums, part, parameters, passed.gradient!);
      }
      return { loss, gradients: gradientsOf(mine, sums), tokens: tokenCounts(batch, computed) };
    },

    async loss(batch, parameters, options) {
      let loss = 0;
      for (const { sequences, contrast, feeds } of contrastParts(batch, {
        microBatch: defaultBatch,
        ...options,
      })) {
        const part = batched(sequences);
        const { program } = await getTop('loss', parameters, { form: part.form, contrast });
        const hidden = await statesOf(part, parameters);
        const found = await run(program, parameters, { ...part.feeds, ...feeds, hidden });
        loss += Number(found.loss!.data[0]);
      }
      return loss;
    },

    release: () => programs.release([]),
  };

  function isHere(layer: number | undefined): boolean {
    return layer === undefined || layer < k || layer === last;
  }
}

/** What is trained of the embeddings: it belongs to no layer. */
function ofEmbeddings(parameters: EncoderParameters | undefined): NamedTensors {
  return new Map([...(parameters?.tensors ?? [])].filter(([name]) => layerOf(name) === undefined));
}
