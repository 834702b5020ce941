// The seam between the two recommenders and those who train and ask them.
import type { NamedTensors } from '@fellrec/graph';
import type { TokenCounts } from '@fellrec/models';
import type { Metrics } from './metrics.ts';
import type { Sample } from './samples.ts';

export interface TrainOptions {
  readonly epochs: number;
  readonly batchSize: number;
  readonly microBatch: number;
  readonly learningRate: number;
  /** Steps over which the learning rate rises from 0. */
  readonly warmupSteps: number;
  readonly weightDecay: number;
  /** Gradients' largest global norm. */
  readonly clipNorm: number;
  /** What item vectors are computed with, where there are such (default: the parameters training starts from). */
  readonly items?: NamedTensors;
  /** Adds weight/2 |x - centre|^2 over all parameters x (default of the centre: those that training starts from). */
  readonly proximal?: { readonly weight: number; readonly centre?: NamedTensors };
  /** Names the stream of order and dropout: a run's seed, client and round. */
  readonly stream: readonly [seed: number, ...(string | number)[]];
  readonly onStep?: (progress: {
    readonly step: number;
    readonly steps: number;
    readonly loss: number;
  }) => void;
}

export interface TrainResult {
  readonly parameters: NamedTensors;
  /** Mean over all samples of all epochs, without a proximal term. */
  readonly loss: number;
  readonly tokens: TokenCounts;
}

export interface Recommendation {
  readonly item: number;
  /** Higher is better; comparable within one list only. */
  readonly score: number;
}

export interface Recommended {
  readonly items: readonly Recommendation[];
  /** What the model said, where it generates. */
  readonly answer?: string;
  /** Items of the history, oldest first, that did not fit the context. */
  readonly dropped: number;
}

export interface Recommender {
  /** Parameters that every client starts from. */
  initialParameters(seed: number): Promise<NamedTensors>;
  /** @throws on a loss that is no number, naming the step. */
  train(samples: readonly Sample[], parameters: NamedTensors, options: TrainOptions): Promise<TrainResult>;
  /** How many training samples lose their oldest history to fit the context. @throws if one does not fit without any. */
  truncated(samples: readonly Sample[]): number;
  /** Mean validation loss, without dropout; `items` as in training. */
  loss(samples: readonly Sample[], parameters: NamedTensors, items?: NamedTensors): Promise<number>;
  /** The k best items of the catalogue for each history. */
  recommend(
    queries: readonly Pick<Sample, 'history' | 'seen'>[],
    parameters: NamedTensors,
    options: RecommendOptions,
  ): Promise<Recommended[]>;
  evaluate(
    samples: readonly Sample[],
    parameters: NamedTensors,
    options: EvaluateOptions,
  ): Promise<Evaluated>;
  dispose(): Promise<void>;
}

export interface Evaluated {
  /** Of each sample under full ranking. */
  readonly metrics: readonly Metrics[];
  /** Samples whose oldest history was dropped to fit the context. */
  readonly truncated: number;
}

export interface EvaluateOptions {
  readonly seed: number;
  /** Whether `seen` items are left out of the ranking (default true); RecFormer's reference ranks them. */
  readonly maskHistory?: boolean;
  /** What item vectors are computed with, where there are such (default: the parameters asked). */
  readonly items?: NamedTensors;
  readonly onProgress?: (done: number, total: number) => void;
}

export interface RecommendOptions extends EvaluateOptions {
  readonly k: number;
}
