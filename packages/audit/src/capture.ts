// What `fellrec serve --record` wrote down, as whoever attacks at the server has it: the hidden states of every forward
// pass, by sequence. The files are described in packages/network/src/server/record.ts; their contents came from clients,
// so nothing of them is taken on trust.
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { type Float32Tensor, float32 } from '@fellrec/graph';
import { readSafetensors, type TokenLayout } from '@fellrec/models';
import { rowOf } from './layerwise.ts';

const encodings = {
  ELEMENT_TYPE_FLOAT32: 'float32',
  ELEMENT_TYPE_FLOAT16: 'float16',
  ELEMENT_TYPE_INT8_ROWS: 'int8',
} as const;
const keeps = { KEEP_UNSPECIFIED: 'nothing', KEEP_GRADIENT: 'gradient', KEEP_CACHE: 'cache' } as const;

/** A forward pass, sent again or not. */
export interface CapturedPass {
  /** Of the message in the recording. */
  readonly index: number;
  readonly client: string;
  /** k: the states come from behind the client's layers 0 .. k - 1. */
  readonly k: number;
  /** What it was for: `gradient` training, `cache` generation, `nothing` a loss or an encoder's vector. */
  readonly keep: (typeof keeps)[keyof typeof keeps];
  /** How the states crossed. */
  readonly encoding: (typeof encodings)[keyof typeof encodings];
  /** Tokens of each sequence. */
  readonly lengths: readonly number[];
  /** Of each sequence, [tokens, d]; read when asked for. @throws if the file does not hold them */
  states(): Promise<Float32Tensor[]>;
}

export interface Capture {
  /** k of each client; undefined: it kept all layers. */
  readonly clients: ReadonlyMap<string, number | undefined>;
  /** In the order in which they came. */
  readonly passes: readonly CapturedPass[];
  /** Why the recording ended before the run did, if it did. */
  readonly stopped?: string;
}

const maxLogBytes = 2 ** 30;
/** Messages are at most 64 MiB, and int8 grows fourfold. */
const maxStatesBytes = 2 ** 29;
const statesFile = /^bodies\/\d{6,15}\.safetensors$/;

type Fields = Readonly<Record<string, unknown>>;

/** @throws if the folder holds no recording, or a damaged one, naming file, line and field */
export async function readCapture(folder: string): Promise<Capture> {
  const clients = new Map<string, number | undefined>();
  const forwards = new Map<string, Omit<CapturedPass, 'k'>>();
  const senders = new Set<string>();
  let stopped: string | undefined;
  for await (const { line, at } of linesOf(join(folder, 'requests.jsonl'))) {
    if ('stopped' in line) stopped = text(line['stopped'], `${at}: stopped`);
    else {
      const client = text(line['client'], `${at}: client`);
      const method = text(line['method'], `${at}: method`);
      const message = fields(line['message'], `${at}: message`);
      // A client that has sent states keeps its k: a server refuses to let it join again with another.
      if (method === 'Join' && !senders.has(client))
        clients.set(client, optional(whole)(message['layers_kept'], `${at}: layers_kept`));
      if (method !== 'Forward') continue;
      const index = whole(line['index'], `${at}: index`);
      const pass = passOf({ folder, index, client, message, at });
      // One that came again is the same: the server checks that.
      const session = text(message['session_id'], `${at}: session_id`);
      const key = JSON.stringify([session, text(message['step'], `${at}: step`)]);
      if (!pass) continue;
      senders.add(client);
      if (!forwards.has(key)) forwards.set(key, pass);
    }
  }
  const passes = [...forwards.values()].map((pass): CapturedPass => {
    const k = clients.get(pass.client);
    if (k === undefined)
      throw new Error(
        `capture: message ${pass.index} in ${folder} has states of ${pass.client}, who never joined with some of the layers; is requests.jsonl whole?`,
      );
    return { ...pass, k };
  });
  return { clients, passes, ...(stopped !== undefined && { stopped }) };
}

/** Lines with where they are; the last one may have been cut off when the server died. */
async function* linesOf(file: string): AsyncGenerator<{ line: Fields; at: string }> {
  const { size } = await stat(file).catch((cause) => {
    throw new Error(`capture: cannot read ${file}: ${cause.message}; was it "fellrec serve --record"?`, {
      cause,
    });
  });
  if (size > maxLogBytes)
    throw new Error(`capture: ${file} has ${size} bytes; at most ${maxLogBytes} are read`);
  const bytes = await readFile(file);
  let [number, from] = [1, 0];
  for (let to = bytes.indexOf('\n'); to !== -1; to = bytes.indexOf('\n', from)) {
    const at = `${file}, line ${number}`;
    let line: unknown;
    try {
      line = JSON.parse(bytes.toString('utf8', from, to));
    } catch (cause) {
      throw new Error(`capture: ${at} is no JSON: ${(cause as Error).message}`, { cause });
    }
    yield { line: fields(line, at), at };
    number++;
    from = to + 1;
  }
}

