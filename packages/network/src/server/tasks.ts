// What one client is to do: one task at a time, which lies ready until its result comes or its round goes on without it.
import { randomBytes } from 'node:crypto';
import { isDeepStrictEqual } from 'node:util';
import { Code, ConnectError } from '@connectrpc/connect';
import type { Evaluation, TrainingProgress, Update } from '@fellrec/federation';
import type { NamedTensors } from '@fellrec/graph';
import type { ParametersInfo } from '#proto/federation_pb';
import { describe } from '../protocol/parameters.ts';
import type { TestResult } from '../protocol/test-result.ts';
import { late, notFound, notNow } from './refusals.ts';

/** What comes of a task, by its kind. */
export interface Results {
  readonly train: Update;
  readonly evaluate: Evaluation;
  readonly test: TestResult;
}
export type Kind = keyof Results;

/** Parameters, and what is said of them before they are sent. */
export interface Handed {
  readonly tensors: NamedTensors;
  readonly info: ParametersInfo;
}

export interface Task<K extends Kind = Kind> {
  /** As `newTaskId` made it. */
  readonly id: string;
  readonly kind: K;
  readonly round: number;
  readonly parameters: Handed;
  /** What item vectors are computed with, where it is something else. */
  readonly items: Handed | undefined;
  readonly onProgress: ((progress: TrainingProgress) => void) | undefined;
  /** Aborted when it is over; the reason is what is refused from then on. */
  readonly over: AbortSignal;
}

