// A client of the federation that trains elsewhere: its work is a task that it fetches, its result what it sends.
import type { Client, Evaluation, RoundContext, Update } from '@fellrec/federation';
import type { NamedTensors } from '@fellrec/graph';
import type { TestResult } from '../protocol/test-result.ts';
import type { JoinFacts } from './sessions.ts';
import { type ClientTasks, type Kind, newTaskId, type Results } from './tasks.ts';

/** Tensors of the middle layers, which the server has in its own hands. */
export interface MiddleParameters {
  /** The client is about to get the task; its middle layers start from these. */
  start(taskId: string, tensors: NamedTensors): void;
  /** What they are after the client's training. */
  finish(taskId: string): NamedTensors;
  /** The task is over, one way or another. */
  close(taskId: string): void;
}

/** A client that keeps some layers, while the server trains the others for it. */
export interface Split {
  /** Which tensors the client trains itself; only these cross. */
  readonly isOwn: (name: string) => boolean;
  readonly ofServer: MiddleParameters;
}

export interface RemoteClientOptions {
  readonly name: string;
  /** What it said when it joined. */
  readonly facts: JoinFacts;
  readonly tasks: ClientTasks;
  /** As in federation's Client. */
  readonly holds?: (name: string) => boolean;
  readonly split?: Split;
}

export interface TestContext {
  readonly round: number;
  /** Parameters that item vectors are computed with, where they are others. They cross as they are. */
  readonly items?: NamedTensors;
  readonly signal?: AbortSignal;
}

export class RemoteClient implements Client {
  readonly name: string;
  readonly samples: number;
  readonly facts: JoinFacts;
  readonly holds: ((name: string) => boolean) | undefined;
  readonly crosses: ((name: string) => boolean) | undefined;
  readonly #tasks: ClientTasks;
  readonly #split: Split | undefined;

  constructor({ name, facts, tasks, holds, split }: RemoteClientOptions) {
    this.name = name;
    this.samples = facts.trainSamples;
    this.facts = facts;
    this.holds = holds;
    this.crosses = split?.isOwn;
    this.#tasks = tasks;
    this.#split = split;
  }

  async train(parameters: NamedTensors, context: RoundContext): Promise<Update> {
    return this.#perform('train', parameters, context, (update, taskId) => {
      if (!this.#split) return update;
      const all = new Map([...update.parameters, ...this.#split.ofServer.finish(taskId)]);
      return { ...update, parameters: inOrder(all, parameters) };
    });
  }

  async evaluate(parameters: NamedTensors, context: RoundContext): Promise<Evaluation> {
    return this.#perform('evaluate', parameters, context);
  }

  /** Metrics of parameters on the client's test users. */
  async test(parameters: NamedTensors, context: TestContext): Promise<TestResult> {
    return this.#perform('test', parameters, context);
  }

  async #perform<K extends Kind>(
    kind: K,
    parameters: NamedTensors,
    context: RoundContext & TestContext,
    complete = (result: Results[K], _taskId: string) => result,
  ): Promise<Results[K]> {
    const { round, items, onProgress, signal } = context;
    const id = newTaskId(this.name, kind, round);
    const order = { id, kind, round, items, onProgress, signal };
    const split = this.#split;
    if (!split) return complete(await this.#tasks.perform({ ...order, parameters }), id);
    split.ofServer.start(
      id,
      only(parameters, (name) => !split.isOwn(name)),
    );
    try {
      return complete(await this.#tasks.perform({ ...order, parameters: only(parameters, split.isOwn) }), id);
    } finally {
      split.ofServer.close(id);
    }
  }
}

function only(tensors: NamedTensors, isWanted: (name: string) => boolean): NamedTensors {
  return new Map([...tensors].filter(([name]) => isWanted(name)));
}

/** The tensors in the order of others; those that only one side has are left for the federation to refuse. */
function inOrder(tensors: NamedTensors, others: NamedTensors): NamedTensors {
  const known = [...others.keys()].filter((name) => tensors.has(name));
  return new Map([...known, ...tensors.keys()].map((name) => [name, tensors.get(name)!]));
}
