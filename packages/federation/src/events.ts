// What a federation says while it runs. Progress bars, logs, the store and the network listen to it.
import type { Evaluation, TokenCounts, TrainingProgress } from './client.ts';
import type { CosineMeans } from './diagnostics.ts';
import type { ReadParameters } from './parameters/round-parameters.ts';
import type { Mixing, PreviousRound } from './strategies/strategy.ts';

export interface BestRound {
  readonly round: number;
  readonly loss: number;
}

/** All that a run needs to go on as if it had never stopped. */
export interface FederationState {
  readonly nextRound: number;
  /**
   * What each client starts the next round from, read when it is asked for: all of them need not fit in memory. While
   * the federation runs, to be read before its next round is mixed.
   */
  readonly parameters: ReadonlyMap<string, ReadParameters>;
  /** Each client's round of the lowest validation loss of its own, once it has one; whoever wants its parameters keeps them then. */
  readonly best: ReadonlyMap<string, BestRound>;
  /** Each client's latest validation. */
  readonly validation: ReadonlyMap<string, Evaluation>;
  /** Lowest validation loss over all clients, since the last one was first evaluated. */
  readonly bestOverall: BestRound | undefined;
  readonly roundsWithoutImprovement: number;
  /** The last round, for strategies that look back; undefined before the first. */
  readonly previous?: PreviousRound | undefined;
}

/** A finished round as plain data. Everything by client name but `mixing`, whose rows follow `clients`. */
export interface RoundRecord {
  readonly round: number;
  /** Those who took part, in the federation's order. */
  readonly clients: readonly string[];
  /** Those who did not deliver and keep what they started from; not there when all took part. */
  readonly absent?: readonly string[];
  readonly samples: Readonly<Record<string, number>>;
  /** Mean training losses. */
  readonly losses: Readonly<Record<string, number>>;
  readonly mixing: Mixing;
  /** 1 / sum_j m_cj^2 of each client's row of the matrix: from how many clients it takes. Not in older records. */
  readonly effectiveClients?: Readonly<Record<string, number>>;
  /** Between different clients of one group, and of two; where two groups are known, and the cosines. */
  readonly cosineMeans?: CosineMeans;
  /** After mixing, of those who delivered it. */
  readonly validation: Readonly<Record<string, Evaluation>>;
  /** The latest of those who did not deliver it; not there when all did. */
  readonly carried?: Readonly<Record<string, Evaluation>>;
  /** Mean over the validation samples of all of these. */
  readonly validationLoss: number;
  /** Up to and with this round. */
  readonly best: Readonly<Record<string, BestRound>>;
  readonly bestOverall: BestRound;
  readonly roundsWithoutImprovement: number;
  /**
   * Parameters exchanged: 4 bytes an element that a client holds, to everyone who took part and back, and to those who
   * judged candidates once more for each that they did not have.
   */
  readonly bytes: { readonly down: number; readonly up: number };
  readonly seconds: {
    readonly training: Readonly<Record<string, number>>;
    /** Of those who judged candidates; not there without any. */
    readonly candidates?: Readonly<Record<string, number>>;
    readonly aggregation: number;
    readonly evaluation: Readonly<Record<string, number>>;
    readonly total: number;
  };
}

/**
 * Who is absent from training is in `RoundRecord.absent`; who is absent from judging gets what a strategy gives without;
 * who is absent from evaluation lacks a validation loss.
 */
export type Phase = 'training' | 'judging' | 'evaluation';

export type FederationEvent =
  | {
      readonly type: 'run-started';
      readonly strategy: string;
      readonly clients: readonly { readonly name: string; readonly samples: number }[];
      /** The round it starts with: more than 0 when it goes on. */
      readonly round: number;
      readonly rounds: number;
      readonly patience: number;
    }
  /** It has no training samples and takes part in nothing. Said once, after the start. */
  | { readonly type: 'client-skipped'; readonly client: string }
  | { readonly type: 'round-started'; readonly round: number }
  | ({ readonly type: 'client-progress'; readonly round: number; readonly client: string } & TrainingProgress)
  | {
      readonly type: 'client-trained';
      readonly round: number;
      readonly client: string;
      readonly loss: number;
      readonly samples: number;
      readonly tokens?: TokenCounts;
      readonly seconds: number;
    }
  /** It cannot take part in this phase of the round. */
  | {
      readonly type: 'client-failed';
      readonly round: number;
      readonly client: string;
      readonly phase: Phase;
      readonly reason: string;
    }
  /** The round goes on without it: it failed, or it is late. Said at the end of a phase, in the clients' order. */
  | {
      readonly type: 'client-absent';
      readonly round: number;
      readonly client: string;
      readonly phase: Phase;
      readonly reason: string;
    }
  | {
      readonly type: 'client-judged';
      readonly round: number;
      readonly client: string;
      /** Validation losses in the strategy's order; none without validation samples. */
      readonly candidates: readonly { readonly name: string; readonly loss: number }[];
      /** Of how many different parameters. */
      readonly evaluations: number;
      readonly samples: number;
      readonly seconds: number;
    }
  | {
      readonly type: 'aggregated';
      readonly round: number;
      /** The order of the matrix' rows and columns. */
      readonly clients: readonly string[];
      readonly mixing: Mixing;
      readonly seconds: number;
    }
  /** In 0 seconds if it had judged just these parameters as a candidate. */
  | {
      readonly type: 'client-evaluated';
      readonly round: number;
      readonly client: string;
      readonly loss: number;
      readonly samples: number;
      readonly seconds: number;
    }
  | ({ readonly type: 'round-finished'; readonly state: FederationState } & RoundRecord)
  | { readonly type: 'stopped-early'; readonly round: number; readonly bestRound: number }
  | { readonly type: 'run-finished'; readonly rounds: number; readonly bestOverall: BestRound | undefined };
