// A causal language model whose middle layers are elsewhere: embedding, the first k layers, the last one, the head, the
// adapter and the labels are here.
import {
  concat,
  crossEntropy,
  type Feeds,
  type Float32Tensor,
  input,
  int64,
  mul,
  type Outputs,
  partialGradients,
  type Runtime,
  reshape,
  type Tensor,
  times,
  total,
  type Value,
} from '@fellrec/graph';
import {
  addTo,
  batchOf,
  chunks,
  defaultBatch,
  dropoutFeeds,
  labelCount,
  labelFeeds,
  lastRows,
  type Sequence,
  type Tokens,
} from '../batch.ts';
import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import { generateInBatches } from '../decoding.ts';
import { beamSearch, type DecodeStep, type GenerationOptions, type Hypothesis } from '../generation.ts';
import { type Adapter, adapterFeeds, type LanguageModel, prefixWorthSharing } from '../language-model.ts';
import { continuationFeeds, likelihoodsBehind, sequencesBehind } from '../likelihood.ts';
import { llama } from '../llama.ts';
import { adaptedProjections, type LoraConfig, loraGraph, ofLayers } from '../lora.ts';
import type { NextTokensReader } from '../next-tokens.ts';
import { type Compiled, programCache, runOn } from '../program-cache.ts';
import {
  decodingContext,
  gradientName,
  grownName,
  keyName,
  named,
  nextTokens,
  valueName,
  type WantedTokens,
} from '../programs.ts';
import type { Trained } from './cut-model.ts';
import type { CutLayers } from './layers.ts';
import { type PackedForm, packedContext, packedForm, packedRows, prefixRows } from './llama.ts';
import type { MiddleDropout, MiddleLayers, TokenLayout } from './middle.ts';

export interface SplitLanguageModelOptions {
  readonly checkpoint: Checkpoint;
  readonly runtime: Runtime;
  /** The model's layers, of which this side runs the first k. */
  readonly layers: CutLayers;
  /** k, 0 .. n - 1. */
  readonly kept: number;
  readonly middle: MiddleLayers;
}

type Kind = 'embed' | 'train' | 'loss' | 'losses' | 'vectors' | 'prompt' | 'decode';

interface Variant {
  readonly form?: PackedForm;
  readonly training?: boolean;
  readonly wanted?: WantedTokens;
}

/** A batch as it goes through the parts of the model. */
interface Batched {
  readonly layout: TokenLayout;
  /** Feeds of the layers' context, and of the embedding. */
  readonly feeds: Feeds;
  /** Places in [batch * time], as `batch.ts` counts them. */
  readonly batch: ReturnType<typeof batchOf>;
}

