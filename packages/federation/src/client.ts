// What a client is to the federation: named tensors in, named tensors, a loss and a count out. Where it trains
// (in this process, behind a network) and on what data is its own affair.
import type { NamedTensors } from '@fellrec/graph';

export interface TrainingProgress {
  /** Optimizer steps done, of `steps`. */
  readonly step: number;
  readonly steps: number;
  readonly loss: number;
}

/** Adds weight/2 |x - centre|^2 to what a client minimises, x its parameters. */
export interface Proximal {
  readonly weight: number;
  readonly centre: NamedTensors;
}

export interface RoundContext {
  /** From 0. */
  readonly round: number;
  readonly proximal?: Proximal;
  readonly onProgress?: (progress: TrainingProgress) => void;
  /** Aborted when the round goes on without this client, with an Error that says why: its result comes too late. */
  readonly signal?: AbortSignal;
}

/** Tokens of the samples; those computed, fewer where samples share them; how many of these were padding. */
export interface TokenCounts {
  readonly real: number;
  readonly computed: number;
  readonly padding: number;
}

export interface Update {
  readonly parameters: NamedTensors;
  /** Mean training loss over the whole local training. */
  readonly loss: number;
  readonly samples: number;
  readonly tokens?: TokenCounts;
}

export interface Evaluation {
  readonly loss: number;
  /** 0: this client has no validation samples, and `loss` means nothing. */
  readonly samples: number;
}

export interface Client {
  readonly name: string;
  /** Training samples; a client with none takes part in nothing. */
  readonly samples: number;
  /** A label for what it has in common with others: an organisation, a catalogue. */
  readonly group?: string | undefined;
  /** Which tensors of the common start it trains; all if absent. It is given these and returns these. */
  readonly holds?: (name: string) => boolean;
  /** Which of those go to and fro, to be counted as bytes; all if absent. A server may train some on its behalf. */
  readonly crosses?: ((name: string) => boolean) | undefined;
  train(parameters: NamedTensors, context: RoundContext): Promise<Update>;
  evaluate(parameters: NamedTensors, context: RoundContext): Promise<Evaluation>;
}
