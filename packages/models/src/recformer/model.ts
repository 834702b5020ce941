// An encoder ready to train and to encode: a checkpoint, its programs (compiled when first used) and parameters that are
// passed in with every call, so that one copy of the base weights serves any number of clients.
import {
  type Feeds,
  type Float32Tensor,
  float32,
  gather,
  type NamedTensors,
  type Outputs,
  type Program,
  type Runtime,
  type Tensor,
  zeros,
} from '@fellrec/graph';
import { addTo } from '../batch.ts';
import type { StepOptions, StepResult } from '../language-model.ts';
import { type LoraConfig, type LoraGraph, loraGraph } from '../lora.ts';
import { type Compiled, programCache, runOn } from '../program-cache.ts';
import { gradientName } from '../programs.ts';
import { type AttentionForm, attentionForm, encoderBatch, type ItemSequence } from './batch.ts';
import type { RecformerCheckpoint } from './checkpoint.ts';
import { adaptedEncoderProjections, type RecformerConfig } from './config.ts';
import {
  type ContrastOptions,
  type ContrastPart,
  contrastParts,
  defaultBatch,
  type LabelledSequence,
  tokenCounts,
} from './contrast.ts';
import { encoderDropout } from './dropout.ts';
import { recformer, wordTable } from './layers.ts';
import {
  type Contrast,
  contrastiveLoss,
  hiddenStates,
  pooled,
  sequenceGraph,
  stepOutputs,
  tensorInputs,
} from './programs.ts';

/** What is trained: an adapter's tensors with its configuration, or (without one) tensors in the checkpoint's place. */
export interface EncoderParameters {
  readonly lora?: LoraConfig;
  readonly tensors: NamedTensors;
}

export interface EncodeOptions {
  /** `full`: as a plain encoder, without window and without the first token's own projections. */
  readonly attention?: 'full';
  readonly pooling?: RecformerConfig['pooling'];
}

export interface EncoderModel {
  readonly checkpoint: RecformerCheckpoint;
  readonly pooling: RecformerConfig['pooling'];
  /** One vector a sequence, [sequences, d]. */
  encode(
    sequences: readonly ItemSequence[],
    parameters?: EncoderParameters,
    options?: EncodeOptions,
  ): Promise<Float32Tensor>;
  /** Mean loss and its gradients. A parameter without influence has a gradient of 0. */
  gradients(
    batch: readonly LabelledSequence[],
    parameters: EncoderParameters,
    options: ContrastOptions & Pick<StepOptions, 'dropoutSeed'>,
  ): Promise<StepResult>;
  /** Mean loss, without dropout. */
  loss(
    batch: readonly LabelledSequence[],
    parameters: EncoderParameters | undefined,
    options: ContrastOptions,
  ): Promise<number>;
  /**
   * Where other layers' parameters are trained elsewhere: their optimizer step, after `gradients`. Takes the sum of
   * squares of the gradients here, and returns theirs: clipping is by the norm over all.
   */
  readonly updateElsewhere?: ((squaredNorm: number, learningRate: number) => Promise<number>) | undefined;
  /** Frees the compiled programs; they are compiled again when needed. */
  release(): Promise<void>;
}

/** All of it in one process. */
export interface WholeEncoderModel extends EncoderModel {
  /** `hidden.0` ... `hidden.n` at every token of sequences padded on the right, [batch * time, d], and `time`. */
  trace(
    sequences: readonly ItemSequence[],
    parameters?: EncoderParameters,
    form?: AttentionForm,
  ): Promise<{ readonly hidden: Record<string, Tensor>; readonly time: number }>;
}

type ProgramKind = 'train' | 'loss' | 'encode' | 'trace';

export interface EncoderOptions {
  /** How sequences become vectors, if not as the checkpoint says. */
  readonly pooling?: RecformerConfig['pooling'] | undefined;
  /** How tokens read each other, if not what is faster for their number; for tests and measurements. */
  readonly form?: 'dense' | 'blocks' | undefined;
}

