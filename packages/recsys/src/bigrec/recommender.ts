// BIGRec (arXiv 2308.08434): a LLaMA-architecture model, tuned by LoRA, generates the title of the next item; grounding
// ranks the catalogue by it.
import type { NamedTensors } from '@fellrec/graph';
import {
  type Adapter,
  initialAdapter,
  type LanguageModel,
  type LoraConfig,
  type Sequence,
  type Tokenizer,
} from '@fellrec/models';
import type { Catalogue } from '../catalogue.ts';
import { listing } from '../lists.ts';
import type { Domain } from '../prompt.ts';
import type {
  Query,
  RankingMode,
  Recommender,
  Scored,
  ScoreOptions,
  TrainOptions,
  TrainResult,
} from '../recommender.ts';
import type { Sample } from '../samples.ts';
import { fit } from '../training.ts';
import { catalogueVectors } from './grounding.ts';
import { scoring } from './modes.ts';
import { promptTokens, type TextOptions, trainingSequence } from './text.ts';
import { catalogueTitles, type Titles } from './titles.ts';

export interface BigrecOptions {
  readonly model: LanguageModel;
  readonly tokenizer: Tokenizer;
  readonly catalogue: Catalogue;
  readonly domain: Domain;
  readonly lora: LoraConfig;
  readonly lossOn: 'answer' | 'all';
  /** Longest sequence, in tokens; at most the model's context. */
  readonly maxTokens: number;
  readonly beams: number;
  readonly maxNewTokens: number;
  /** Users generated for at once. */
  readonly generationBatch: number;
  /** Shared with other recommenders of the catalogue (default: its own). */
  readonly titles?: Titles;
  readonly cacheDir: string;
  /** Of the computation of the catalogue's vectors. */
  readonly onProgress?: (done: number, total: number) => void;
}

export function bigrec(options: BigrecOptions): Recommender {
  const { model, tokenizer, catalogue, lora, lossOn, beams, maxNewTokens, generationBatch, cacheDir } =
    options;
  const { config } = model.checkpoint;
  const text: TextOptions = {
    catalogue,
    tokenizer,
    domain: options.domain,
    maxTokens: Math.min(options.maxTokens, config.contextLength),
    eosIds: config.eosIds,
  };
  // Refuses a context too short for any prompt before anything is computed.
  promptTokens([], maxNewTokens, text);
  const adapter = (tensors: NamedTensors): Adapter => ({ config: lora, tensors });
  let vectors: Promise<Float32Array[]> | undefined;
  const rankedBy = scoring({
    model,
    text,
    titles: options.titles ?? catalogueTitles(text, maxNewTokens),
    maxNewTokens,
    beams,
    batch: generationBatch,
    vectors() {
      vectors ??= catalogueVectors(catalogue, model, tokenizer, cacheDir, options.onProgress);
      // What failed once may work the next time.
      vectors.catch(() => {
        vectors = undefined;
      });
      return vectors;
    },
  });

  async function train(
    samples: readonly Sample[],
    start: NamedTensors,
    o: TrainOptions,
  ): Promise<TrainResult> {
    await model.release('prompt', 'decode', 'losses');
    const sequences = samples.map((sample) => trainingSequence(sample, lossOn, text).value);
    return fit(
      {
        name: 'bigrec',
        count: sequences.length,
        examples: () => sequences,
        gradients: (batch: readonly Sequence[], parameters, dropoutSeed) =>
          model.gradients(batch, adapter(parameters), { microBatch: o.microBatch, dropoutSeed }),
        updateElsewhere: model.updateElsewhere,
      },
      start,
      o,
    );
  }

  /** What the programs that are compiled rank by. */
  let ranked: RankingMode['mode'] | undefined;
  async function* score(
    queries: readonly Query[],
    parameters: NamedTensors,
    o: ScoreOptions,
  ): AsyncIterable<Scored> {
    // Each kind of program holds copies of the weights of its own; those of training, or of another mode, would double
    // the peak.
    const mode = o.ranking?.mode ?? 'grounded';
    await model.release('train', 'prefix', 'prefixGradients');
    if (mode !== ranked) await model.release('prompt', 'decode', 'losses');
    ranked = mode;
    yield* rankedBy(queries, adapter(parameters), o);
  }

  return {
    initialParameters: async (seed) => initialAdapter(config, lora, seed),
    train,
    truncated: (samples) =>
      samples.filter((sample) => trainingSequence(sample, lossOn, text).dropped > 0).length,
    loss: (samples, parameters) =>
      model.loss(
        samples.map((sample) => trainingSequence(sample, lossOn, text).value),
        adapter(parameters),
      ),
    ...listing(score),
    dispose: () => model.release(),
  };
}
