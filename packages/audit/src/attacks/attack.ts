// The seam of attacks on hidden states: each is shown the states at one depth after the other.
import type { Float32Tensor } from '@fellrec/graph';
import type { Selection } from '../layerwise.ts';
import type { Reconstruction } from '../metrics.ts';
import type { AttackName } from '../result.ts';

/** States at one depth, of each group at the places that say something about its users, [places, d]. */
export interface ObservedStates {
  /** As the server gets them: at the places of history and answer. */
  readonly victims: Float32Tensor;
  /** The same users' at the places before each of the answer: what the head is taught to say the answer on. */
  readonly taught: Float32Tensor;
  /** What the attacker makes of other users' prompts in the same way, at the places of their histories. */
  readonly auxiliary: Float32Tensor;
  readonly held: Float32Tensor;
}

/** What an attack says about a user: tokens at the places of history and answer, or items. */
export type Claim =
  | { readonly tokens: Reconstruction }
  | { readonly items?: readonly number[]; readonly target?: number };

export interface Finding {
  readonly attack: AttackName;
  readonly depth: number;
  /** One a victim. */
  readonly claims: readonly Claim[];
}

export interface StateAttack {
  /** Other sequences whose states it needs at every depth. */
  readonly selections: readonly Selection[];
  /** `extra`: the states of `selections`. */
  at(depth: number, observed: ObservedStates, extra: readonly Float32Tensor[]): Promise<readonly Finding[]>;
  /** What can be said when all depths have been seen. */
  finish?(): Promise<readonly Finding[]>;
  dispose(): Promise<void>;
}
