// Uploads that are under way, in memory: one a session, kept when its stream breaks, so that a later one goes on there.
import { createHash } from 'node:crypto';
import { Code, ConnectError } from '@connectrpc/connect';
import type { NamedTensors } from '@fellrec/graph';
import { invalid } from '../protocol/invalid.ts';
import { firstNotFinite, hex, tensorsOver } from '../protocol/parameters.ts';
import { exhausted, notNow } from './refusals.ts';
import type { Session } from './sessions.ts';
import type { Task } from './tasks.ts';

export interface UploadsOptions {
  /** Of all uploads under way together. */
  readonly maxBytes: number;
}

export interface UploadOptions {
  readonly session: Session;
  readonly task: Task<'train'>;
  readonly sha256: Uint8Array;
  /** First byte that comes. */
  readonly offset: bigint;
}

/** One stream's part in an upload. */
export interface Receiving {
  /** Aborted when the upload is over, or when another stream goes on with it; the reason is the refusal. */
  readonly stopped: AbortSignal;
  /** @throws INVALID_ARGUMENT if it reaches over the end */
  append(data: Uint8Array): void;
  /** The tensors, if they are complete and as promised: INVALID_ARGUMENT or DATA_LOSS if not, and all is forgotten. */
  complete(): NamedTensors;
  /** To be called when the stream is over, however it ended: an upload of which nothing has arrived is not kept. */
  end(): void;
}

export interface Uploads {
  /** Bytes that have arrived. Ends a stream that still brings some, so that this stays true. */
  received(session: Session, taskId: string, sha256: Uint8Array): number;
  /**
   * Goes on with the session's upload, or begins another one in its place.
   * @throws FAILED_PRECONDITION if the offset is not what has arrived, RESOURCE_EXHAUSTED if there is no room
   */
  receive(options: UploadOptions): Receiving;
}

interface Upload {
  readonly taskId: string;
  readonly sha256: string;
  readonly bytes: Uint8Array<ArrayBuffer>;
  received: number;
  /** Of the stream that brings bytes at present. */
  stream: AbortController;
  forget(): void;
}

export function openUploads({ maxBytes }: UploadsOptions): Uploads {
  const uploads = new Map<Session, Upload>();
  let heldBytes = 0;

  function find(session: Session, taskId: string, sha256: Uint8Array): Upload | undefined {
    const upload = uploads.get(session);
    return upload?.taskId === taskId && upload.sha256 === hex(sha256) ? upload : undefined;
  }

  function begin({ session, task, sha256 }: UploadOptions): Upload {
    const size = Number(task.parameters.info.bytes);
    if (size > maxBytes)
      throw invalid(`upload: ${size} bytes; this server takes at most ${maxBytes} of all clients together`);
    const earlier = uploads.get(session);
    const others = heldBytes - (earlier?.bytes.length ?? 0);
    if (others + size > maxBytes)
      throw exhausted(
        `uploads under way hold ${others} bytes of at most ${maxBytes}, and this one has ${size}; try again later`,
      );
    earlier?.forget();
    const over = AbortSignal.any([session.ended, task.over]);
    const onOver = () => {
      upload.stream.abort(over.reason);
      upload.forget();
    };
    const upload: Upload = {
      taskId: task.id,
      sha256: hex(sha256),
      bytes: new Uint8Array(size),
      received: 0,
      stream: new AbortController(),
      forget() {
        over.removeEventListener('abort', onOver);
        this.stream.abort(notNow('another upload of this client took its place'));
        if (uploads.get(session) !== this) return;
        uploads.delete(session);
        heldBytes -= size;
      },
    };
    over.addEventListener('abort', onOver);
    uploads.set(session, upload);
    heldBytes += size;
    return upload;
  }

  /** Ends the stream that brings bytes at present, and gives its place to a new one. */
  function takeOver(upload: Upload): void {
    upload.stream.abort(notNow('a newer request goes on with this upload'));
    upload.stream = new AbortController();
  }

  return {
    received(session, taskId, sha256) {
      const upload = find(session, taskId, sha256);
      if (upload?.received === 0) upload.forget();
      else if (upload) takeOver(upload);
      return upload?.received ?? 0;
    },
    receive(options) {
      const { session, task, sha256, offset } = options;
      const known = find(session, task.id, sha256);
      const received = known?.received ?? 0;
      if (offset !== BigInt(received))
        throw notNow(`offset is ${offset}, but ${received} bytes of this upload have arrived; go on there`);
      const upload = known ?? begin(options);
      takeOver(upload);
      const { bytes } = upload;
      const stopped = upload.stream.signal;
      return {
        stopped,
        append(data) {
          stopped.throwIfAborted();
          const left = bytes.length - upload.received;
          if (data.length > left)
            throw invalid(
              `upload: ${data.length} bytes more, but only ${left} of ${bytes.length} are missing`,
            );
          bytes.set(data, upload.received);
          upload.received += data.length;
        },
        complete() {
          stopped.throwIfAborted();
          if (upload.received < bytes.length)
            throw invalid(
              `upload: it ended after ${upload.received} of ${bytes.length} bytes; these are kept, go on there`,
            );
          try {
            const found = createHash('sha256').update(bytes).digest('hex');
            if (found !== upload.sha256)
              throw new ConnectError(
                `upload: the SHA-256 of what arrived is ${found}, not ${upload.sha256}; send it again from the start`,
                Code.DataLoss,
              );
            const tensors = tensorsOver(bytes.buffer, task.parameters.info);
            const bad = firstNotFinite(tensors);
            if (bad !== undefined)
              throw invalid(`upload: NaN or infinity in "${bad}"; a lower learning rate may help`);
            return tensors;
          } finally {
            upload.forget();
          }
        },
        end() {
          if (!stopped.aborted && upload.received === 0) upload.forget();
        },
      };
    },
  };
}
