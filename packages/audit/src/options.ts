// What a study of hidden states needs.
import type { Float32Tensor } from '@fellrec/graph';
import type { Tokenizer, Trained } from '@fellrec/models';
import type { Catalogue } from '@fellrec/recsys';
import type { Finding } from './attacks/attack.ts';
import type { SearchOptions } from './attacks/search.ts';
import type { AuditedModel } from './layerwise.ts';
import type { AttackName } from './result.ts';
import type { AuditedSequence, SequenceMaker } from './sequences.ts';

/** What the server gets in place of a sequence's states [tokens, d]. */
export type Release = (states: Float32Tensor, sequence: string, depth: number) => Float32Tensor;

export interface StudyOptions {
  readonly model: AuditedModel;
  readonly tokenizer: Tokenizer;
  readonly catalogue: Catalogue;
  readonly sequences: SequenceMaker;
  /** The users that are attacked. */
  readonly victims: readonly AuditedSequence[];
  /** Other users, whose prompts the inverter is trained on, and still others that it is measured on. */
  readonly auxiliary: readonly AuditedSequence[];
  readonly held: readonly AuditedSequence[];
  /** Training interactions of each item, for the floors. */
  readonly popularity: Float64Array;
  /** What the clients' layers have learned, and what the attacker knows of that; the base if absent. */
  readonly trained?: Trained | undefined;
  readonly known?: Trained | undefined;
  /** How states leave the client, if not as they are. The attacker knows how: the inverter learns from such states. */
  readonly release?: Release | undefined;
  readonly attacks: readonly AttackName[];
  readonly depths: readonly number[];
  /** Of the inverter at each depth; at the first three times as many. */
  readonly epochs: number;
  readonly search: Pick<SearchOptions, 'tolerance' | 'take'> & { readonly budget: number };
  /** Titles that an attacker with the catalogue compares: the victims', and others drawn. */
  readonly titles: number;
  readonly seed: number;
  /** Unit vectors of texts, for the reconstruction similarity. */
  readonly similarity?: ((texts: readonly string[]) => Promise<readonly Float32Array[]>) | undefined;
  /** Hears what an attack says, before it is scored. */
  readonly onFinding?: ((finding: Finding) => void) | undefined;
  readonly report?: ((stage: string, done: number, total: number) => void) | undefined;
}
