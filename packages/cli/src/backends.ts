// The two recommenders, opened as a configuration says.
import { join } from 'node:path';
import type { ParametersFormat } from '@fellrec/federation';
import type { NamedTensors, Runtime } from '@fellrec/graph';
import {
  adaptedEncoderProjections,
  assertWhole,
  attentionForm,
  type Checkpoint,
  type CutLayers,
  cutLayers,
  describePart,
  type EncoderModel,
  encoderModel,
  freshAdapter,
  holdsEncoder,
  initialAdapter,
  type LanguageModel,
  type LoraConfig,
  languageModel,
  layerOf,
  llama,
  llamaCut,
  loadTokenizer,
  type MiddleLayers,
  openCheckpoint,
  openRecformer,
  type QuantizedBase,
  quantizeBase,
  type RecformerCheckpoint,
  type RecformerConfig,
  readAdapter,
  readParameters,
  readSafetensors,
  recformerCut,
  splitEncoder,
  splitLanguageModel,
  writeAdapter,
  writeRecformer,
} from '@fellrec/models';
import {
  bigrec,
  type Catalogue,
  calibrationSequences,
  catalogueTitles,
  type Domain,
  type Recommender,
  recformer,
} from '@fellrec/recsys';
import type { Config } from './config.ts';
import type { Report } from './experiment.ts';
import { inGroup } from './groups.ts';
import { keepsForItems } from './item-tables.ts';

export type AnyCheckpoint = Checkpoint | RecformerCheckpoint;

export interface ModelParts {
  readonly checkpoint: AnyCheckpoint;
  readonly layers: CutLayers;
  /** How its parameters lie in a run's folder. */
  readonly format: ParametersFormat;
  /** What all clients start from, of all layers. */
  initialParameters(seed: number): Promise<NamedTensors>;
}

/** What recommends the items of one catalogue. */
export interface CatalogueRecommender {
  readonly recommender: Recommender;
  /**
   * The recommender of a client that keeps k layers and reaches the middle ones through `middle`. `cacheDir`: for vectors
   * of titles and items (default: the configuration's, which is for states that arrive as they were sent).
   */
  keeping(k: number, middle: MiddleLayers, cacheDir?: string): Recommender;
}

/** One model, and a recommender for each catalogue. */
export interface Backend extends ModelParts {
  /** In the order in which the catalogues were given. */
  readonly recommenders: readonly CatalogueRecommender[];
  dispose(): Promise<void>;
}

/** A catalogue, and how it is spoken of. */
export interface DescribedCatalogue {
  /** Of its group, if it has one. */
  readonly name?: string;
  readonly catalogue: Catalogue;
  readonly domain: Domain;
  /** Attributes of an item in their order (default: title, brand and category, as far as it has them). */
  readonly attributes?: readonly string[];
}

export interface BackendOptions {
  readonly catalogues: readonly DescribedCatalogue[];
  readonly runtime: Runtime;
  readonly report: Report;
}

export function openBackend(config: Config, options: BackendOptions): Promise<Backend> {
  return config.recommender === 'bigrec'
    ? openBigrec(config, options)
    : openRecformerBackend(config, options);
}

