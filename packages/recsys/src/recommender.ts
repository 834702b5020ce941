// The seam between the two recommenders and those who train and ask them.
import type { Float32Tensor, NamedTensors } from '@fellrec/graph';
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
  /**
   * Mean over the batches of all epochs by their samples, without a proximal term. A batch of a language model has the
   * mean over its labels.
   */
  readonly loss: number;
  readonly tokens: TokenCounts;
}

export interface Recommendation {
  readonly item: number;
  /** Higher is better; comparable within one list only. */
  readonly score: number;
  /** How likely the model found the title, where it was asked: a sum over so many tokens. */
  readonly likelihood?: { readonly logProbability: number; readonly tokens: number };
}

export interface Recommended {
  readonly items: readonly Recommendation[];
  /** What the model said, where it generates. */
  readonly answer?: string;
  /** Items of the history, oldest first, that did not fit the context. */
  readonly dropped: number;
}

/** What a recommender thinks of the catalogue for one user. */
export interface Scored {
  /** Of every item; higher is better. */
  readonly scores: ArrayLike<number>;
  /** Items before all others, whatever `scores` says of them; nothing of the history where that is masked. */
  readonly first?: readonly Recommendation[];
  readonly answer?: string;
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
  /** What it thinks of the catalogue for each history, in their order. */
  score(queries: readonly Query[], parameters: NamedTensors, options: ScoreOptions): AsyncIterable<Scored>;
  /** The k best items of the catalogue for each history. */
  recommend(
    queries: readonly Query[],
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

export type Query = Pick<Sample, 'history' | 'seen'>;

/** What gives every item of the catalogue a score for each history, as baselines do. */
export interface ItemScorer {
  /**
   * [queries, items]; higher is better, items of the history are scored as all others. All queries' scores are in memory
   * at once: ask in parts. @throws on a query that cannot be read, naming it.
   */
  score(queries: readonly Query[]): Promise<Float32Tensor>;
}

/** How a recommender that generates ranks; RecFormer has one way, and takes none of these. */
export type RankingMode =
  /** The catalogue by its distance to what was generated (the paper's): the best beam, or the nearest of all. */
  | { readonly mode: 'grounded'; readonly from: 'best' | 'all' }
  /** Beams that run along the catalogue's titles: the items that they end at, then the others by grounding the best. */
  | { readonly mode: 'constrained'; readonly beams: number }
  /** A shortlist by the likelihood of its titles, summed or by token; then the others in the shortlist's own order. */
  | {
      readonly mode: 'rerank';
      /** Whose best items; without it those of grounding. */
      readonly shortlist?: ItemScorer;
      readonly size: number;
      readonly perToken: boolean;
    };

export interface ScoreOptions {
  /** Decides between items of equal score. */
  readonly seed: number;
  /** What item vectors are computed with, where there are such (default: the parameters asked). */
  readonly items?: NamedTensors;
  /** Default: grounded from the best beam. */
  readonly ranking?: RankingMode;
  /** Whether `seen` items are left out of the ranking (default true); RecFormer's reference ranks them. */
  readonly maskHistory?: boolean;
  readonly onProgress?: (done: number, total: number) => void;
}

/** Combines scores with another method's, such as popularity. */
export interface Injection {
  readonly of: ItemScorer;
  /** How much the other counts: 0 nothing. */
  readonly gamma: number;
}

export interface EvaluateOptions extends ScoreOptions {
  readonly injection?: Injection;
}

export interface RecommendOptions extends EvaluateOptions {
  readonly k: number;
}