/** Opens a checkpoint for computation. Nothing is compiled before it is needed. */
export function encoderModel(
  checkpoint: RecformerCheckpoint,
  runtime: Runtime,
  { pooling = checkpoint.config.pooling, form: chosen }: EncoderOptions = {},
): WholeEncoderModel {
  const { config } = checkpoint;
  const programs = programCache<ProgramKind>();

  interface Variant {
    readonly form: AttentionForm;
    readonly contrast?: Contrast;
    readonly pooling?: RecformerConfig['pooling'];
    /** With dropout. */
    readonly training?: boolean;
  }

  function get(
    kind: ProgramKind,
    parameters: EncoderParameters | undefined,
    variant: Variant,
  ): Promise<Compiled> {
    const trained = parameters && (parameters.lora ?? [...parameters.tensors.keys()]);
    return programs.get(kind, [trained, variant], () => compile(kind, parameters, variant));
  }

  async function compile(
    kind: ProgramKind,
    parameters: EncoderParameters | undefined,
    { form, contrast, training = false, pooling: pool = pooling }: Variant,
  ): Promise<Compiled> {
    const { lora: loraConfig, tensors } = parameters ?? { tensors: new Map() };
    const lora: LoraGraph | undefined =
      loraConfig && loraGraph(adaptedEncoderProjections(config, loraConfig), loraConfig, { training });
    const own = tensorInputs(loraConfig ? new Map() : tensors);
    const model = recformer(checkpoint, own);
    const read = sequenceGraph(config, form, lora);
    const table = kind === 'train' ? own.get(wordTable) : undefined;
    const words = table && gather(table, read.tokens.ids);
    const graph = words ? { ...read, tokens: { ...read.tokens, words } } : read;
    const make = async (outputs: Outputs) => ({
      program: await runtime.compile(outputs, { prepack: kind === 'train' || kind === 'encode' }),
      masks: lora?.masks ?? new Map(),
    });
    if (kind === 'trace') return make(hiddenStates(model, graph));
    const vectors = pooled(model, graph, pool);
    if (kind === 'encode') return make({ vectors });
    const loss = contrastiveLoss(vectors, contrast!);
    if (kind === 'loss') return make({ loss });
    // The gradient of the rows that were read instead of the whole table's.
    const variables = new Map(lora?.parameters ?? own);
    if (words) variables.set(wordTable, words);
    return make(stepOutputs(loss, variables));
  }

  const formOf = (sequences: readonly ItemSequence[]): AttentionForm =>
    chosen ?? attentionForm(Math.max(...sequences.map(({ ids }) => ids.length)), config);

  /** Runs a batch in parts of like lengths. */
  async function* parts(
    batch: readonly LabelledSequence[],
    kind: 'train' | 'loss',
    parameters: EncoderParameters | undefined,
    options: ContrastOptions,
    dropout?: (compiled: Compiled, part: ContrastPart, time: number) => Feeds,
  ) {
    for (const part of contrastParts(batch, options)) {
      const { sequences, contrast } = part;
      const form = formOf(sequences);
      const found = await get(kind, parameters, { form, contrast, training: dropout !== undefined });
      const { feeds, time } = encoderBatch(config, sequences, form);
      const outputs = await run(found.program, parameters, {
        ...feeds,
        ...part.feeds,
        ...dropout?.(found, part, time),
      });
      yield { outputs, ids: feeds.ids!, computed: sequences.length * time };
    }
  }

  return {
    checkpoint,
    pooling,
    async encode(sequences, parameters, { attention, pooling: pool = pooling } = {}) {
      if (sequences.length === 0) return float32([], [0, config.hiddenSize]);
      const form = attention ?? formOf(sequences);
      const { program } = await get('encode', parameters, { form, pooling: pool });
      const { feeds } = encoderBatch(config, sequences, form);
      const found = await run(program, parameters, feeds);
      return found.vectors as Float32Tensor;
    },

    async trace(sequences, parameters, form = formOf(sequences)) {
      const { program } = await get('trace', parameters, { form });
      const { feeds, time } = encoderBatch(config, sequences, form);
      return {
        hidden: await run(program, parameters, feeds),
        time,
      };
    },

    async gradients(batch, parameters, { dropoutSeed, ...options }) {
      const rate = parameters.lora?.dropout ?? 0;
      if (rate > 0 && !dropoutSeed) throw new Error('model: the adapter has dropout; pass dropoutSeed');
      const words = gradientName(wordTable);
      const sums = new Map<string, Float32Tensor>();
      let [loss, computed] = [0, 0];
      const dropout = ({ masks }: Compiled, { sequences, places }: ContrastPart, time: number) =>
        encoderDropout(
          masks,
          rate,
          sequences.map(({ ids }, i) => ({ stream: places[i]!, tokens: ids.length })),
          time,
          dropoutSeed!,
        );
      for await (const part of parts(batch, 'train', parameters, options, rate > 0 ? dropout : undefined)) {
        computed += part.computed;
        loss += Number(part.outputs.loss!.data[0]);
        for (const [name, tensor] of Object.entries(part.outputs)) {
          if (name === 'loss') continue;
          const found = tensor as Float32Tensor;
          if (name === words) addRows(sums, name, part.ids, found, config.vocabularySize);
          else addTo(sums, name, found);
        }
      }
      return {
        loss,
        gradients: gradientsOf(parameters.tensors, sums),
        tokens: tokenCounts(batch, computed),
      };
    },

    async loss(batch, parameters, options) {
      let loss = 0;
      for await (const { outputs } of parts(batch, 'loss', parameters, {
        microBatch: defaultBatch,
        ...options,
      }))
        loss += Number(outputs.loss!.data[0]);
      return loss;
    },

    release: () => programs.release([]),
  };
}

/** Feeds what a program takes of the parameters and of what else there is. */
export function run(
  program: Program,
  parameters: EncoderParameters | undefined,
  feeds: Record<string, Tensor>,
): Promise<Record<string, Tensor>> {
  return runOn(program, { ...feeds, ...Object.fromEntries(parameters?.tensors ?? []) });
}

/** The sum of each parameter's gradients, 0 where there is none. */
export function gradientsOf(parameters: NamedTensors, sums: NamedTensors): NamedTensors {
  return new Map(
    [...parameters].map(([name, { dims }]) => [name, sums.get(gradientName(name)) ?? zeros(dims)]),
  );
}

/** Adds the rows of tokens to those of a table. */
export function addRows(
  sums: Map<string, Float32Tensor>,
  name: string,
  ids: Tensor,
  { data, dims }: Float32Tensor,
  count: number,
): void {
  const d = dims[1]!;
  const table = sums.get(name) ?? zeros([count, d]);
  sums.set(name, table);
  for (let row = 0; row < dims[0]!; row++) {
    const at = Number(ids.data[row]) * d;
    for (let i = 0; i < d; i++) table.data[at + i]! += data[row * d + i]!;
  }
}

/** Rows divided by their norms. */
export function unitRows({ data, dims }: Float32Tensor): Float32Tensor {
  const d = dims[1]!;
  const unit = data.slice();
  for (let at = 0; at < unit.length; at += d) unitRow(unit.subarray(at, at + d));
  return float32(unit, dims);
}

/** A vector divided by its norm, in place. */
export function unitRow(row: Float32Array): Float32Array {
  let squares = 0;
  for (let i = 0; i < row.length; i++) squares += row[i]! * row[i]!;
  const length = Math.sqrt(squares);
  for (let i = 0; i < row.length; i++) row[i]! /= length;
  return row;
}