async function openBigrec(config: Config, { catalogues, runtime, report }: BackendOptions): Promise<Backend> {
  const checkpoint = await openCheckpoint(config.model.path, { cacheDir: config.cache });
  const tokenizer = await loadTokenizer(checkpoint.directory);
  const texts = catalogues.map(({ catalogue, domain }) => ({
    catalogue,
    tokenizer,
    domain,
    maxTokens: Math.min(config.model.maxTokens, checkpoint.config.contextLength),
    eosIds: checkpoint.config.eosIds,
  }));
  const quantized = await openBase(config, { checkpoint, runtime, texts }, report);
  const parts = languageModelParts(config, checkpoint, runtime);
  const model = languageModel(checkpoint, runtime, quantized);
  return assembled(
    parts,
    texts.map((text) => {
      const { catalogue, domain } = text;
      const titles = catalogueTitles(text, config.generation.maxNewTokens);
      const of = (model: LanguageModel, lora: LoraConfig, cacheDir = config.cache) =>
        bigrec({
          titles,
          model,
          tokenizer,
          catalogue,
          domain,
          lora,
          lossOn: config.training.lossOn,
          maxTokens: config.model.maxTokens,
          beams: config.generation.beams,
          maxNewTokens: config.generation.maxNewTokens,
          generationBatch: config.generation.batch,
          cacheDir,
          onProgress: (done, total) => report('title vectors', done, total),
        });
      return {
        recommender: of(model, config.lora),
        keeping: (k, middle, cacheDir) =>
          of(
            splitLanguageModel({ checkpoint, runtime, layers: parts.layers, kept: k, middle }),
            adapterOf(config.lora, k, checkpoint.config.layerCount),
            cacheDir,
          ),
      };
    }),
  );
}

/** What is common to both recommenders: what was opened is disposed of together. */
function assembled(parts: ModelParts, recommenders: readonly CatalogueRecommender[]): Backend {
  const opened = recommenders.map(({ recommender }) => recommender);
  return {
    ...parts,
    recommenders: recommenders.map(({ recommender, keeping }) => ({
      recommender,
      keeping(k, middle, cacheDir) {
        const cut = keeping(k, middle, cacheDir);
        opened.push(cut);
        return cut;
      },
    })),
    async dispose() {
      for (const recommender of opened) await recommender.dispose();
      await parts.layers.release();
    },
  };
}

/** The adapter of a client that keeps k layers and the last one. */
function adapterOf(lora: LoraConfig, k: number, layerCount: number): LoraConfig {
  const kept = Array.from({ length: layerCount }, (_, layer) => layer);
  return { ...lora, layers: kept.filter((layer) => layer < k || layer === layerCount - 1) };
}

async function openRecformerBackend(
  config: Config,
  { catalogues, runtime, report }: BackendOptions,
): Promise<Backend> {
  const { tune, temperature, negatives, pooling } = config.recformer;
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
  const tokenizer = await loadTokenizer(checkpoint.directory);
  const model = encoderModel(limited, runtime, { pooling });
  const parts = encoderParts(config, limited, runtime);
  return assembled(
    parts,
    catalogues.map((group) => {
      const { catalogue, attributes } = group;
      const of = (model: EncoderModel, lora: LoraConfig, cacheDir: string | undefined) =>
        recformer({
          model,
          runtime,
          tokenizer,
          catalogue,
          attributes: attributes ?? defaultAttributes(catalogue),
          tune: tune === 'full' ? 'full' : lora,
          temperature,
          negatives,
          cacheDir,
          onProgress: (done, total) => report('item vectors', done, total),
        });
      return {
        recommender: inGroup(group, () => of(model, config.lora, config.cache)),
        keeping: (k, middle, cacheDir = config.cache) =>
          of(
            splitEncoder({
              checkpoint: limited,
              runtime,
              layers: parts.layers,
              kept: k,
              middle,
              pooling: model.pooling,
            }),
            adapterOf(config.lora, k, checkpoint.config.layerCount),
            // The client's parameters do not say what layers elsewhere have learned.
            config.split.adapters === 'all-layers' ? undefined : cacheDir,
          ),
      };
    }),
  );
}

/** A model without what it recommends: all that a server has. @throws if it is a part that cannot serve. */
export async function openModel(config: Config, runtime: Runtime): Promise<ModelParts> {
  const { cache, model, recformer } = config;
  const options = { cacheDir: cache };
  if (config.recommender === 'bigrec') {
    const checkpoint = await openCheckpoint(model.path, options);
    assertServes(checkpoint);
    return languageModelParts(config, checkpoint, runtime);
  }
  const checkpoint = await openRecformer(model.path, options);
  assertServes(checkpoint);
  if (recformer.tune === 'full') assertWhole(checkpoint, 'handing out all tensors');
  return encoderParts(config, checkpoint, runtime);
}

