// An encoder ready to train and to encode: a checkpoint, its programs (compiled when first used) and parameters that are
// passed in with every call, so that one copy of the base weights serves any number of clients.
import {
  type Float32Tensor,
  float32,
  gather,
  input,
  int64,
  type NamedTensors,
  type Outputs,
  type Program,
  type Runtime,
  type Tensor,
  zeros,
} from '@fellrec/graph';
import { addTo, chunks } from '../batch.ts';
import type { StepOptions, StepResult } from '../language-model.ts';
import { type LoraConfig, type LoraGraph, loraGraph } from '../lora.ts';
import { type Compiled, programCache } from '../program-cache.ts';
import { gradientName } from '../programs.ts';
import { type AttentionForm, attentionForm, encoderBatch, type ItemSequence } from './batch.ts';
import type { RecformerCheckpoint } from './checkpoint.ts';
import { adaptedEncoderProjections, type RecformerConfig } from './config.ts';
import { encoderDropout } from './dropout.ts';
import { recformer, wordTable } from './layers.ts';
import {
  type Contrast,
  contrastiveLoss,
  hiddenStates,
  pooled,
  sequenceGraph,
  stepOutputs,
} from './programs.ts';

/** What is trained: an adapter's tensors with its configuration, or (without one) tensors in the checkpoint's place. */
export interface EncoderParameters {
  readonly lora?: LoraConfig;
  readonly tensors: NamedTensors;
}

export interface LabelledSequence {
  readonly sequence: ItemSequence;
  /** The item that is to be nearest, a row of the items' vectors. */
  readonly label: number;
  /** The items that it is compared with, the label among them; absent: all. As many for every sequence of a batch. */
  readonly candidates?: readonly number[];
}

export interface ContrastOptions {
  /** Unit vectors of the items, [items, d]; held constant. */
  readonly items: Float32Tensor;
  readonly temperature: number;
  readonly microBatch?: number;
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
  /** `hidden.0` ... `hidden.n` at every token of sequences padded on the right, [batch * time, d], and `time`. */
  trace(
    sequences: readonly ItemSequence[],
    parameters?: EncoderParameters,
    form?: AttentionForm,
  ): Promise<{ readonly hidden: Record<string, Tensor>; readonly time: number }>;
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
  /** Frees the compiled programs; they are compiled again when needed. */
  release(): Promise<void>;
}

type ProgramKind = 'train' | 'loss' | 'encode' | 'trace';