interface RecordedForward {
  readonly folder: string;
  readonly index: number;
  readonly client: string;
  readonly message: Fields;
  readonly at: string;
}

/** Undefined if the server has refused it: it holds no activations, or others than its layout says. */
function passOf({
  folder,
  index,
  client,
  message,
  at,
}: RecordedForward): Omit<CapturedPass, 'k'> | undefined {
  if (message['states'] === undefined || message['layout'] === undefined) return undefined;
  const states = fields(message['states'], `${at}: states`);
  const encoding = encodings[text(states['type'], `${at}: states.type`) as keyof typeof encodings];
  const keep = keeps[text(message['keep'], `${at}: keep`) as keyof typeof keeps];
  const shape = ['rows', 'columns'].map((name) => whole(states[name], `${at}: states.${name}`));
  const [rows, columns] = shape as [number, number];
  const layout = layoutOf(fields(message['layout'], `${at}: layout`), `${at}: layout`);
  if (!encoding || !keep || !layout || layout.prefix + layout.lengths.length * layout.time !== rows)
    return undefined;
  // Short bytes that are no activations stand in the line.
  const data = states['data'];
  const file = typeof data === 'object' ? text(fields(data, `${at}: data`)['file'], `${at}: data.file`) : '';
  if (!file.endsWith('.safetensors')) return undefined;
  if (!statesFile.test(file))
    throw new Error(`capture: ${at}: "${file}" is no file of a recording's tensors`);
  return {
    index,
    client,
    keep,
    encoding,
    lengths: layout.lengths,
    async states() {
      const all = await readStates(join(folder, file), rows, columns);
      return layout.lengths.map((length, sequence) => ofSequence(all, sequence, length, layout));
    },
  };
}

function layoutOf(message: Fields, at: string): TokenLayout | undefined {
  const prefix = whole(message['prefix'], `${at}.prefix`);
  const time = whole(message['padded_length'], `${at}.padded_length`);
  const { lengths: list } = message;
  if (!Array.isArray(list)) throw new Error(`capture: ${at}.lengths: expected a list, found ${shown(list)}`);
  const lengths = list.map((length, i) => whole(length, `${at}.lengths[${i}]`));
  const fits = lengths.every((length) => length > prefix && length <= prefix + time);
  return fits ? { prefix, time, lengths } : undefined;
}

async function readStates(file: string, rows: number, columns: number): Promise<Float32Tensor> {
  const { size } = await stat(file).catch((cause) => {
    throw new Error(`capture: cannot read ${file}: ${cause.message}`, { cause });
  });
  if (size > maxStatesBytes)
    throw new Error(`capture: ${file} has ${size} bytes; states have at most ${maxStatesBytes}`);
  const states = (await readSafetensors(file)).get('states');
  if (states?.dtype !== 'float32' || states.dims.length !== 2)
    throw new Error(`capture: ${file} holds no states [tokens, d]`);
  if (states.dims[0] !== rows || states.dims[1] !== columns)
    throw new Error(
      `capture: ${file}: states are [${states.dims}], requests.jsonl says [${rows}, ${columns}]; are both of the same recording?`,
    );
  return states;
}

/** The rows of a sequence: what all begin with, then its own without the padding. */
function ofSequence({ data, dims }: Float32Tensor, sequence: number, length: number, layout: TokenLayout) {
  const d = dims[1]!;
  const own = new Float32Array(length * d);
  for (let place = 0; place < length; place++) {
    const row = rowOf(place, sequence, layout);
    own.set(data.subarray(row * d, (row + 1) * d), place * d);
  }
  return float32(own, [length, d]);
}

type Check<T> = (value: unknown, at: string) => T;

const optional =
  <T>(check: Check<T>): Check<T | undefined> =>
  (value, at) =>
    value === undefined ? undefined : check(value, at);

const fields: Check<Fields> = (value, at) => {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Fields;
  throw new Error(`capture: ${at}: expected an object, found ${shown(value)}`);
};

const text: Check<string> = (value, at) => {
  if (typeof value === 'string') return value;
  throw new Error(`capture: ${at}: expected text, found ${shown(value)}`);
};

const whole: Check<number> = (value, at) => {
  if (typeof value === 'number' && Number.isSafeInteger(value) && value >= 0) return value;
  throw new Error(`capture: ${at}: expected a whole number from 0, found ${shown(value)}`);
};

const shown = (value: unknown) => (JSON.stringify(value) ?? 'nothing').slice(0, 80);
