// The federation's side of the network: who takes part, parameters out, results in. Whatever comes in is checked before
// any of it counts.
import type { MessageInitShape } from '@bufbuild/protobuf';
import type { HandlerContext, ServiceImpl } from '@connectrpc/connect';
import {
  type FederationService,
  type GetTaskResponseSchema,
  ParametersRole,
  TaskKind,
  type UploadRequest,
} from '#proto/federation_pb';
import { invalid } from '../protocol/invalid.ts';
import { assertChecksum, assertSameTensors, hex, partsOf } from '../protocol/parameters.ts';
import { plainReason } from '../protocol/reason.ts';
import { clientKey } from './identity.ts';
import { factsOf, type ServedModel } from './join.ts';
import { notFound, notNow } from './refusals.ts';
import type { RemoteClient } from './remote-client.ts';
import { evaluationOf, progressOf, testResultOf, trainingOf } from './results.ts';
import { openRoster, type RosterOptions } from './roster.ts';
import type { RunState } from './run-state.ts';
import type { Session, Sessions } from './sessions.ts';
import type { ClientTasks, Handed, Kind, Results, Task } from './tasks.ts';
import { until } from './until.ts';
import { openUploads } from './uploads.ts';

export interface FederationServiceOptions extends RosterOptions {
  readonly sessions: Sessions;
  readonly model: ServedModel;
  /** What clients get to know of the run's settings, as JSON. */
  readonly settingsJson: string;
  /** Asked whenever a client asks. */
  readonly runState: () => RunState;
  /** Of all uploads under way together. */
  readonly maxUploadBytes: number;
  /** Of a part of parameters, at most (default: 1 MiB). Messages must be allowed to be 1 KiB larger. */
  readonly chunkBytes?: number;
  /** Told of clients that leave because they failed. */
  readonly onFailed?: ((client: string, reason: string) => void) | undefined;
}

export interface FederationServer {
  readonly service: ServiceImpl<typeof FederationService>;
  /** The run's clients, once all expected ones have joined or, after the wait, a quorum. */
  joined(): Promise<readonly RemoteClient[]>;
  /** @throws a ConnectError if a client has no such task, or has it no longer */
  assertTask(client: string, id: string): void;
  /** Tells clients that the run is over; they leave then. */
  finish(): void;
  /** Answers clients that wait for a task that there is none: they ask again. */
  release(): void;
}

/** A client may ask to wait longer; it is answered after this. */
const maxWaitSeconds = 30;

const taskKinds: Readonly<Record<Kind, TaskKind>> = {
  train: TaskKind.TRAIN,
  evaluate: TaskKind.EVALUATE,
  test: TaskKind.TEST,
};

