// A causal language model ready to train and to generate: a checkpoint, its programs (compiled when first used) and an
// adapter that is passed in with every call, so that one copy of the base weights serves any number of adapters.
import type { Float32Tensor, NamedTensors, Outputs, Program, Runtime, Tensor, Value } from '@fellrec/graph';
import {
  addTo,
  batchOf,
  chunks,
  defaultBatch,
  dropoutFeeds,
  labelCount,
  labelFeeds,
  lastRows,
  type MaskedRows,
  type Sequence,
  sharedPrefix,
  type Tokens,
} from './batch.ts';
import type { Checkpoint } from './checkpoint/checkpoint.ts';
import {
  type BatchOptions,
  continuations,
  emptyCache,
  generateInBatches,
  type Prefix,
  type TreeOptions,
} from './decoding.ts';
import type { GenerationOptions, Hypothesis } from './generation.ts';
import {
  continuationFeeds,
  type Likelihood,
  type LikelihoodOptions,
  likelihoodsBehind,
  sequencesBehind,
} from './likelihood.ts';
import { llama, type QuantizedBase } from './llama.ts';
import { adaptedProjections, type LoraConfig, loraGraph } from './lora.ts';
import { type Compiled, programCache, runOn } from './program-cache.ts';
import {
  cacheNames,
  decodingProgram,
  gradientName,
  lossesProgram,
  lossProgram,
  prefixGradients,
  prefixName,
  prefixProgram,
  promptProgram,
  tracingProgram,
  trainingStep,
  vectorProgram,
  type WantedTokens,
} from './programs.ts';

/** An adapter's tensors, and how they apply. */
export interface Adapter {
  readonly config: LoraConfig;
  readonly tensors: NamedTensors;
}

export interface StepOptions {
  /** Sequences computed at once, of like lengths; gradients add up to those of the whole batch. */
  readonly microBatch?: number;
  /** Names the stream that dropout draws from; needed if the adapter has dropout. */
  readonly dropoutSeed?: readonly [number, ...(string | number)[]];
}

export interface StepResult {
  /** Mean over the batch's labels. */
  readonly loss: number;
  readonly gradients: NamedTensors;
  readonly tokens: TokenCounts;
}

export interface TokenCounts {
  /** Of all sequences. */
  readonly real: number;
  /** What was computed: what sequences share once, and padding. */
  readonly computed: number;
  readonly padding: number;
}

export interface LanguageModel {
  readonly checkpoint: Checkpoint;
  /**
   * Loss and its gradient with respect to the adapter. What all sequences begin with is computed once; with dropout it
   * has one mask for all of them. @throws if no token is labelled.
   */
  gradients(batch: readonly Sequence[], adapter: Adapter, options?: StepOptions): Promise<StepResult>;
  /** Mean loss over all labels, without dropout. */
  loss(sequences: readonly Sequence[], adapter?: Adapter, microBatch?: number): Promise<number>;
  /** The normalised last hidden state of each sequence's last token, [sequences, d]. */
  vectors(sequences: readonly (readonly number[])[], adapter?: Adapter): Promise<Float32Tensor>;
  /**
   * The best `beams` continuations of each prompt, best first; with `trees`, those that are sequences of its tree.
   * @throws if `maxNewTokens` would cut a tree's sequence.
   */
  generate(
    prompts: readonly (readonly number[])[],
    options: GenerationOptions & BatchOptions & TreeOptions,
    adapter?: Adapter,
  ): Promise<Hypothesis[][]>;
  /**
   * The likelihoods of given continuations of each prompt, in their order: log p(continuation | prompt), without a
   * normalisation by length. @throws if a prompt or a continuation is empty.
   */
  likelihoods(
    prompts: readonly (readonly number[])[],
    continuations: readonly (readonly (readonly number[])[])[],
    options?: LikelihoodOptions,
    adapter?: Adapter,
  ): Promise<Likelihood[][]>;
  /**
   * Where an adapter's other layers are trained elsewhere: their optimizer step, after `gradients`. Takes the sum of
   * squares of the gradients here, and returns theirs: clipping is by the norm over all.
   */
  readonly updateElsewhere?: ((squaredNorm: number, learningRate: number) => Promise<number>) | undefined;
  /** Frees the programs of some kinds, or all; they are compiled again when needed. */
  release(...kinds: ProgramKind[]): Promise<void>;
}

