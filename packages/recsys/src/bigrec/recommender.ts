// BIGRec (arXiv 2308.08434): a LLaMA-architecture model, tuned by LoRA, generates the title of the next item; grounding
// ranks the catalogue by it.
import { adamW, linearSchedule, type NamedTensors, random } from '@fellrec/graph';
import {
  type Adapter,
  initialAdapter,
  type LanguageModel,
  type LoraConfig,
  type Sequence,
  type Tokenizer,
} from '@fellrec/models';
import type { Catalogue } from '../catalogue.ts';
import { cutoffs, metricsOf } from '../metrics.ts';
import { type Domain, parseAnswer } from '../prompt.ts';
import { rank } from '../ranking.ts';
import type {
  Evaluated,
  Recommended,
  Recommender,
  RecommendOptions,
  TrainOptions,
  TrainResult,
} from '../recommender.ts';
import type { Sample } from '../samples.ts';
import { catalogueVectors, nearness, textVectors } from './grounding.ts';
import { promptTokens, type TextOptions, trainingSequence } from './text.ts';

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
  const titles = () => {
    vectors ??= catalogueVectors(catalogue, model, tokenizer, cacheDir, options.onProgress);
    return vectors;
  };

  async function train(
    samples: readonly Sample[],
    start: NamedTensors,
    o: TrainOptions,
  ): Promise<TrainResult> {
    await model.release('prompt', 'decode');
    const sequences = samples.map((sample) => trainingSequence(sample, lossOn, text).value);
    const optimizer = adamW({ weightDecay: o.weightDecay, clipNorm: o.clipNorm });
    const steps = o.epochs * Math.ceil(samples.length / o.batchSize);
    let parameters = start;
    let state = optimizer.init(parameters);
    let step = 0;
    let weightedLoss = 0;
    const tokens = { real: 0, computed: 0, padding: 0 };
    for (let epoch = 0; epoch < o.epochs; epoch++)
      for (const batch of batches(sequences, o.batchSize, [...o.stream, 'order', epoch])) {
        const dropoutSeed = [...o.stream, 'dropout', step] as const;
        const found = await model.gradients(batch, adapter(parameters), {
          microBatch: o.microBatch,
          dropoutSeed,
        });
        if (!Number.isFinite(found.loss))
          throw new Error(
            `bigrec: the loss is ${found.loss} at step ${step + 1} of ${steps}; lower the learning rate`,
          );
        const rate = o.learningRate * linearSchedule(step, steps, o.warmupSteps);
        ({ parameters, state } = optimizer.update(parameters, found.gradients, state, rate));
        weightedLoss += found.loss * batch.length;
        tokens.real += found.tokens.real;
        tokens.computed += found.tokens.computed;
        tokens.padding += found.tokens.padding;
        step++;
        o.onStep?.({ step, steps, loss: found.loss });
      }
    return { parameters, loss: weightedLoss / (o.epochs * samples.length), tokens };
  }

  async function recommend(
    queries: readonly Pick<Sample, 'history' | 'seen'>[],
    parameters: NamedTensors,
    { k, seed, onProgress }: RecommendOptions,
  ): Promise<Recommended[]> {
    const items = await titles();
    const prompts = queries.map(({ history }) => promptTokens(history, maxNewTokens, text));
    const generated = await model.generate(
      prompts.map(({ value }) => value),
      {
        beams,
        maxNewTokens,
        eosIds: config.eosIds,
        batch: generationBatch,
        ...(onProgress && { onProgress }),
      },
      adapter(parameters),
    );
    const answers = generated.map(([best]) => parseAnswer(tokenizer.decode(best!.ids)));
    const places = await textVectors(answers, model, tokenizer);
    return places.map((place, index) => {
      const scores = nearness(place, items);
      const ranked = rank(scores, {
        k,
        exclude: queries[index]!.seen,
        random: random(seed, 'ties', index),
      });
      return {
        items: ranked.map((item) => ({ item, score: scores[item]! })),
        answer: answers[index]!,
        dropped: prompts[index]!.dropped,
      };
    });
  }

  return {
    initialParameters: (seed) => initialAdapter(config, lora, seed),
    train,
    truncated: (samples) =>
      samples.filter((sample) => trainingSequence(sample, lossOn, text).dropped > 0).length,
    loss: (samples, parameters) =>
      model.loss(
        samples.map((sample) => trainingSequence(sample, lossOn, text).value),
        adapter(parameters),
      ),
    recommend,
    async evaluate(samples, parameters, o): Promise<Evaluated> {
      // Ranking holds copies of the weights of its own; training's would double the peak.
      await model.release('train', 'prefix', 'prefixGradients');
      const ranked = await recommend(samples, parameters, { ...o, k: Math.max(...cutoffs) });
      const metrics = ranked.map(({ items }, i) =>
        metricsOf(
          items.map(({ item }) => item),
          samples[i]!.targets,
        ),
      );
      return { metrics, truncated: ranked.filter(({ dropped }) => dropped > 0).length };
    },
    dispose: () => model.release(),
  };
}

/** Shuffled batches. */
function batches(
  sequences: readonly Sequence[],
  size: number,
  stream: readonly [number, ...(string | number)[]],
): Sequence[][] {
  const order = random(...stream).shuffle(sequences);
  return Array.from({ length: Math.ceil(order.length / size) }, (_, i) =>
    order.slice(i * size, (i + 1) * size),
  );
}