function assertServes({ config, directory, part }: AnyCheckpoint): void {
  if (part?.side === 'client')
    throw new Error(
      `serve: ${directory} is ${describePart(part, config.layerCount)}; give the server's side, or the whole model`,
    );
}

/** An encoder if its config.json says so, else a LLaMA. */
export async function openAny(path: string, cacheDir: string): Promise<AnyCheckpoint> {
  return (await holdsEncoder(path)) ? openRecformer(path, { cacheDir }) : openCheckpoint(path, { cacheDir });
}

function languageModelParts(config: Config, checkpoint: Checkpoint, runtime: Runtime): ModelParts {
  return {
    checkpoint,
    layers: cutLayers(llamaCut(llama(checkpoint), checkpoint.config), runtime, config.split),
    format: adapters(config, checkpoint.config.layerCount),
    initialParameters: async (seed) => initialAdapter(checkpoint.config, config.lora, seed),
  };
}

function encoderParts(config: Config, checkpoint: RecformerCheckpoint, runtime: Runtime): ModelParts {
  const { tune, pooling } = config.recformer;
  const { config: shape } = checkpoint;
  const formOf = (lengths: readonly number[]) => attentionForm(Math.max(...lengths), shape);
  const format =
    tune === 'full' ? encoders(checkpoint, pooling ?? shape.pooling) : adapters(config, shape.layerCount);
  return {
    checkpoint,
    layers: cutLayers(recformerCut(checkpoint, formOf), runtime, config.split),
    format: { ...format, keeps: keepsForItems(config) },
    initialParameters: async (seed) =>
      tune === 'full'
        ? readParameters(checkpoint)
        : freshAdapter(adaptedEncoderProjections(shape, config.lora), config.lora, seed),
  };
}

/** Encoders as folders of their own; of a client that keeps some layers, what it has of one. */
function encoders(checkpoint: RecformerCheckpoint, pooling: RecformerConfig['pooling']): ParametersFormat {
  return {
    write: (directory, tensors) => writeRecformer(directory, { ...checkpoint.config, pooling }, tensors),
    async read(directory) {
      const found = await readSafetensors(join(directory, 'model.safetensors'));
      return found as NamedTensors;
    },
  };
}

/** RecFormer's attributes, as far as the catalogue has them. */
export function defaultAttributes({ items }: Catalogue): string[] {
  return ['title', 'brand', 'category'].filter(
    (name) => name === 'title' || items.some(({ attributes }) => attributes[name]),
  );
}

/** Adapters as PEFT folders. */
function adapters({ lora, model }: Config, layerCount: number): ParametersFormat {
  return {
    write(directory, tensors) {
      const layers = [...new Set([...tensors.keys()].map((name) => layerOf(name)!))].sort((a, b) => a - b);
      const config = layers.length < layerCount ? { ...lora, layers } : lora;
      return writeAdapter(directory, { config, tensors }, model.path);
    },
    read: async (directory) => (await readAdapter(directory)).tensors,
  };
}

/** The quantised base that a configuration asks for, calibrated on drawn items. */
async function openBase(
  { model: { base }, cache }: Config,
  {
    checkpoint,
    runtime,
    texts,
  }: {
    readonly checkpoint: Checkpoint;
    readonly runtime: Runtime;
    readonly texts: readonly Parameters<typeof calibrationSequences>[0][];
  },
  report: Report,
): Promise<QuantizedBase | undefined> {
  if (base === 'float32') return undefined;
  report('quantised base', 0, 1);
  const calibration = texts.flatMap((text) => calibrationSequences(text));
  const quantized = await quantizeBase(checkpoint, { base, calibration, runtime, cacheDir: cache });
  report('quantised base', 1, 1);
  return quantized;
}
