// A phase of a round: clients work, one after another or all at once, and it is said how that goes.
import type { FederationEvent, Phase } from './events.ts';
import type { Job } from './jobs.ts';
import { inTurn, type Participation, together } from './participation.ts';

export interface PhaseOptions<T, E> {
  readonly phase: Phase;
  readonly round: number;
  readonly participation: Participation | undefined;
  readonly jobs: readonly Job<T>[];
  /** What to say of a result, by the number of its job. Results themselves are not kept. */
  delivered(job: number, result: T): Promise<E>;
}

/** Has clients work and says how it goes; returns what was said of each result, undefined where there is none. */
export async function* runPhase<T, E extends FederationEvent>({
  phase,
  round,
  participation,
  jobs,
  delivered,
}: PhaseOptions<T, E>): AsyncGenerator<FederationEvent, (E | undefined)[]> {
  const results: (E | undefined)[] = jobs.map(() => undefined);
  for await (const said of participation ? together(jobs, round, participation) : inTurn(jobs, round)) {
    const { client } = jobs[said.job]!;
    switch (said.type) {
      case 'progress': {
        const { step, steps, loss } = said.progress;
        yield { type: 'client-progress', round, client, step, steps, loss };
        break;
      }
      case 'delivered': {
        const event = await delivered(said.job, said.result);
        results[said.job] = event;
        yield event;
        break;
      }
      case 'failed':
      case 'absent':
        yield { type: `client-${said.type}`, round, client, phase, reason: said.reason };
    }
  }
  return results;
}