/** All of it in one process. */
export interface WholeLanguageModel extends LanguageModel {
  /** `hidden.0` ... `hidden.n` and `logits` at every token of sequences padded on the right, [batch * time, ...]. */
  trace(sequences: readonly Tokens[], adapter?: Adapter): Promise<Record<string, Tensor>>;
}

type ProgramKind =
  | 'train'
  | 'prefix'
  | 'prefixGradients'
  | 'loss'
  | 'losses'
  | 'vectors'
  | 'trace'
  | 'prompt'
  | 'decode';

interface Variant {
  /** With dropout. */
  readonly training?: boolean;
  /** Behind a prefix. */
  readonly prefixed?: boolean;
  readonly wanted?: WantedTokens;
}

/** What is left of the prefix' gradients where the adapter has no part in keys and values. */
const nothing: Program = {
  inputs: new Set(),
  outputs: new Set(),
  run: async () => ({}),
  dispose: async () => {},
};

/** A shorter prefix, or one of fewer sequences, costs more than it saves. */
const worthSharing = { tokens: 8, sequences: 4 };

/**
 * Opens a checkpoint for computation, on a quantised base if one is given. Nothing is compiled before it is needed.
 * `vectors` are float32's whatever the base.
 */
export function languageModel(
  checkpoint: Checkpoint,
  runtime: Runtime,
  quantized?: QuantizedBase,
): WholeLanguageModel {
  const { config } = checkpoint;
  const model = llama(checkpoint, quantized);
  const caches = cacheNames(config.layerCount);
  const programs = programCache<ProgramKind>();
  const get = (kind: ProgramKind, adapter?: LoraConfig, variant: Variant = {}) =>
    programs.get(kind, [adapter, variant], () => compile(kind, adapter, variant));

  async function compile(
    kind: ProgramKind,
    adapter: LoraConfig | undefined,
    { training = false, prefixed = false, wanted = 1 }: Variant,
  ): Promise<Compiled> {
    const lora = adapter && loraGraph(adaptedProjections(config, adapter), adapter, { training });
    // Programs that run seldom share the pages of the weights' files instead of copying them; copies of 8-bit integers
    // are small.
    const often = ['train', 'losses', 'prompt', 'decode'].includes(kind);
    const small = quantized !== undefined && kind !== 'vectors' && kind !== 'trace';
    const prepack = often || small;
    const make = async (outputs: Outputs, masks: Compiled['masks'] = new Map()) => ({
      program: await runtime.compile(outputs, { prepack }),
      masks,
    });
    switch (kind) {
      case 'train': {
        const { outputs, masks } = trainingStep(model, config, lora!);
        return make(outputs, masks);
      }
      case 'prefix': {
        const { outputs, masks } = prefixProgram(model, config, { lora, prefixed });
        return make(outputs, masks);
      }
      case 'prefixGradients': {
        const { outputs, masks } = prefixGradients(model, config, lora!);
        return Object.keys(outputs).length === 0 ? { program: nothing, masks } : make(outputs, masks);
      }
      case 'loss':
        return make(lossProgram(model, config, lora));
      case 'losses':
        return make(lossesProgram(model, config, lora));
      case 'vectors':
        return make(vectorProgram(llama(checkpoint), config, lora));
      case 'trace':
        return make(tracingProgram(model, config, lora));
      case 'prompt':
        return make(promptProgram(model, config, { lora, wanted }));
      case 'decode':
        return make(decodingProgram(model, config, { lora, wanted }));
    }
  }

  /** The shared prefix' keys and values; no tokens where sharing does not pay. */
  async function openPrefix(
    sequences: readonly (Tokens & Partial<Sequence>)[],
    adapter: Adapter | undefined,
    dropout?: Dropout,
  ): Promise<Prefix> {
    const length = prefixWorthSharing(sequences);
    if (length === 0) {
      const none = emptyCache(config, 1);
      return { ids: [], feeds: Object.fromEntries(caches.map((name) => [prefixName(name), none])) };
    }
    const ids = sequences[0]!.ids.slice(0, length);
    const found = await runPrefix('prefix', ids, adapter, dropout);
    return { ids, feeds: prefixFeeds(found) };
  }

  /** Its keys and values, or the gradients of the adapter given theirs. */
  async function runPrefix(
    kind: 'prefix' | 'prefixGradients',
    ids: readonly number[],
    adapter: Adapter | undefined,
    dropout?: Dropout,
    seeds: Record<string, Tensor> = {},
  ): Promise<Record<string, Tensor>> {
    const { program, masks } = await get(kind, adapter?.config, { training: dropout !== undefined });
    const { feeds, time } = batchOf(config, [{ ids }], { step: 1 });
    // The last layer has a part in keys and values only.
    return runOn(program, {
      ...feeds,
      ...adapterFeeds(adapter),
      ...dropout?.(masks, [{ stream: 'prefix', tokens: ids.length, stride: time, labels: 0 }]),
      ...seeds,
    });
  }

  /** A prompt without its last token as a prefix of its own, behind what all prompts begin with. */
  async function openPrompt(
    prompt: readonly number[],
    shared: Prefix,
    adapter: Adapter | undefined,
  ): Promise<Prefix> {
    const ids = prompt.slice(0, -1);
    if (ids.length === shared.ids.length) return shared;
    const { program } = await get('prefix', adapter?.config, { prefixed: true });
    const { feeds } = batchOf(config, [{ ids }], { prefix: shared.ids.length, step: 1 });
    const found = await runOn(program, { ...feeds, ...shared.feeds, ...adapterFeeds(adapter) });
    return { ids, feeds: prefixFeeds(found) };
  }

  const prefixFeeds = (found: Readonly<Record<string, Tensor>>) =>
    Object.fromEntries(caches.map((name) => [prefixName(name), found[name]!]));

  return {
    checkpoint,
    async gradients(batch, adapter, { microBatch = batch.length, dropoutSeed } = {}) {
      const total = labelCount(batch);
      if (total === 0) throw new Error('model: no token of the batch is labelled; there is nothing to learn');
      const dropout = dropoutOf(adapter.config, dropoutSeed);
      const { program, masks } = await get('train', adapter.config, { training: dropout !== undefined });
      const prefix = await openPrefix(batch, adapter, dropout);
      const sums = new Map<string, Float32Tensor>();
      const tokens = { real: 0, computed: prefix.ids.length, padding: 0 };
      let loss = 0;
      const byLength = batch
        .map((sequence, index) => ({ sequence, index }))
        .sort((a, b) => a.sequence.ids.length - b.sequence.ids.length);
      for (const part of chunks(byLength, microBatch)) {
        const sequences = part.map(({ sequence }) => sequence);
        const computed = batchOf(config, sequences, { prefix: prefix.ids.length });
        const labelled = labelFeeds(sequences, computed, total);
        const real = sequences.reduce((n, { ids }) => n + ids.length, 0);
        const padded = sequences.length * computed.time;
        tokens.real += real;
        tokens.computed += padded;
        tokens.padding += padded - (real - sequences.length * prefix.ids.length);
        if (labelled.labels!.dims[0] === 0) continue;
        const rows = part.map(({ sequence, index }) => ({
          stream: index,
          tokens: sequence.ids.length - prefix.ids.length,
          stride: computed.time,
          labels: labelCount([sequence]),
        }));
        const found = await program.run({
          ...computed.feeds,
          ...labelled,
          ...prefix.feeds,
          ...adapterFeeds(adapter),
          ...dropout?.(masks, rows),
        });
        loss += Number(found.loss!.data[0]);
        for (const [name, tensor] of Object.entries(found)) if (name !== 'loss') addTo(sums, name, tensor);
      }
      if (prefix.ids.length > 0) {
        const seeds = caches.map((name) => gradientName(prefixName(name)));
        const ofKeysAndValues = Object.fromEntries(seeds.map((name) => [name, sums.get(name)!]));
        const found = await runPrefix('prefixGradients', prefix.ids, adapter, dropout, ofKeysAndValues);
        for (const [name, tensor] of Object.entries(found)) addTo(sums, name, tensor);
      }
      const gradients = new Map(
        [...adapter.tensors.keys()].map((name) => [name, sums.get(gradientName(name))!]),
      );
      return { loss, gradients, tokens };
    },

    async loss(sequences, adapter, microBatch = defaultBatch) {
      const total = labelCount(sequences);
      if (total === 0) throw new Error('model: no token is labelled; there is no loss');
      const { program } = await get('loss', adapter?.config);
      const prefix = await openPrefix(sequences, adapter);
      let loss = 0;
      const byLength = sequences.toSorted((a, b) => a.ids.length - b.ids.length);
      for (const part of chunks(byLength, microBatch)) {
        const batch = batchOf(config, part, { prefix: prefix.ids.length });
        const labelled = labelFeeds(part, batch, total);
        if (labelled.labels!.dims[0] === 0) continue;
        const found = await program.run({
          ...batch.feeds,
          ...labelled,
          ...prefix.feeds,
          ...adapterFeeds(adapter),
        });
        loss += Number(found.loss!.data[0]);
      }
      return loss;
    },

    async vectors(sequences, adapter) {
      const { program } = await get('vectors', adapter?.config);
      const parts = sequences.map((ids) => ({ ids }));
      const batch = batchOf(config, parts);
      const found = await program.run({
        ...batch.feeds,
        rows: lastRows(parts, batch),
        ...adapterFeeds(adapter),
      });
      return found.vectors as Float32Tensor;
    },

    async trace(sequences, adapter) {
      const { program } = await get('trace', adapter?.config);
      return program.run({ ...batchOf(config, sequences).feeds, ...adapterFeeds(adapter) });
    },

    async generate(prompts, options, adapter) {
      if (prompts.length === 0) return [];
      const prefix = await openPrefix(
        prompts.map((ids) => ({ ids })),
        adapter,
      );
      return generateInBatches(prompts, options, config.vocabularySize, async (part, search, reader) => {
        const { wanted } = reader;
        const { program: promptPass } = await get('prompt', adapter?.config, { wanted });
        const { program: decoding } = await get('decode', adapter?.config, { wanted });
        const decoder = { config, prefix, promptPass, decoding, adapter: adapterFeeds(adapter) };
        return continuations(part, decoder, search, reader);
      });
    },

    async likelihoods(prompts, continuations, options = {}, adapter) {
      const { program } = await get('losses', adapter?.config);
      const shared = await openPrefix(
        prompts.map((ids) => ({ ids: ids.slice(0, -1) })),
        adapter,
      );
      return likelihoodsBehind(prompts, continuations, options, async (prompt) => {
        const prefix = await openPrompt(prompt, shared, adapter);
        return async (part) => {
          const batch = batchOf(config, sequencesBehind(prompt, part), { prefix: prefix.ids.length });
          const found = await program.run({
            ...batch.feeds,
            ...continuationFeeds(part, batch),
            ...prefix.feeds,
            ...adapterFeeds(adapter),
          });
          return found.losses!.data as Float32Array;
        };
      });
    },

    release: (...kinds) => programs.release(kinds),
  };
}

/** How many tokens that all sequences begin with are to be computed once; 0 where that does not pay. */
export function prefixWorthSharing(sequences: readonly (Tokens & Partial<Sequence>)[]): number {
  const length = sequences.length < worthSharing.sequences ? 0 : sharedPrefix(sequences);
  return length < worthSharing.tokens ? 0 : length;
}

/** Feeds the masks of a program for the sequences that it computes. */
type Dropout = (masks: ReadonlyMap<string, Value>, rows: readonly MaskedRows[]) => Record<string, Tensor>;

function dropoutOf({ dropout }: LoraConfig, seed: StepOptions['dropoutSeed']): Dropout | undefined {
  if (dropout === 0) return undefined;
  if (!seed) throw new Error('model: the adapter has dropout; pass dropoutSeed');
  return (masks, rows) => dropoutFeeds(masks, dropout, rows, seed);
}

export function adapterFeeds(adapter: Adapter | undefined): Record<string, Tensor> {
  return adapter ? Object.fromEntries(adapter.tensors) : {};
}