const defaultBatch = 8;

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
): EncoderModel {
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
    const own = new Map(
      loraConfig ? [] : [...tensors].map(([name, { dims }]) => [name, input(name, 'float32', dims)] as const),
    );
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
    { items, temperature, microBatch = kind === 'train' ? batch.length : defaultBatch }: ContrastOptions,
    training: boolean,
    extra: (compiled: Compiled, part: readonly Indexed[], time: number) => Record<string, Tensor>,
  ) {
    assertLabels(batch, items.dims[0]!);
    const byLength = batch
      .map((labelled, index): Indexed => ({ labelled, index }))
      .sort((a, b) => a.labelled.sequence.ids.length - b.labelled.sequence.ids.length);
    for (const part of chunks(byLength, microBatch)) {
      const sequences = part.map(({ labelled }) => labelled.sequence);
      const form = formOf(sequences);
      const candidates = part[0]!.labelled.candidates?.length ?? 'all';
      const found = await get(kind, parameters, { form, contrast: { temperature, candidates }, training });
      const { feeds, time } = encoderBatch(config, sequences, form);
      const outputs = await run(found.program, parameters, {
        ...feeds,
        items,
        ...labelFeeds(part, batch.length),
        ...extra(found, part, time),
      });
      const real = sequences.reduce((n, { ids }) => n + ids.length, 0);
      const computed = sequences.length * time;
      yield { outputs, ids: feeds.ids!, tokens: { real, computed, padding: computed - real } };
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
      if (batch.length === 0) throw new Error('model: the batch has no sequence; there is nothing to learn');
      const rate = parameters.lora?.dropout ?? 0;
      if (rate > 0 && !dropoutSeed) throw new Error('model: the adapter has dropout; pass dropoutSeed');
      const words = gradientName(wordTable);
      const sums = new Map<string, Float32Tensor>();
      const tokens = { real: 0, computed: 0, padding: 0 };
      let loss = 0;
      const dropped = ({ masks }: Compiled, part: readonly Indexed[], time: number) =>
        rate > 0
          ? encoderDropout(
              masks,
              rate,
              part.map(({ labelled, index }) => ({ stream: index, tokens: labelled.sequence.ids.length })),
              time,
              dropoutSeed!,
            )
          : {};
      for await (const part of parts(batch, 'train', parameters, options, rate > 0, dropped)) {
        tokens.real += part.tokens.real;
        tokens.computed += part.tokens.computed;
        tokens.padding += part.tokens.padding;
        loss += Number(part.outputs.loss!.data[0]);
        for (const [name, tensor] of Object.entries(part.outputs)) {
          if (name === 'loss') continue;
          const found = tensor as Float32Tensor;
          if (name === words) addRows(sums, name, part.ids, found, config.vocabularySize);
          else addTo(sums, name, found);
        }
      }
      const gradients = new Map(
        [...parameters.tensors].map(([name, { dims }]) => [
          name,
          sums.get(gradientName(name)) ?? zeros(dims),
        ]),
      );
      return { loss, gradients, tokens };
    },

    async loss(batch, parameters, options) {
      if (batch.length === 0) throw new Error('model: the batch has no sequence; there is no loss');
      let loss = 0;
      for await (const { outputs } of parts(batch, 'loss', parameters, options, false, () => ({})))
        loss += Number(outputs.loss!.data[0]);
      return loss;
    },

    release: () => programs.release([]),
  };
}

interface Indexed {
  readonly labelled: LabelledSequence;
  /** Place in the batch: names the stream of dropout. */
  readonly index: number;
}

/** Feeds what a program takes of the parameters and of what else there is. */
function run(
  program: Program,
  parameters: EncoderParameters | undefined,
  feeds: Record<string, Tensor>,
): Promise<Record<string, Tensor>> {
  const available = [...Object.entries(feeds), ...(parameters?.tensors ?? [])];
  return program.run(Object.fromEntries(available.filter(([name]) => program.inputs.has(name))));
}

/** @throws if a label or a candidate is no item, a label is no candidate, or candidates are of different numbers. */
function assertLabels(batch: readonly LabelledSequence[], items: number): void {
  const size = batch[0]!.candidates?.length;
  for (const { label, candidates } of batch) {
    if (candidates?.length !== size)
      throw new Error('model: sequences of one batch are compared with different numbers of candidates');
    const outside = [label, ...(candidates ?? [])].find(
      (item) => !(Number.isInteger(item) && item >= 0 && item < items),
    );
    if (outside !== undefined) throw new Error(`model: there is no item ${outside} among ${items}`);
    if (candidates && !candidates.includes(label))
      throw new Error(`model: item ${label} is the label, but none of the candidates`);
  }
}

function labelFeeds(part: readonly Indexed[], total: number): Record<string, Tensor> {
  const size = part[0]!.labelled.candidates?.length;
  const labels = part.map(({ labelled: { label, candidates } }) => candidates?.indexOf(label) ?? label);
  return {
    labels: int64(labels, [part.length]),
    weights: float32(new Float32Array(part.length).fill(1 / total), [part.length]),
    ...(size !== undefined && {
      candidates: int64(
        part.flatMap(({ labelled }) => [...labelled.candidates!]),
        [part.length, size],
      ),
    }),
  };
}

/** Adds the rows of tokens to those of a table. */
function addRows(
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