export function federationService(options: FederationServiceOptions): FederationServer {
  const { sessions, model, settingsJson, runState, quorum, maxUploadBytes, onFailed } = options;
  const { chunkBytes = 2 ** 20 } = options;
  const roster = openRoster(options);
  const uploads = openUploads({ maxBytes: maxUploadBytes });

  interface Caller {
    readonly session: Session;
    readonly tasks: ClientTasks;
  }
  function callerOf({ sessionId }: { readonly sessionId: string }, { values }: HandlerContext): Caller {
    const session = sessions.get(sessionId, values.get(clientKey));
    return { session, tasks: roster.member(session.client).tasks };
  }

  async function receive(requests: AsyncIterable<UploadRequest>, context: HandlerContext): Promise<void> {
    const iterator = requests[Symbol.asyncIterator]();
    const { part } = (await iterator.next()).value ?? {};
    if (part?.case !== 'head') throw invalid('upload: the first message must be the head');
    const head = part.value;
    const { session, tasks } = callerOf(head, context);
    const sha256 = head.parameters?.sha256 ?? new Uint8Array();
    assertChecksum(sha256);
    const mark = hex(sha256);
    if (tasks.isAccepted(head.taskId, 'train', mark)) return;
    const task = tasks.get(head.taskId, 'train');
    assertSameTensors(head.parameters!, task.parameters.info);
    const training = trainingOf(head, session.facts);
    const upload = uploads.receive({ session, task, sha256, offset: head.offset });
    const rest = { [Symbol.asyncIterator]: () => iterator };
    try {
      for await (const { part } of until(upload.stopped, rest)) {
        sessions.touch(session);
        if (part.case !== 'data') throw invalid('upload: after the head, only data can follow');
        if (part.value.length === 0 || part.value.length > chunkBytes)
          throw invalid(`upload: a part has ${part.value.length} bytes; it can have 1 to ${chunkBytes}`);
        upload.append(part.value);
      }
      tasks.deliver(task, { ...training, parameters: upload.complete() }, mark);
    } finally {
      upload.end();
    }
  }

  const service: ServiceImpl<typeof FederationService> = {
    join(request, { values }) {
      const client = values.get(clientKey);
      const facts = factsOf(request, model);
      roster.assertMayJoin(client, facts);
      const session = sessions.open(client, facts);
      roster.join(client, facts);
      return {
        sessionId: session.id,
        client,
        settingsJson,
        chunkBytes,
        sessionSeconds: Math.floor(sessions.idleSeconds),
      };
    },
    getRound(request, context) {
      callerOf(request, context);
      return { ...runState(), joined: roster.count(), expected: roster.expected, quorum };
    },
    async getTask(request, context) {
      const { session, tasks } = callerOf(request, context);
      const waitMs = 1000 * Math.min(request.waitSeconds, maxWaitSeconds);
      const task = await tasks.next(waitMs, AbortSignal.any([context.signal, session.ended]));
      session.ended.throwIfAborted();
      sessions.touch(session);
      return taskMessage(task);
    },
    async *download(request, context) {
      const { session, tasks } = callerOf(request, context);
      const task = tasks.get(request.taskId);
      const { tensors, info } = wanted(task, request.role);
      const { offset } = request;
      if (offset > info.bytes) throw invalid(`offset is ${offset}, but there are ${info.bytes} bytes`);
      for (const data of partsOf(tensors, Number(offset), chunkBytes)) {
        session.ended.throwIfAborted();
        task.over.throwIfAborted();
        sessions.touch(session);
        yield { data };
      }
    },
    async upload(requests, context) {
      await receive(requests, context);
      return {};
    },
    getUpload(request, context) {
      const { session, tasks } = callerOf(request, context);
      const { taskId, sha256 } = request;
      assertChecksum(sha256);
      if (tasks.isAccepted(taskId, 'train', hex(sha256))) return { complete: true };
      const task = tasks.get(taskId, 'train');
      return { received: BigInt(uploads.received(session, task.id, sha256)) };
    },
    reportProgress(request, context) {
      const { tasks } = callerOf(request, context);
      const progress = progressOf(request);
      tasks.progress(tasks.get(request.taskId, 'train'), progress);
      return {};
    },
    reportResult(request, context) {
      const { session, tasks } = callerOf(request, context);
      const { taskId } = request;
      const kind = tasks.kindOf(taskId);
      switch (kind) {
        case 'evaluate':
          settle(tasks, taskId, kind, evaluationOf(request, session.facts));
          break;
        case 'test':
          settle(tasks, taskId, kind, testResultOf(request, session.facts));
          break;
        case 'train':
          throw notNow(`task ${taskId} is to train; send what comes of it with Upload`);
      }
      return {};
    },
    leave(request, context) {
      const { session } = callerOf(request, context);
      sessions.leave(session);
      if (request.reason !== undefined) {
        const reason = plainReason(request.reason);
        roster.fail(session.client, reason);
        onFailed?.(session.client, reason);
      }
      return {};
    },
  };
  return {
    service,
    joined: roster.complete,
    assertTask(client, id) {
      roster.member(client).tasks.get(id);
    },
    finish: roster.finish,
    release: roster.release,
  };
}

function settle<K extends 'evaluate' | 'test'>(
  tasks: ClientTasks,
  taskId: string,
  kind: K,
  result: Results[K],
): void {
  if (!tasks.isAccepted(taskId, kind, result)) tasks.deliver(tasks.get(taskId, kind), result, result);
}

function taskMessage(task: Task | 'finished' | undefined): MessageInitShape<typeof GetTaskResponseSchema> {
  if (task === undefined) return { kind: TaskKind.UNSPECIFIED };
  if (task === 'finished') return { kind: TaskKind.FINISHED };
  const { id, kind, round, parameters, items } = task;
  return { kind: taskKinds[kind], taskId: id, round, parameters: parameters.info, items: items?.info };
}

function wanted({ id, parameters, items }: Task, role: ParametersRole): Handed {
  switch (role) {
    case ParametersRole.TASK:
      return parameters;
    case ParametersRole.ITEMS:
      if (!items) throw notFound(`task ${id} has no parameters of its own for item vectors`);
      return items;
    default:
      throw invalid(`role is ${role}; ask for the parameters of the task or those of items`);
  }
}
