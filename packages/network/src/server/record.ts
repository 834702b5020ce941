// Writes down what clients send, as the services get it, for whoever audits a server of their own:
//
//   requests.jsonl             an object a message: index, time, client, method, all fields (record-fields.ts)
//   bodies/000012.safetensors  activations of message 12 as float32, named by their field; of an upload its parameters
//   bodies/000012.x.bin        other bytes of a field x
//
// What a field says stands where it was; only long bytes are elsewhere, as { file, name } or { file }. Headers, and with
// them credentials, are never seen here. A line is written once its files are whole.
import { mkdir, open, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { DescMessage, Message } from '@bufbuild/protobuf';
import { reflect } from '@bufbuild/protobuf/reflect';
import type { Interceptor } from '@connectrpc/connect';
import { type Float32Tensor, float32, type NamedTensors } from '@fellrec/graph';
import { writeSafetensors } from '@fellrec/models';
import { type UploadHead, type UploadRequest, UploadRequestSchema } from '#proto/federation_pb';
import { consistentBytes, tensorsOver } from '../protocol/parameters.ts';
import { clientKey } from './identity.ts';
import { fieldsOf, type Json, type JsonObject } from './record-fields.ts';

export interface RecordingOptions {
  /** Made if it is not there. */
  readonly folder: string;
  /** Recording ends before the folder becomes larger (default: 4 GiB). */
  readonly maxBytes?: number;
  /** Told when recording ends early. */
  readonly onNote: (text: string) => void;
}

export interface Recording {
  /** Sees requests on their way to services. They do not wait for anything to be written. */
  readonly interceptor: Interceptor;
  /** Resolves once all that was seen is written. */
  close(): Promise<void>;
}

/** Waiting to be written. A disk that is so far behind would cost the server its memory. */
const maxWaitingBytes = 512 * 2 ** 20;

/** Where a message comes from. */
interface Origin {
  readonly client: string;
  readonly method: string;
  /** Of a message that is not the first of its stream: the first one's index. */
  readonly stream?: number | undefined;
}

/** What is written of one message. */
interface Written {
  readonly tensors: Map<string, Float32Tensor>;
  readonly files: Map<string, Uint8Array>;
  readonly line: string;
}

/** @throws if the folder holds a recording, or cannot be written to */
export async function openRecording({
  folder,
  maxBytes = 4 * 2 ** 30,
  onNote,
}: RecordingOptions): Promise<Recording> {
  await mkdir(join(folder, 'bodies'), { recursive: true, mode: 0o700 });
  const log = await open(join(folder, 'requests.jsonl'), 'ax', 0o600).catch((cause) => {
    throw new Error(
      cause.code === 'EEXIST'
        ? `record: ${folder} holds a recording; choose another folder`
        : `record: cannot write to ${folder}: ${cause.message}`,
      { cause },
    );
  });
  let count = 0;
  // Gathered: parts of uploads that go on.
  let [recordedBytes, waitingBytes, gatheredBytes] = [0, 0, 0];
  let stopped = false;
  let tail = Promise.resolve();

  function stop(why: string): void {
    if (stopped) return;
    stopped = true;
    onNote(`recording ends after ${count} messages: ${why}; the run goes on`);
    const line = JSON.stringify({ index: count, stopped: why });
    tail = tail.then(async () => log.appendFile(`${line}\n`)).catch(() => {});
  }

  /** Whether there is room for more; recording ends if not. */
  function fits(bytes: number): boolean {
    if (recordedBytes + gatheredBytes + bytes > maxBytes) stop(`more than ${maxBytes} bytes`);
    else if (waitingBytes + gatheredBytes + bytes > maxWaitingBytes)
      stop(`the disk is ${waitingBytes} bytes behind`);
    return !stopped;
  }

  /** Puts a message down to be written; the index of its line, if recording goes on. */
  function keep(origin: Origin, describe: (aside: ReturnType<typeof bodies>) => JsonObject) {
    if (stopped) return undefined;
    try {
      const index = count;
      const aside = bodies(index);
      const message = describe(aside);
      const time = new Date().toISOString();
      const written = { ...aside, line: `${JSON.stringify({ index, time, ...origin, message })}\n` };
      const bytes = bytesOf(written);
      if (!fits(bytes)) return undefined;
      count++;
      recordedBytes += bytes;
      waitingBytes += bytes;
      tail = tail
        .then(() => write(written, index))
        .catch((error) => stop((error as Error).message))
        .finally(() => {
          waitingBytes -= bytes;
        });
      return index;
    } catch (error) {
      stop((error as Error).message);
      return undefined;
    }
  }

  async function write({ tensors, files, line }: Written, index: number): Promise<void> {
    if (tensors.size > 0) await writeSafetensors(join(folder, tensorFile(index)), tensors);
    for (const [name, bytes] of files) {
      const file = join(folder, name);
      await writeFile(`${file}.tmp`, bytes);
      await rename(`${file}.tmp`, file);
    }
    await log.appendFile(line);
  }

  const keepFields = (origin: Origin, schema: DescMessage, message: Message) =>
    keep(origin, (aside) => fieldsOf(reflect(schema, message), aside));

  /** The messages of a stream. Parts of an upload are put together: `end` writes them down. */
  function stream(origin: Origin, schema: DescMessage) {
    let first: number | undefined;
    let head: UploadHead | undefined;
    let parts: Uint8Array[] = [];
    return {
      saw(message: Message): void {
        if (stopped) return;
        const part = schema === UploadRequestSchema && !message.$unknown && (message as UploadRequest).part;
        if (part && part.case === 'data' && head) {
          if (!fits(part.value.length)) return;
          parts.push(part.value.slice());
          gatheredBytes += part.value.length;
          return;
        }
        if (part && part.case === 'head') head ??= part.value;
        const index = keepFields({ ...origin, stream: first }, schema, message);
        first ??= index;
      },
      end(): void {
        if (parts.length === 0) return;
        const data = joined(parts);
        parts = [];
        gatheredBytes -= data.length;
        keep({ ...origin, stream: first }, (aside) => {
          const tensors = wholeUpload(head!, data);
          return { data: tensors ? aside.parameters(tensors) : aside.bytes('data', data) };
        });
      },
    };
  }

  return {
    interceptor: (next) => async (request) => {
      if (stopped) return next(request);
      const { method } = request;
      const origin = { client: request.contextValues.get(clientKey), method: method.name };
      if (!request.stream) {
        keepFields(origin, method.input, request.message as Message);
        return next(request);
      }
      const { saw, end } = stream(origin, method.input);
      try {
        return await next({ ...request, message: passing(request.message as AsyncIterable<Message>, saw) });
      } finally {
        end();
      }
    },
    async close() {
      // What is written last may end the recording, which is written then.
      for (let seen: unknown; seen !== tail; ) {
        seen = tail;
        await tail;
      }
      stopped = true;
      await log.close();
    },
  };
}

const numbered = (index: number) => `bodies/${String(index).padStart(6, '0')}`;
const tensorFile = (index: number) => `${numbered(index)}.safetensors`;

/** Takes what is too long for a line. */
function bodies(index: number) {
  const tensors = new Map<string, Float32Tensor>();
  const files = new Map<string, Uint8Array>();
  return {
    tensors,
    files,
    tensor(name: string, { data, dims }: Float32Tensor): Json {
      // The message's memory is the service's.
      tensors.set(name, float32(data.slice(), dims));
      return { file: tensorFile(index), name };
    },
    bytes(name: string, bytes: Uint8Array): Json {
      const file = `${numbered(index)}.${name}.bin`;
      files.set(file, bytes.slice());
      return { file };
    },
    parameters(named: NamedTensors): Json {
      for (const [name, tensor] of named) tensors.set(name, tensor);
      return { file: tensorFile(index) };
    },
  };
}

function bytesOf({ tensors, files, line }: Written): number {
  let sum = line.length;
  for (const { data } of tensors.values()) sum += data.byteLength;
  for (const { length } of files.values()) sum += length;
  return sum;
}

function joined(parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const all = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** The tensors of an upload that came in one piece; undefined if it went on with an earlier one, or ended early. */
function wholeUpload({ offset, parameters }: UploadHead, data: Uint8Array<ArrayBuffer>) {
  try {
    const isWhole = offset === 0n && parameters && consistentBytes(parameters) === data.length;
    return isWhole ? tensorsOver(data.buffer, parameters) : undefined;
  } catch {
    return undefined;
  }
}

/** The same messages, each seen on its way. Only `next` is replaced: how a stream is stopped stays its own affair. */
function passing<T>(messages: AsyncIterable<T>, saw: (message: T) => void): AsyncIterable<T> {
  return {
    [Symbol.asyncIterator]() {
      const iterator = messages[Symbol.asyncIterator]();
      const next = iterator.next.bind(iterator);
      return Object.assign(iterator, {
        next: async () => {
          const result = await next();
          if (!result.done) saw(result.value);
          return result;
        },
      });
    },
  };
}
