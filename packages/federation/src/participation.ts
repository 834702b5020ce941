// Who takes part in a round: everyone, one after another, or those who deliver in time, all at once.
import type { TrainingProgress } from './client.ts';
import { ClientFailure, type Job } from './jobs.ts';

export interface Participation {
  /** Clients that a round needs in each of its phases. */
  readonly quorum: number;
  /** Of a phase, however many candidates a client judges in it: from then on it waits for no more than these. */
  readonly deadlineSeconds: number;
}

/** What clients say at work, by the number of their job. */
export type Said<T> =
  | { readonly type: 'progress'; readonly job: number; readonly progress: TrainingProgress }
  | { readonly type: 'delivered'; readonly job: number; readonly result: T }
  | { readonly type: 'failed'; readonly job: number; readonly reason: string }
  | { readonly type: 'absent'; readonly job: number; readonly reason: string };

/** One job after another. @throws what the first one throws that fails. */
export async function* inTurn<T>(
  jobs: readonly Job<T>[],
  round: number,
): AsyncGenerator<Said<T>, void, undefined> {
  for (const [job, { run }] of jobs.entries()) {
    const reports = queue<TrainingProgress>();
    const result = run({ round, onProgress: reports.push }).finally(reports.close);
    // Its failure is thrown below; a listener that has left by then must not turn it into an unhandled rejection.
    result.catch(() => {});
    for await (const progress of reports) yield { type: 'progress', job, progress };
    yield { type: 'delivered', job, result: await result };
  }
}

/**
 * All jobs at the same time, until all are done or, after the deadline, a quorum is. Those who are left behind then are
 * told by their signal, and what they still return is not heard.
 * @throws if so many clients fail that there can be no quorum, or at anything that is no client's failure.
 */
export async function* together<T>(
  jobs: readonly Job<T>[],
  round: number,
  { quorum, deadlineSeconds }: Participation,
): AsyncGenerator<Said<T>, void, undefined> {
  const said = queue<Said<T>>();
  const working = new Map<number, AbortController>();
  const failures = new Map<number, ClientFailure>();
  const late = new Set<number>();
  let isLate = false;
  let broken: { readonly error: unknown } | undefined;

  function dismiss(why: (client: string) => string): void {
    said.close();
    const left = [...working];
    working.clear();
    for (const [job, controller] of left)
      controller.abort(new Error(`round ${round + 1} ${why(jobs[job]!.client)}`));
  }
  const ended = (client: string) => `ended before ${client} was done`;
  const lacksQuorum = () => jobs.length - failures.size < quorum;
  function endIfDecided(): void {
    if (broken || lacksQuorum()) {
      dismiss(ended);
      return;
    }
    const delivered = jobs.length - failures.size - working.size;
    if (working.size > 0 && !(isLate && delivered >= quorum)) return;
    for (const job of working.keys()) late.add(job);
    dismiss((client) => `went on without ${client}: ${lateness(deadlineSeconds)}`);
  }
  function begin(job: number, { run }: Job<T>): void {
    const controller = new AbortController();
    working.set(job, controller);
    const onProgress = (progress: TrainingProgress) => {
      if (working.has(job)) said.push({ type: 'progress', job, progress });
    };
    run({ round, onProgress, signal: controller.signal }).then(
      (result) => {
        if (!working.delete(job)) return;
        said.push({ type: 'delivered', job, result });
        endIfDecided();
      },
      (error: unknown) => {
        if (!working.delete(job)) return;
        if (error instanceof ClientFailure) {
          failures.set(job, error);
          said.push({ type: 'failed', job, reason: error.reason });
        } else broken ??= { error };
        endIfDecided();
      },
    );
  }

  for (const [number, job] of jobs.entries()) begin(number, job);
  const timer = setTimeout(() => {
    isLate = true;
    endIfDecided();
  }, milliseconds(deadlineSeconds));
  try {
    yield* said;
    if (broken) throw broken.error;
    const failed = [...failures].sort(([a], [b]) => a - b);
    if (lacksQuorum())
      throw new AggregateError(
        failed.map(([, failure]) => failure),
        `round ${round + 1}: ${failed.length} of ${jobs.length} clients failed, so a quorum of ${quorum} is out of reach:\n  ${failed
          .map(([job, { reason }]) => `${jobs[job]!.client}: ${reason}`)
          .join('\n  ')}`,
      );
    for (const job of jobs.keys()) {
      const reason = late.has(job) ? lateness(deadlineSeconds) : failures.get(job)?.reason;
      if (reason !== undefined) yield { type: 'absent', job, reason };
    }
  } finally {
    clearTimeout(timer);
    dismiss(ended);
  }
}

function lateness(deadlineSeconds: number): string {
  return `it was later than ${deadlineSeconds} s`;
}

/** A timer takes 31 bits; more (24 days) would be no time at all. */
function milliseconds(seconds: number): number {
  return Math.min(1000 * seconds, 2 ** 31 - 1);
}

/** Items in the order in which they are pushed, until it is closed and empty. */
function queue<T extends object>() {
  const items: T[] = [];
  let isOpen = true;
  let wake = () => {};
  return {
    push(item: T): void {
      items.push(item);
      wake();
    },
    close(): void {
      isOpen = false;
      wake();
    },
    async *[Symbol.asyncIterator](): AsyncGenerator<T, void, undefined> {
      for (;;) {
        for (let item = items.shift(); item; item = items.shift()) yield item;
        if (!isOpen) return;
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
    },
  };
}
