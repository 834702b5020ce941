// Parameters down and up, in parts; what has arrived once is not sent again.
import { createHash } from 'node:crypto';
import type { MessageInitShape } from '@bufbuild/protobuf';
import { Code, ConnectError } from '@connectrpc/connect';
import type { Update } from '@fellrec/federation';
import type { NamedTensors } from '@fellrec/graph';
import {
  FederationService,
  type ParametersInfo,
  type ParametersRole,
  type UploadRequestSchema,
} from '#proto/federation_pb';
import { consistentBytes, describe, hex, partsOf, tensorsOver } from '../protocol/parameters.ts';
import { type Connection, promptly } from './connection.ts';

type UploadMessage = MessageInitShape<typeof UploadRequestSchema>;

export interface Download {
  readonly taskId: string;
  readonly role: ParametersRole;
  readonly info: ParametersInfo;
}

/** @throws if the parameters are not as the server announced them, however often they are sent. */
export async function download(
  connection: Connection,
  { taskId, role, info }: Download,
): Promise<NamedTensors> {
  const bytes = new Uint8Array(consistentBytes(info));
  let received = 0;
  let farthest = 0;
  await connection.call(FederationService, async (client, sessionId, progressed) => {
    const request = { sessionId, taskId, role, offset: BigInt(received) };
    for await (const { data } of client.download(request)) {
      if (data.length > bytes.length - received)
        throw new Error(`download of ${taskId}: the server sent more than ${bytes.length} bytes`);
      bytes.set(data, received);
      received += data.length;
      if (received <= farthest) continue;
      farthest = received;
      progressed();
    }
    if (received < bytes.length)
      throw new ConnectError(`only ${received} of ${bytes.length} bytes arrived`, Code.Unavailable);
    const found = createHash('sha256').update(bytes).digest('hex');
    if (found === hex(info.sha256)) return;
    received = 0;
    throw new ConnectError(`parameters of ${taskId} arrived with SHA-256 ${found}`, Code.DataLoss);
  });
  return tensorsOver(bytes.buffer, info);
}

/** Delivers what a training task gave. */
export async function upload(
  connection: Connection,
  taskId: string,
  { parameters: tensors, loss, samples, tokens }: Update,
): Promise<void> {
  const parameters = describe(tensors);
  const { sha256 } = parameters;
  const said = {
    taskId,
    parameters,
    loss,
    samples,
    ...(tokens && {
      realTokens: BigInt(tokens.real),
      computedTokens: BigInt(tokens.computed),
      paddingTokens: BigInt(tokens.padding),
    }),
  };
  async function* messages(sessionId: string, offset: bigint): AsyncGenerator<UploadMessage> {
    yield { part: { case: 'head', value: { ...said, sessionId, offset } } };
    for (const data of partsOf(tensors, Number(offset), connection.session().chunkBytes))
      yield { part: { case: 'data', value: data } };
  }

  let farthest = 0n;
  await connection.call(FederationService, async (client, sessionId, progressed) => {
    const { received, complete } = await client.getUpload({ sessionId, taskId, sha256 }, promptly);
    if (complete) return;
    if (received > farthest) {
      farthest = received;
      progressed();
    }
    await client.upload(messages(sessionId, received));
  });
}
