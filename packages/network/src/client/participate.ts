// A client's part of a run: it fetches tasks, has them done, and sends what comes of them, until the run is over.
import { equals, type MessageInitShape } from '@bufbuild/protobuf';
import { ConnectError } from '@connectrpc/connect';
import type { Evaluation, TrainingProgress, Update } from '@fellrec/federation';
import type { NamedTensors } from '@fellrec/graph';
import {
  FederationService,
  type GetTaskResponse,
  type ParametersInfo,
  ParametersInfoSchema,
  ParametersRole,
  type ReportResultRequestSchema,
  TaskKind,
} from '#proto/federation_pb';
import type { TestResult } from '../protocol/test-result.ts';
import { type Connection, promptly } from './connection.ts';
import { progressReports } from './progress.ts';
import { type Download, download, upload } from './transfer.ts';
import { isOvertaken } from './trouble.ts';

export interface TaskContext {
  /** From 0. */
  readonly round: number;
  /** Parameters that item vectors are computed with, where they are others. */
  readonly items?: NamedTensors;
}

export interface TrainingContext extends TaskContext {
  readonly taskId: string;
  /** Throws when the round has gone on without this client; training ends by that. */
  readonly onProgress: (progress: TrainingProgress) => void;
}

/** Does a client's tasks with the client's own data. */
export interface Worker {
  /** Told of each task before it. */
  begin?(taskId: string): Promise<void>;
  train(parameters: NamedTensors, context: TrainingContext): Promise<Update>;
  evaluate(parameters: NamedTensors, context: TaskContext): Promise<Evaluation>;
  test(parameters: NamedTensors, context: TaskContext): Promise<TestResult>;
}

export interface ParticipateOptions {
  readonly connection: Connection;
  readonly worker: Worker;
  /** Told of tasks that the run went on without. */
  readonly onNote?: (text: string) => void;
}

/** The server answers earlier when there is something to do. */
const waitSeconds = 20;

/**
 * Works until the run is over.
 * @throws what the worker throws, what the server refuses for good, and if it cannot be reached any more
 */
export async function participate({ connection, worker, onNote }: ParticipateOptions): Promise<void> {
  const fetch = downloads(connection);
  for (;;) {
    const task = await connection.call(FederationService, (client, sessionId) =>
      client.getTask({ sessionId, waitSeconds }, { timeoutMs: 1000 * waitSeconds + promptly.timeoutMs }),
    );
    if (task.kind === TaskKind.FINISHED) break;
    if (task.kind === TaskKind.UNSPECIFIED) continue;
    const { sessionId } = connection.session();
    try {
      await perform(connection, worker, task, fetch);
    } catch (error) {
      // With the session the server has lost what it held for the task, so the next one may be the same again.
      const isLost = connection.session().sessionId !== sessionId;
      if (!isLost && !isOvertaken(error)) throw error;
      onNote?.(`task ${task.taskId} is given up: ${ConnectError.from(error).message}`);
    }
  }
  await connection.leave().catch((error) => onNote?.(`left without goodbye: ${error}`));
}

type Fetch = (wanted: Download) => Promise<NamedTensors>;

/** What was fetched last is not fetched again: a mixture is evaluated, and the next round's training starts from it. */
function downloads(connection: Connection): Fetch {
  const last = new Map<ParametersRole, { readonly info: ParametersInfo; readonly tensors: NamedTensors }>();
  return async (wanted) => {
    const known = last.get(wanted.role);
    if (known && equals(ParametersInfoSchema, known.info, wanted.info)) return known.tensors;
    last.delete(wanted.role);
    const tensors = await download(connection, wanted);
    last.set(wanted.role, { info: wanted.info, tensors });
    return tensors;
  };
}

async function perform(
  connection: Connection,
  worker: Worker,
  task: GetTaskResponse,
  fetch: Fetch,
): Promise<void> {
  const { kind, taskId, round } = task;
  if (!task.parameters) throw new Error(`task ${taskId}: the server sent no list of its parameters`);
  const parameters = await fetch({ taskId, role: ParametersRole.TASK, info: task.parameters });
  const items = task.items && (await fetch({ taskId, role: ParametersRole.ITEMS, info: task.items }));
  const context = { round, ...(items && { items }) };
  await worker.begin?.(taskId);
  switch (kind) {
    case TaskKind.TRAIN: {
      const { report, flush } = progressReports((progress) =>
        connection.call(FederationService, (client, sessionId) =>
          client.reportProgress({ ...progress, sessionId, taskId }, promptly),
        ),
      );
      const update = await worker.train(parameters, { ...context, taskId, onProgress: report });
      await flush();
      await upload(connection, taskId, update);
      break;
    }
    case TaskKind.EVALUATE: {
      const { loss, samples } = await worker.evaluate(parameters, context);
      await deliver({ samples, loss: samples > 0 ? loss : 0 });
      break;
    }
    case TaskKind.TEST: {
      const { metrics, users, truncated } = await worker.test(parameters, context);
      await deliver({ samples: users, metrics: { ...metrics }, truncated });
      break;
    }
    default:
      throw new Error(`task ${taskId} is of the unknown kind ${kind}; this client is older than the server`);
  }

  async function deliver(result: MessageInitShape<typeof ReportResultRequestSchema>): Promise<void> {
    await connection.call(FederationService, (client, sessionId) =>
      client.reportResult({ ...result, sessionId, taskId }, promptly),
    );
  }
}
