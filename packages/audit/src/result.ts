// What an audit finds, as plain data: what `fellrec audit --json` prints and the report draws.

import type { Interval } from '@fellrec/recsys';

export type { Interval };

/**
 * `tokenAccuracy`: history tokens right at their place. `tokenRecall`: found anywhere in the reconstruction (as a
 * multiset). `exact`: all history tokens of a prompt right. `rougeL`: F1 of the longest common subsequence of words.
 * `items`: share of the history's items. `target`: share of targets. `similarity`: cosine of sentence embeddings.
 */
export const metricNames = [
  'tokenAccuracy',
  'tokenRecall',
  'exact',
  'rougeL',
  'items',
  'target',
  'similarity',
] as const;
export type MetricName = (typeof metricNames)[number];

export type Recovery = Readonly<Partial<Record<MetricName, Interval>>>;

/** Attacks on hidden states. `embedding-cosine` and `embedding-l2` are HEI-style, `head` is BEI-style (arXiv 2405.11916). */
export const attackNames = [
  'head',
  'embedding-cosine',
  'embedding-l2',
  'inverter',
  'search',
  'catalogue',
] as const;
export type AttackName = (typeof attackNames)[number];

/** What an attacker knows besides what crosses the cut. */
export const knowledges = {
  embedding: 'the embedding table of the base model',
  head: 'the head of the base model',
  weights: 'the weights of the layers below the cut',
  adapter: "the client's adapter in those layers",
  text: "public text of the domain: other users' prompts",
  catalogue: "the catalogue's titles",
  template: 'the prompt template',
} as const;
export type Knowledge = keyof typeof knowledges;

/** What each attack uses; those that need the weights also use the client's adapter, where there is one. */
export const attackKnowledge: Readonly<Record<AttackName, readonly Knowledge[]>> = {
  head: ['head'],
  'embedding-cosine': ['embedding'],
  'embedding-l2': ['embedding'],
  inverter: ['embedding', 'weights', 'text'],
  search: ['embedding', 'weights', 'text', 'template'],
  catalogue: ['embedding', 'weights', 'catalogue', 'head', 'template'],
};

/** One attack on the states at one depth: 0 are embeddings, n is after the last layer. */
export interface AttackResult {
  readonly attack: AttackName;
  readonly depth: number;
  readonly recovery: Recovery;
}

/** What guessing without any state recovers. */
export interface FloorResult {
  readonly floor: 'random' | 'most frequent' | 'template only';
  readonly recovery: Recovery;
}

/** An attack on gradients, adapters or updates. */
export interface GradientResult {
  readonly attack: string;
  /** What was attacked: "full weights, batch of 1", "LoRA, rank 8, batch of 4". */
  readonly setting: string;
  readonly uses: readonly Knowledge[];
  /** By name: "token recall", "precision", "AUC". */
  readonly metrics: Readonly<Record<string, Interval>>;
  readonly note?: string;
}

/** A defence at a cut: what attacks still recover, and what it costs. */
export interface DefenceResult {
  /** "none", "float16", "int8", "4 bits", "noise epsilon 8", "adapter withheld". */
  readonly defence: string;
  readonly depth: number;
  readonly attacks: readonly AttackResult[];
  /** R@10 and mean loss per label of the model through this cut, over `users` users. */
  readonly quality: { readonly recallAt10: Interval; readonly loss: number; readonly users: number };
  /** Of a noise mechanism, for one release of one sequence's states. */
  readonly epsilon?: number;
}

/** What keeping the first k layers and the last one costs a client. */
export interface CutCost {
  readonly k: number;
  /** Share of the model's parameters that the client holds. */
  readonly parameters: number;
  /** Share of the layers' work that the client does. */
  readonly layers: number;
  /** Bytes that cross in a training step per token, both directions, in float32. */
  readonly bytesPerToken: number;
}

export interface Recommendation {
  readonly threshold: number;
  readonly metric: MetricName;
  /**
   * The smallest measured k at which every attack stays under the threshold, there and at every measured depth behind;
   * undefined if there is none. The text names depths that were not measured.
   */
  readonly k: number | undefined;
  readonly cost: CutCost | undefined;
  /** The same without attacks that need what is named: which assumption matters. */
  readonly without: readonly { readonly knowledge: Knowledge; readonly k: number | undefined }[];
  readonly text: string;
}

/** How the searches of a depth ended, in sequences. */
export interface SearchEnds {
  /** Every token found. */
  readonly complete: number;
  /** Stopped at a token that was not among the candidates. */
  readonly unlisted: number;
  /** Stopped at one that was, whose state was not reproduced. */
  readonly unmatched: number;
  /** A wrong candidate counted as reproducing it. */
  readonly mistaken: number;
}

export interface AuditResult {
  readonly model: {
    readonly path: string;
    readonly hash: string;
    readonly recommender: 'bigrec' | 'recformer';
    readonly layerCount: number;
    readonly hiddenSize: number;
    readonly adapter?: string;
    /** The recording whose states were attacked. */
    readonly capture?: string;
  };
  readonly data: {
    readonly name: string;
    readonly items: number;
    /** Attacked users. */
    readonly users: number;
    /** Their tokens that count. */
    readonly historyTokens: number;
  };
  readonly seed: number;
  readonly inverter?: {
    /** Other users whose prompts it was trained on, and their tokens. */
    readonly users: number;
    readonly tokens: number;
    readonly vocabulary: number;
    readonly epochs: number;
    /** Token accuracy on prompts of still other users, by depth. */
    readonly accuracy: readonly { readonly depth: number; readonly accuracy: number }[];
  };
  readonly search?: {
    /** Candidates tried per token at most. */
    readonly budget: number;
    /** Largest relative distance of a state that still counts as reproduced. */
    readonly tolerance: number;
    /** Candidates computed in all. */
    readonly candidates: number;
    /** Of the search token by token (none where tokens read both ways), how it ended, in users. */
    readonly ends: readonly (SearchEnds & { readonly depth: number })[];
  };
  readonly floors: readonly FloorResult[];
  readonly attacks: readonly AttackResult[];
  readonly gradients: readonly GradientResult[];
  readonly defences: readonly DefenceResult[];
  readonly costs: readonly CutCost[];
  readonly recommendation: Recommendation;
  readonly seconds: number;
}
