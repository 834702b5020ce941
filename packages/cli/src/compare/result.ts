// What a comparison of methods finds, as plain data: what `fellrec compare --json` prints and the report draws.
import type { Metrics, PairedDifference } from '@fellrec/recsys';

export type { Interval, PairedDifference } from '@fellrec/recsys';

/** A client of one seed: another seed may cut the users otherwise. */
export interface ComparedClient {
  readonly seed: number;
  readonly client: string;
  readonly testUsers: number;
  readonly metrics: Metrics;
  /** Lowest validation loss; none where nothing is trained, or the client has no validation samples. */
  readonly loss?: number;
  /** How much what is injected into its ranking counts, where something is. */
  readonly gamma?: number;
}

/** How far clients differ, means over seeds. */
export interface ClientSpread {
  /** Of recall@10: standard deviation over clients, and the worst client's. */
  readonly deviation: number;
  readonly worst: number;
  /** Of the lowest validation losses. */
  readonly lossDeviation?: number;
  readonly worstLoss?: number;
}

/** Users with one catalogue, of all seeds. */
export interface ComparedGroup {
  readonly group: string;
  readonly users: number;
  readonly metrics: Metrics;
  /** By metric; none of the baseline itself. */
  readonly against?: Readonly<Record<string, PairedDifference>>;
}

/** Whether clients listen to those whose data is like theirs: off the diagonal, mean over rounds, clients and seeds. */
export interface MixingAgreement {
  /** Pearson's r of the weights with the overlap (Jaccard) of the items that two clients' users trained on. */
  readonly itemOverlap: number;
  /** With the cosine of the popularity of items. */
  readonly popularityCosine: number;
}

export interface ComparedMethod {
  readonly method: string;
  /** Folders of its results, one a seed. */
  readonly runs: readonly { readonly seed: number; readonly directory: string }[];
  /** Seeds whose run is not complete, and why: they count in nothing. */
  readonly incomplete: readonly { readonly seed: number; readonly missing: string }[];
  /** Users tested, over all seeds. */
  readonly users: number;
  /** With each seed, where these are as many. */
  readonly usersPerSeed?: number;
  /** Means over users, then over seeds. */
  readonly metrics: Metrics;
  /** Standard deviations over seeds (of the sample); empty with one seed. */
  readonly deviations: Metrics;
  readonly clients: readonly ComparedClient[];
  /** None where all clients share one catalogue. */
  readonly groups?: readonly ComparedGroup[];
  /** None where no run says which users belong together. */
  readonly spread?: ClientSpread;
  /** Undefined where a client weighs all others alike. */
  readonly agreement?: MixingAgreement;
  /** Mean of a run: its rounds', or what a ranking took. */
  readonly seconds?: number;
  /** Training samples of all clients; none where nothing is trained in rounds. */
  readonly trainSamples?: number;
  /** Parameters exchanged in a run, both ways. */
  readonly bytes?: number;
  /** By metric; none of the baseline itself. */
  readonly against?: Readonly<Record<string, PairedDifference>>;
}

export interface Comparison {
  readonly data: { readonly name: string; readonly hash: string };
  /** None where no language model or encoder has a part in it. */
  readonly model?: { readonly path: string; readonly hash: string };
  readonly seeds: readonly number[];
  readonly baseline: string;
  readonly methods: readonly ComparedMethod[];
}