export function splitLanguageModel({
  checkpoint,
  runtime,
  layers,
  kept: k,
  middle,
}: SplitLanguageModelOptions): LanguageModel {
  const { config } = checkpoint;
  const last = config.layerCount - 1;
  const model = llama(checkpoint);
  const bottom = { from: 0, to: k };
  const programs = programCache<Kind>();
  const get = (kind: Kind, adapter: LoraConfig | undefined, variant: Variant = {}) =>
    programs.get(kind, [adapter, variant], () => compile(kind, adapter, variant));

  async function compile(
    kind: Kind,
    adapter: LoraConfig | undefined,
    { form = 'plain', training = false, wanted = 1 }: Variant,
  ): Promise<Compiled> {
    const shapes = adapter && ofLayers(adaptedProjections(config, adapter), (layer) => layer === last);
    const lora = adapter && shapes!.size > 0 ? loraGraph(shapes!, adapter, { training }) : undefined;
    const make = async (outputs: Outputs) => ({
      program: await runtime.compile(outputs, { prepack: kind !== 'loss' && kind !== 'vectors' }),
      masks: lora?.masks ?? new Map(),
    });
    if (kind === 'embed') return make({ states: model.embed(packedIds(form)) });
    if (kind === 'decode') {
      const grown: Record<string, Value> = {};
      const { rows, context } = decodingContext(config, {
        lora,
        onRead(layer, keys, values) {
          grown[grownName(keyName(layer))] = keys;
          grown[grownName(valueName(layer))] = values;
        },
      });
      const hidden = input('hidden', 'float32', [rows, config.hiddenSize]);
      return make({ ...nextTokens(model, model.layer(last, hidden, context), wanted), ...grown });
    }
    const read: Record<string, Value> = {};
    const { tokens, context } = packedContext(config, form, {
      lora,
      onRead(layer, keys, values) {
        read[keyName(layer)] = keys;
        read[valueName(layer)] = values;
      },
    });
    const labelled = kind === 'train' || kind === 'loss' || kind === 'losses';
    const rows = input('rows', 'int64', [labelled ? 'labels' : 'rows']);
    const hidden = input('hidden', 'float32', [tokens, config.hiddenSize]);
    const states = model.layer(last, hidden, context, rows);
    if (kind === 'prompt') return make({ ...nextTokens(model, states, wanted), ...read });
    const normalized = model.normalize(states);
    if (kind === 'vectors') return make({ vectors: normalized });
    const losses = crossEntropy(model.logits(normalized), input('labels', 'int64', ['labels']));
    if (kind === 'losses') return make({ losses });
    const loss = total(mul(losses, input('weights', 'float32', ['labels'])));
    if (kind === 'loss') return make({ loss });
    const parameters = lora?.parameters ?? new Map<string, Value>();
    const found = partialGradients(loss, [hidden, ...parameters.values()]);
    return make({ loss, ...named(['hidden', ...parameters.keys()], found) });
  }

  function batched(sequences: readonly Tokens[], prefix: number): Batched {
    if (sequences.some(({ attention }) => attention))
      throw new Error('model: sequences that are padded already cannot be computed by a split model');
    const batch = batchOf(config, sequences, { prefix });
    const lengths = sequences.map(({ ids }) => ids.length);
    const layout = { lengths, time: batch.time, prefix };
    const first = sequences[0]!.ids.slice(0, prefix);
    const ids = { ids: batch.feeds.ids!, ...(prefix > 0 && { prefixIds: int64(first, [prefix]) }) };
    return { layout, feeds: { ...layers.model.feeds(layout), ...ids }, batch };
  }

  async function embed({ layout, feeds }: Batched): Promise<Float32Tensor> {
    const { program } = await get('embed', undefined, { form: packedForm(layout) });
    return (await runOn(program, feeds)).states as Float32Tensor;
  }

  /** Hidden states before the last layer. */
  async function statesOf(batch: Batched, adapter: Adapter | undefined): Promise<Float32Tensor> {
    const states = await layers.forward(bottom, await embed(batch), batch.layout, {
      trained: trained(adapter),
    });
    return middle.forward(states, batch.layout, { adapted: adapter !== undefined });
  }

  /** What the last layer and the head make of hidden states. */
  async function top(
    kind: Exclude<Kind, 'embed' | 'decode'>,
    states: Float32Tensor,
    { layout, feeds }: Batched,
    adapter: Adapter | undefined,
    more: Feeds,
    variant: Variant = {},
    masks?: (masks: ReadonlyMap<string, Value>) => Feeds,
  ): Promise<Record<string, Tensor>> {
    const found = await get(kind, adapter?.config, { form: packedForm(layout), ...variant });
    return runOn(found.program, {
      ...feeds,
      ...more,
      ...masks?.(found.masks),
      ...adapterFeeds(adapter),
      hidden: states,
    });
  }

  return {
    checkpoint,
    updateElsewhere: async (squaredNorm, rate) => (middle.trains ? middle.update(squaredNorm, rate) : 0),

    async gradients(batch, adapter, { microBatch = batch.length, dropoutSeed } = {}) {
      const labels = labelCount(batch);
      if (labels === 0)
        throw new Error('model: no token of the batch is labelled; there is nothing to learn');
      const rate = adapter.config.dropout;
      if (rate > 0 && !dropoutSeed) throw new Error('model: the adapter has dropout; pass dropoutSeed');
      const prefix = prefixWorthSharing(batch);
      const learns = [...ofLayers(adapter.tensors, (layer) => layer < k).keys()].length > 0;
      const needed = learns || middle.trains;
      const sums = new Map<string, Float32Tensor>();
      const add = (gradients: Iterable<readonly [string, Tensor]>) => {
        for (const [name, tensor] of gradients) addTo(sums, name, tensor);
      };
      const tokens = { real: 0, computed: 0, padding: 0 };
      let loss = 0;
      const byLength = batch
        .map((sequence, index) => ({ sequence, index }))
        .sort((a, b) => a.sequence.ids.length - b.sequence.ids.length);
      for (const part of chunks(byLength, microBatch)) {
        const sequences = part.map(({ sequence }) => sequence);
        const parted = batched(sequences, prefix);
        const { layout } = parted;
        const labelled = labelFeeds(sequences, parted.batch, labels);
        const real = layout.lengths.reduce((n, length) => n + length, 0);
        const computed = prefix + sequences.length * layout.time;
        tokens.real += real;
        tokens.computed += computed;
        tokens.padding += computed - prefix - (real - sequences.length * prefix);
        if (labelled.labels!.dims[0] === 0) continue;
        const dropout: MiddleDropout | undefined =
          rate > 0 ? { seed: dropoutSeed!, sequences: part.map(({ index }) => index) } : undefined;
        const options = { trained: trained(adapter), dropout };
        const below = learns
          ? await layers.forwardKept(bottom, await embed(parted), layout, options)
          : { states: await layers.forward(bottom, await embed(parted), layout, options), kept: undefined };
        const states = await middle.forward(below.states, layout, {
          ...(needed && { keep: 'gradient' }),
          adapted: true,
          ...(dropout && { dropout }),
        });
        const rows = { ...labelled, rows: packedRows(labelled.rows!, layout) };
        const masks =
          dropout &&
          ((wanted: ReadonlyMap<string, Value>) => topDropout(wanted, rate, sequences, layout, dropout));
        const {
          loss: own,
          [gradientName('hidden')]: gradient,
          ...found
        } = await top('train', states, parted, adapter, rows, { training: dropout !== undefined }, masks);
        loss += Number(own!.data[0]);
        add(Object.entries(found));
        if (!needed) continue;
        const back = await middle.backward(gradient as Float32Tensor);
        if (below.kept) add((await below.kept.backward(back, false)).gradients);
      }
      const gradients = new Map(
        [...adapter.tensors.keys()].map((name) => [name, sums.get(gradientName(name))!]),
      );
      return { loss, gradients, tokens };
    },

    async loss(sequences, adapter, microBatch = defaultBatch) {
      const labels = labelCount(sequences);
      if (labels === 0) throw new Error('model: no token is labelled; there is no loss');
      const prefix = prefixWorthSharing(sequences);
      let loss = 0;
      const byLength = sequences.toSorted((a, b) => a.ids.length - b.ids.length);
      for (const part of chunks(byLength, microBatch)) {
        const parted = batched(part, prefix);
        const labelled = labelFeeds(part, parted.batch, labels);
        if (labelled.labels!.dims[0] === 0) continue;
        const rows = { ...labelled, rows: packedRows(labelled.rows!, parted.layout) };
        const found = await top('loss', await statesOf(parted, adapter), parted, adapter, rows);
        loss += Number(found.loss!.data[0]);
      }
      return loss;
    },

    async vectors(sequences, adapter) {
      const parts = sequences.map((ids) => ({ ids }));
      const batch = batched(parts, 0);
      const rows = { rows: lastRows(parts, batch.batch) };
      const found = await top('vectors', await statesOf(batch, adapter), batch, adapter, rows);
      return found.vectors as Float32Tensor;
    },

    async generate(prompts, options, adapter) {
      const prefix = prefixWorthSharing(prompts.map((ids) => ({ ids })));
      return generateInBatches(prompts, options, config.vocabularySize, (part, search, reader) =>
        continuations(part, prefix, search, reader, adapter),
      );
    },

    // A forward pass keeps nothing for the next one, so the prompt goes through the layers with every batch.
    likelihoods: (prompts, continuations, options = {}, adapter) =>
      likelihoodsBehind(prompts, continuations, options, async (prompt) => async (part) => {
        const parted = batched(sequencesBehind(prompt, part), prompt.length - 1);
        const { rows, labels } = continuationFeeds(part, parted.batch);
        const feeds = { labels, rows: packedRows(rows, parted.layout) };
        const found = await top('losses', await statesOf(parted, adapter), parted, adapter, feeds);
        return found.losses!.data as Float32Array;
      }),

    release: (...kinds) => programs.release(kinds),
  };

  async function continuations(
    prompts: readonly Tokens[],
    prefix: number,
    options: GenerationOptions,
    reader: NextTokensReader,
    adapter: Adapter | undefined,
  ): Promise<Hypothesis[][]> {
    const { beams } = options;
    const { wanted } = reader;
    const batch = batched(prompts, prefix);
    const { layout } = batch;
    const below = await layers.prompt(bottom, await embed(batch), layout, { trained: trained(adapter) });
    const states = await middle.forward(below.states, layout, {
      keep: 'cache',
      adapted: adapter !== undefined,
    });
    const rows = packedRows(lastRows(prompts, batch.batch), layout);
    const first = await top('prompt', states, batch, adapter, { ...reader.feeds(), rows }, { wanted });
    const read = { ...below.read, ...first };
    const cache = layers.model.decoding!.cache(read, layout, beams);
    const { program } = await get('decode', adapter?.config, { wanted });
    const { program: embedding } = await get('embed', undefined, { form: 'plain' });
    const step: DecodeStep = async (next) => {
      const { users, tokens, parents } = next;
      const ids = int64(tokens, [users.length, beams]);
      const feeds = { ...cache.feeds(users, parents), ids };
      const embedded = (await runOn(embedding, feeds)).states as Float32Tensor;
      const low = await layers.decode(bottom, embedded, feeds, { trained: trained(adapter) });
      const middled = await middle.decode({ states: low.states, users, beams, parents });
      const high = await runOn(program, {
        ...feeds,
        ...reader.feeds(next),
        ...adapterFeeds(adapter),
        hidden: middled,
      });
      cache.grow({ ...low.grown, ...high });
      return reader.read(high);
    };
    return beamSearch(reader.read(first), prompts.length, step, options);
  }
}

function packedIds(form: PackedForm): Value {
  const ids = reshape(input('ids', 'int64', ['batch', 'time']), [times('batch', 'time')]);
  return form === 'plain' ? ids : concat([input('prefixIds', 'int64', ['prefix']), ids], 0);
}

/** Masks of the last layer, which after its attention has only rows that predict a label. */
function topDropout(
  masks: ReadonlyMap<string, Value>,
  rate: number,
  sequences: readonly Sequence[],
  { time, prefix }: TokenLayout,
  dropout: MiddleDropout,
): Feeds {
  const rows = sequences.map((sequence, i) => ({
    stream: dropout.sequences[i]!,
    tokens: sequence.ids.length - prefix,
    stride: time,
    labels: labelCount([sequence]),
  }));
  return dropoutFeeds(masks, rate, [...prefixRows(prefix), ...rows], dropout.seed);
}

function trained(adapter: Adapter | undefined): Trained | undefined {
  return adapter && { lora: adapter.config, tensors: adapter.tensors };
}