export interface Order<K extends Kind> {
  readonly id: string;
  readonly kind: K;
  readonly round: number;
  readonly parameters: NamedTensors;
  readonly items?: NamedTensors | undefined;
  readonly onProgress?: ((progress: TrainingProgress) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

interface Open {
  readonly task: Task;
  readonly ending: AbortController;
  /** The last step that the client spoke of, and how many it said there are. */
  said?: Pick<TrainingProgress, 'step' | 'steps'>;
  resolve(result: Results[Kind]): void;
  reject(reason: unknown): void;
}

/** How a task ended. */
type End = { readonly kind: Kind } & (
  | { readonly type: 'delivered'; readonly mark: unknown }
  | { readonly type: 'closed'; readonly reason: string }
);

/** Differs from every other one, those of an earlier server included: what was done for that one must not count here. */
export function newTaskId(client: string, kind: Kind, round: number): string {
  return `${round}-${kind}-${client}-${randomBytes(6).toString('hex')}`;
}

export class ClientTasks {
  readonly #client: string;
  readonly #ends = new Map<string, End>();
  readonly #waiting = new Set<() => void>();
  #open: Open | undefined;
  #isFinished = false;
  #failure: Error | undefined;

  constructor(client: string) {
    this.#client = client;
  }

  /**
   * The result of a task, as soon as the client delivers it.
   * @throws the signal's reason when it is aborted, if the client failed, and if it has another task.
   */
  perform<K extends Kind>(order: Order<K>): Promise<Results[K]> {
    const { id, kind, round, parameters, items, onProgress, signal } = order;
    signal?.throwIfAborted();
    if (this.#failure) throw this.#failure;
    if (this.#open) throw new Error(`${this.#client} is still at task ${this.#open.task.id}`);
    if (this.#isFinished) throw new Error(`${this.#client} was told that the run is over`);
    const ending = new AbortController();
    const over = ending.signal;
    const { promise, resolve, reject } = Promise.withResolvers<Results[Kind]>();
    const open: Open = {
      task: {
        id,
        kind,
        round,
        parameters: handed(parameters),
        items: items && handed(items),
        onProgress,
        over,
      },
      ending,
      resolve,
      reject,
    };
    signal?.addEventListener('abort', () => this.#close(open, signal.reason), { signal: over });
    this.#open = open;
    this.release();
    return promise as Promise<Results[K]>;
  }

  /** The open task, waiting for one if need be; undefined if there is none in time. */
  async next(waitMs: number, signal: AbortSignal): Promise<Task | 'finished' | undefined> {
    if (!this.#open && !this.#isFinished) await this.#change(waitMs, signal);
    return this.#isFinished ? 'finished' : this.#open?.task;
  }

  /** Of a task that is or was open. @throws NOT_FOUND */
  kindOf(id: string): Kind {
    const kind = this.#ends.get(id)?.kind ?? (this.#open?.task.id === id && this.#open.task.kind);
    if (!kind)
      throw notFound(`${this.#client} has no task ${JSON.stringify(id.slice(0, 200))}; ask for its task`);
    return kind;
  }

  /** The open task. @throws NOT_FOUND, ABORTED if it was closed, FAILED_PRECONDITION if it is done or of another kind */
  get<K extends Kind = Kind>(id: string, kind?: K): Task<K> {
    const is = this.kindOf(id);
    if (kind !== undefined && is !== kind) throw notNow(`task ${id} is to ${is}, not to ${kind}`);
    const end = this.#ends.get(id);
    if (end) throw refusal(id, end);
    return this.#open!.task as Task<K>;
  }

  /**
   * Whether this very result was accepted before: the answer to it was lost, then.
   * @throws ALREADY_EXISTS if another one was accepted
   */
  isAccepted(id: string, kind: Kind, mark: unknown): boolean {
    const end = this.#ends.get(id);
    if (end?.type !== 'delivered' || end.kind !== kind) return false;
    if (!isDeepStrictEqual(end.mark, mark))
      throw new ConnectError(
        `another result of task ${id} was already accepted; ask for the next one`,
        Code.AlreadyExists,
      );
    return true;
  }

  /** Of the open task. */
  progress({ onProgress }: Task<'train'>, progress: TrainingProgress): void {
    const open = this.#open!;
    // Dropped: what was said before, for its answer was lost or the client began anew; and steps beyond those it first said.
    const { step, steps } = open.said ?? { step: 0, steps: progress.steps };
    if (progress.step <= step || progress.step > steps) return;
    open.said = { step: progress.step, steps };
    onProgress?.(progress);
  }

  /** Ends an open task with its result, which `mark` tells from another one. @throws as `get` does */
  deliver<K extends Kind>({ id, kind }: Task<K>, result: Results[K], mark: unknown): void {
    this.get(id, kind);
    const open = this.#open!;
    this.#end(open, { type: 'delivered', kind, mark });
    open.resolve(result);
  }

  /** The client cannot go on: what it has to do fails, now and until it goes on. */
  fail(reason: string): void {
    this.#failure = new Error(`${this.#client} left: ${reason}`);
    if (this.#open) this.#close(this.#open, this.#failure);
  }

  /** The client is there again. */
  goOn(): void {
    this.#failure = undefined;
  }

  /** Answers those who wait in `next`. */
  release(): void {
    for (const resolve of this.#waiting) resolve();
  }

  /** From now on the client is told that there is nothing left to do. */
  finish(): void {
    this.#isFinished = true;
    if (this.#open) this.#close(this.#open, new Error('the run is over'));
    this.release();
  }

  #close(open: Open, reason: unknown): void {
    const said = reason instanceof Error ? reason.message : String(reason);
    this.#end(open, { type: 'closed', kind: open.task.kind, reason: said });
    open.reject(reason);
  }

  #end({ task: { id }, ending }: Open, end: End): void {
    this.#open = undefined;
    this.#ends.set(id, end);
    ending.abort(refusal(id, end));
  }

  #change(waitMs: number, signal: AbortSignal): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#waiting.add(resolve);
    const timer = setTimeout(resolve, waitMs);
    signal.addEventListener('abort', () => resolve());
    return promise.finally(() => {
      this.#waiting.delete(resolve);
      clearTimeout(timer);
    });
  }
}

function refusal(id: string, end: End): ConnectError {
  return end.type === 'closed'
    ? late(`task ${id} is over: ${end.reason}; ask for the next one`)
    : notNow(`the result of task ${id} was already accepted; ask for the next one`);
}

function handed(tensors: NamedTensors): Handed {
  return { tensors, info: describe(tensors) };
}
