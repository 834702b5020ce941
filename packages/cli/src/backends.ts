// The two recommenders, opened as a configuration says.
import type { ParametersFormat } from '@fellrec/federation';
import type { Runtime } from '@fellrec/graph';
import {
  type Checkpoint,
  encoderModel,
  type LoraConfig,
  languageModel,
  loadTokenizer,
  openCheckpoint,
  openRecformer,
  type QuantizedBase,
  quantizeBase,
  readAdapter,
  readParameters,
  writeAdapter,
  writeRecformer,
} from '@fellrec/models';
import { bigrec, calibrationSequences, type Dataset, type Recommender, recformer } from '@fellrec/recsys';
import type { Config } from './config.ts';
import type { Report } from './experiment.ts';
import { keepsForItems } from './item-tables.ts';

export interface Backend {
  readonly recommender: Recommender;
  readonly modelHash: string;
  /** How its parameters lie in a run's folder. */
  readonly format: ParametersFormat;
}

export interface BackendOptions {
  readonly dataset: Dataset;
  readonly runtime: Runtime;
  readonly report: Report;
}

export function openBackend(config: Config, options: BackendOptions): Promise<Backend> {
  return config.recommender === 'bigrec'
    ? openBigrec(config, options)
    : openRecformerBackend(config, options);
}

async function openBigrec(config: Config, { dataset, runtime, report }: BackendOptions): Promise<Backend> {
  const checkpoint = await openCheckpoint(config.model.path, { cacheDir: config.cache });
  const tokenizer = await loadTokenizer(checkpoint.directory);
  const text = {
    catalogue: dataset.catalogue,
    tokenizer,
    domain: config.domain,
    maxTokens: Math.min(config.model.maxTokens, checkpoint.config.contextLength),
    eosIds: checkpoint.config.eosIds,
  };
  const quantized = await openBase(config, { checkpoint, runtime, text }, report);
  const recommender = bigrec({
    model: languageModel(checkpoint, runtime, quantized),
    tokenizer,
    catalogue: dataset.catalogue,
    domain: config.domain,
    lora: config.lora,
    lossOn: config.training.lossOn,
    maxTokens: config.model.maxTokens,
    beams: config.generation.beams,
    maxNewTokens: config.generation.maxNewTokens,
    generationBatch: config.generation.batch,
    cacheDir: config.cache,
    onProgress: (done, total) => report('title vectors', done, total),
  });
  return { recommender, modelHash: checkpoint.hash, format: adapters(config.lora, config.model.path) };
}

async function openRecformerBackend(
  config: Config,
  { dataset, runtime, report }: BackendOptions,
): Promise<Backend> {
  const { attributes, tune, temperature, negatives, pooling } = config.recformer;
  const checkpoint = await openRecformer(config.model.path, { cacheDir: config.cache });
  const limited = {
    ...checkpoint,
    config: {
      ...checkpoint.config,
      limits: {
        ...checkpoint.config.limits,
        maxTokens: Math.min(config.model.maxTokens, checkpoint.config.limits.maxTokens),
      },
    },
  };
  const model = encoderModel(limited, runtime, { pooling });
  const recommender = recformer({
    model,
    tokenizer: await loadTokenizer(checkpoint.directory),
    catalogue: dataset.catalogue,
    attributes: attributes ?? defaultAttributes(dataset),
    tune: tune === 'full' ? 'full' : config.lora,
    temperature,
    negatives,
    cacheDir: config.cache,
    onProgress: (done, total) => report('item vectors', done, total),
  });
  const format: ParametersFormat =
    tune === 'full'
      ? {
          write: (directory, tensors) =>
            writeRecformer(directory, { ...checkpoint.config, pooling: model.pooling }, tensors),
          read: async (directory) =>
            readParameters(await openRecformer(directory, { cacheDir: config.cache })),
        }
      : adapters(config.lora, config.model.path);
  return { recommender, modelHash: checkpoint.hash, format: { ...format, keeps: keepsForItems(config) } };
}

/** RecFormer's attributes, as far as the catalogue has them. */
function defaultAttributes({ catalogue }: Dataset): string[] {
  return ['title', 'brand', 'category'].filter(
    (name) => name === 'title' || catalogue.items.some(({ attributes }) => attributes[name]),
  );
}

/** Adapters as PEFT folders. */
function adapters(config: LoraConfig, baseModel: string): ParametersFormat {
  return {
    write: (directory, tensors) => writeAdapter(directory, { config, tensors }, baseModel),
    read: async (directory) => (await readAdapter(directory)).tensors,
  };
}

/** The quantised base that a configuration asks for, calibrated on drawn items. */
async function openBase(
  { model: { base }, cache }: Config,
  {
    checkpoint,
    runtime,
    text,
  }: {
    readonly checkpoint: Checkpoint;
    readonly runtime: Runtime;
    readonly text: Parameters<typeof calibrationSequences>[0];
  },
  report: Report,
): Promise<QuantizedBase | undefined> {
  if (base === 'float32') return undefined;
  report('quantised base', 0, 1);
  const calibration = calibrationSequences(text);
  const quantized = await quantizeBase(checkpoint, { base, calibration, runtime, cacheDir: cache });
  report('quantised base', 1, 1);
  return quantized;
}
