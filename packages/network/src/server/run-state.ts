// Where the run is, as clients are told: read off the federation's events.
import type { FederationEvent } from '@fellrec/federation';
import { Phase } from '#proto/federation_pb';

export interface RunState {
  /** From 0. */
  readonly round: number;
  /** Rounds at most. */
  readonly rounds: number;
  readonly phase: Phase;
  /** Clients whose results of this phase have arrived. */
  readonly delivered: number;
}

export const beforeRun: RunState = { round: 0, rounds: 0, phase: Phase.WAITING, delivered: 0 };

/** The state after an event. Testing and the end come after the federation's last event, so the caller says them. */
export function runStateAfter(state: RunState, event: FederationEvent): RunState {
  switch (event.type) {
    case 'run-started':
      return { ...state, round: event.round, rounds: event.rounds };
    case 'round-started':
      return { ...state, round: event.round, phase: Phase.TRAINING, delivered: 0 };
    case 'client-trained':
    case 'client-evaluated':
      return { ...state, delivered: state.delivered + 1 };
    case 'client-judged': {
      const before = state.phase === Phase.JUDGING ? state.delivered : 0;
      return { ...state, phase: Phase.JUDGING, delivered: before + 1 };
    }
    case 'aggregated':
      return { ...state, phase: Phase.EVALUATING, delivered: 0 };
    default:
      return state;
  }
}
