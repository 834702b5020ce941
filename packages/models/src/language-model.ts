// A causal language model ready to train and to generate: a checkpoint, its programs (compiled when first used) and an
// adapter that is passed in with every call, so that one copy of the base weights serves any number of adapters.
import {
  type Float32Tensor,
  int64,
  type NamedTensors,
  type Outputs,
  type Program,
  type Runtime,
  type Tensor,
  type Value,
} from '@fellrec/graph';
import {
  dropoutFeeds,
  labelCount,
  labelFeeds,
  lastRows,
  promptMask,
  type Sequence,
  sequenceFeeds,
  type Tokens,
} from './batch.ts';
import type { Checkpoint } from './checkpoint/checkpoint.ts';
import { beamSearch, type GenerationOptions, type Hypothesis } from './generation.ts';
import { llama, rotaryTables } from './llama.ts';
import { type LoraConfig, loraGraph } from './lora.ts';
import {
  decodingProgram,
  gradientName,
  grownName,
  keyName,
  lossProgram,
  promptProgram,
  tracingProgram,
  trainingStep,
  valueName,
  vectorProgram,
} from './programs.ts';

/** An adapter's tensors, and how they apply. */
export interface Adapter {
  readonly config: LoraConfig;
  readonly tensors: NamedTensors;
}

export interface StepOptions {
  /** Sequences computed at once; gradients add up to those of the whole batch. */
  readonly microBatch?: number;
  /** Names the stream that dropout draws from; needed if the adapter has dropout. */
  readonly dropoutSeed?: readonly [number, ...(string | number)[]];
}

export interface StepResult {
  /** Mean over the batch's labels. */
  readonly loss: number;
  readonly gradients: NamedTensors;
  /** Tokens computed without and with padding. */
  readonly tokens: { readonly real: number; readonly padded: number };
}

export interface LanguageModel {
  readonly checkpoint: Checkpoint;
  /** Loss and its gradient with respect to the adapter. @throws if no token is labelled. */
  gradients(batch: readonly Sequence[], adapter: Adapter, options?: StepOptions): Promise<StepResult>;
  /** Mean loss over all labels, without dropout. */
  loss(sequences: readonly Sequence[], adapter?: Adapter, microBatch?: number): Promise<number>;
  /** The normalised last hidden state of each sequence's last token, [sequences, d]. */
  vectors(sequences: readonly (readonly number[])[], adapter?: Adapter): Promise<Float32Tensor>;
  /** `hidden.0` ... `hidden.n` and `logits` at every token of sequences padded on the right, [batch * time, ...]. */
  trace(sequences: readonly Tokens[], adapter?: Adapter): Promise<Record<string, Tensor>>;
  /** The best `beams` continuations of each prompt, best first. */
  generate(
    prompts: readonly (readonly number[])[],
    options: GenerationOptions,
    adapter?: Adapter,
  ): Promise<Hypothesis[][]>;
  /** Frees the programs of one kind, or all; they are compiled again when needed. */
  release(kind?: ProgramKind): Promise<void>;
}

type ProgramKind = 'train' | 'loss' | 'vectors' | 'trace' | 'prompt' | 'decode';

interface Compiled {
  readonly program: Program;
  readonly masks: ReadonlyMap<string, Value>;
}

/** Opens a checkpoint for computation. Nothing is compiled before it is needed. */
export function languageModel(checkpoint: Checkpoint, runtime: Runtime): LanguageModel {
  const { config } = checkpoint;
  const model = llama(checkpoint);
  const compiled = new Map<string, Promise<Compiled>>();

  function get(kind: ProgramKind, adapter?: LoraConfig): Promise<Compiled> {
    const key = `${kind} ${adapter ? JSON.stringify(adapter) : ''}`;
    let known = compiled.get(key);
    if (!known) {
      known = compile(kind, adapter);
      compiled.set(key, known);
    }
    return known;
  }

  async function compile(kind: ProgramKind, adapter?: LoraConfig): Promise<Compiled> {
    const lora = adapter && loraGraph(config, adapter, { training: kind === 'train' });
    const noMasks = new Map();
    // Programs that run once a round or less share the pages of the weights' files instead of copying them.
    const prepack = kind === 'train' || kind === 'prompt' || kind === 'decode';
    const make = async (outputs: Outputs, masks: Compiled['masks'] = noMasks) => ({
      program: await runtime.compile(outputs, { prepack }),
      masks,
    });
    switch (kind) {
      case 'train': {
        const { outputs, masks } = trainingStep(model, config, lora!);
        return make(outputs, masks);
      }
      case 'loss':
        return make(lossProgram(model, config, lora));
      case 'vectors':
        return make(vectorProgram(model, config, lora));
      case 'trace':
        return make(tracingProgram(model, config, lora));
      case 'prompt':
        return make(promptProgram(model, config, lora));
      case 'decode':
        return make(decodingProgram(model, config, lora));
    }
  }

  return {
    checkpoint,
    async gradients(batch, adapter, { microBatch = batch.length, dropoutSeed } = {}) {
      const total = labelCount(batch);
      if (total === 0) throw new Error('model: no token of the batch is labelled; there is nothing to learn');
      const { program, masks } = await get('train', adapter.config);
      const sums = new Map<string, Float32Tensor>();
      let loss = 0;
      let padded = 0;
      for (const [index, sequences] of microBatches(batch, microBatch).entries()) {
        const { feeds, time } = sequenceFeeds(config, sequences);
        const labelled = labelFeeds(sequences, time, total);
        const sizes = { tokens: sequences.length * time, labels: labelled.labels!.dims[0]! };
        padded += sizes.tokens;
        if (sizes.labels === 0) continue;
        const dropping = masks.size > 0;
        if (dropping && !dropoutSeed) throw new Error('model: the adapter has dropout; pass dropoutSeed');
        const found = await program.run({
          ...feeds,
          ...labelled,
          ...Object.fromEntries(adapter.tensors),
          ...(dropping && dropoutFeeds(masks, adapter.config.dropout, sizes, [...dropoutSeed!, index])),
        });
        loss += Number(found.loss!.data[0]);
        for (const name of adapter.tensors.keys())
          addTo(sums, name, found[gradientName(name)] as Float32Tensor);
      }
      const real = batch.reduce((n, { ids }) => n + ids.length, 0);
      return { loss, gradients: sums, tokens: { real, padded } };
    },

    async loss(sequences, adapter, microBatch = 8) {
      const total = labelCount(sequences);
      if (total === 0) throw new Error('model: no token is labelled; there is no loss');
      const { program } = await get('loss', adapter?.config);
      let loss = 0;
      for (const part of microBatches(sequences, microBatch)) {
        const { feeds, time } = sequenceFeeds(config, part);
        const labelled = labelFeeds(part, time, total);
        if (labelled.labels!.dims[0] === 0) continue;
        const found = await program.run({ ...feeds, ...labelled, ...adapterFeeds(adapter) });
        loss += Number(found.loss!.data[0]);
      }
      return loss;
    },

    async vectors(sequences, adapter) {
      const { program } = await get('vectors', adapter?.config);
      const parts = sequences.map((ids) => ({ ids }));
      const { feeds, time } = sequenceFeeds(config, parts);
      const found = await program.run({ ...feeds, rows: lastRows(parts, time), ...adapterFeeds(adapter) });
      return found.vectors as Float32Tensor;
    },

    async trace(sequences, adapter) {
      const { program } = await get('trace', adapter?.config);
      const { feeds } = sequenceFeeds(config, sequences);
      return program.run({ ...feeds, ...adapterFeeds(adapter) });
    },

    async generate(prompts, options, adapter) {
      if (prompts.length === 0) return [];
      const { program: promptPass } = await get('prompt', adapter?.config);
      const { program: decoding } = await get('decode', adapter?.config);
      const parts = prompts.map((ids) => ({ ids }));
      const { feeds, time } = sequenceFeeds(config, parts);
      const prompt = await promptPass.run({
        ...feeds,
        rows: lastRows(parts, time),
        ...adapterFeeds(adapter),
      });
      const lengths = prompts.map((ids) => ids.length);
      const { beams } = options;
      const users = prompts.length;
      const layers = Array.from({ length: config.layerCount }, (_, layer) => [
        keyName(layer),
        valueName(layer),
      ]).flat();
      const fixed = {
        ...adapterFeeds(adapter),
        ...rotaryTables(config, Math.max(...lengths) + options.maxNewTokens),
        promptMask: promptMask(lengths, time),
        ...Object.fromEntries(layers.map((name) => [`prompt.${name}`, prompt[name]!])),
      };
      const empty = [users * beams, config.keyValueHeadCount, 0, config.headDim];
      let cache: Record<string, Tensor> = Object.fromEntries(
        layers.map((name) => [name, { dtype: 'float32', dims: empty, data: new Float32Array(0) }]),
      );
      let generated = 0;
      const step = async (tokens: readonly number[], parents: readonly number[]) => {
        const positions = tokens.map((_, row) => lengths[Math.floor(row / beams)]! + generated);
        const found = await decoding.run({
          ...fixed,
          ...cache,
          ids: int64(tokens, [users, beams]),
          parents: int64(parents, [users, beams]),
          positions: int64(positions, [users * beams, 1]),
        });
        cache = Object.fromEntries(layers.map((name) => [name, found[grownName(name)]!]));
        generated++;
        return found.logProbabilities!.data as Float32Array;
      };
      return beamSearch(prompt.logProbabilities!.data as Float32Array, users, step, options);
    },

    async release(kind) {
      for (const [key, entry] of compiled) {
        if (kind && !key.startsWith(`${kind} `)) continue;
        compiled.delete(key);
        await (await entry).program.dispose();
      }
    },
  };
}

function adapterFeeds(adapter: Adapter | undefined): Record<string, Tensor> {
  return adapter ? Object.fromEntries(adapter.tensors) : {};
}

function microBatches<T>(items: readonly T[], size: number): T[][] {
  return Array.from({ length: Math.ceil(items.length / size) }, (_, i) =>
    items.slice(i * size, (i + 1) * size),
  );
}

function addTo(sums: Map<string, Float32Tensor>, name: string, tensor: Float32Tensor): void {
  const known = sums.get(name);
  if (!known) sums.set(name, tensor);
  else {
    const data = known.data.map((x, i) => x + tensor.data[i]!);
    sums.set(name, { ...known, data });
  }
}
