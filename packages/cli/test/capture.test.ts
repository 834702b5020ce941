// Against our own wire: a run over TLS whose server records what clients send. What is in the recording is what the
// protocol declares and nothing else; the states in it are those of the clients' own sequences; and whoever has them can
// read the histories, which is why k matters.
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { AuditResult } from '@fellrec/audit';
import { type Float32Tensor, float32, nodeRuntime } from '@fellrec/graph';
import { llama, llamaCut, loadTokenizer, openCheckpoint, readSafetensors } from '@fellrec/models';
import { importDataset, readDataset, trainingSamples, videoGames } from '@fellrec/recsys';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { type SearchOptions, sequentialSearch } from '../../audit/src/attacks/search.js';
import { type Capture, readCapture } from '../../audit/src/capture.js';
import { type AuditedModel, auditedModel, depths } from '../../audit/src/layerwise.js';
import { claimedPlaces } from '../../audit/src/metrics.js';
import { type AuditedSequence, promptSequences } from '../../audit/src/sequences.js';
import { join as takePart } from '../src/join.ts';
import { type RemotePlace, remotePlace } from './remote.ts';
import { embeddedModel, fellrec, interactions, items } from './shared.ts';

vi.setConfig({ testTimeout: 300_000, hookTimeout: 300_000 });

const clients = ['client-0', 'client-1'];
const usersEach = 6;
const k = 2;
const d = 64;
const maxTokens = 512;
const batchSize = 2;
const runtime = nodeRuntime({ threads: 1, spinning: false });

let place: RemotePlace;
let folder: string;
let capture: Capture;
/** Titles, and what ids of users and items begin with: texts that look like no others. */
let secrets: string[];
/** Training sequences by client. */
const sequences = new Map<string, AuditedSequence[]>();

async function openModel() {
  const checkpoint = await openCheckpoint(embeddedModel, { cacheDir: join(place.folder, 'cache') });
  return auditedModel(llamaCut(llama(checkpoint), checkpoint.config), runtime);
}

beforeAll(async () => {
  place = await remotePlace();
  folder = join(place.folder, 'recording');
  secrets = await writeData(place.folder);
  const tokenizer = await loadTokenizer(embeddedModel);
  for (const client of clients) {
    const { catalogue, users } = await readDataset(dataOf(client));
    const maker = promptSequences({ catalogue, tokenizer, domain: videoGames, maxTokens, eosIds: [2] });
    sequences.set(
      client,
      users.flatMap((user) => trainingSamples(user)).map((sample) => maker.history(sample)!),
    );
  }
  const run = place.run('recorded');
  try {
    const server = await run.serve({
      clients,
      more: [
        '--record',
        folder,
        '--set',
        'federation.rounds=1',
        `model.maxTokens=${maxTokens}`,
        `training.batchSize=${batchSize}`,
        '--first-layer',
        String(k),
      ],
    });
    expect(server.stderr).toContain(
      `recording all that clients send, states and adapters included, to ${folder}`,
    );
    const taking = clients.map((client) =>
      takePart({
        server: run.address(),
        data: dataOf(client),
        model: embeddedModel,
        k,
        activations: 'float32',
        ca: place.key('ca.crt'),
        token: place.key(`${client}.token`),
        cache: join(place.folder, 'cache', client),
        threads: 1,
        giveUpSeconds: 10,
      }),
    );
    await Promise.all(taking);
    expect(await server.ended(), server.stderr).toBe(0);
  } finally {
    await run.close();
  }
  capture = await readCapture(folder);
});
afterAll(() => place?.remove());

const dataOf = (client: string) => join(place.folder, 'own', client);

/** The sample with ids that can be told from numbers, a part of it for each client. */
async function writeData(at: string): Promise<string[]> {
  const itemId = (id: string) => `B0ITEM${id.padStart(6, '0')}`;
  const userId = (id: string) => `AUSER${id.padStart(8, '0')}`;
  const catalogue = (await readFile(items, 'utf8'))
    .trim()
    .split('\n')
    .map((line) => line.split('\t'));
  const histories = (await readFile(interactions, 'utf8'))
    .trim()
    .split('\n')
    .map((line) => line.split('\t'));
  const table = (rows: string[][]) => rows.map((row) => row.join('\t')).join('\n');
  const [heads, ...rows] = catalogue as [string[], ...[string, string][]];
  await writeFile(
    join(at, 'own-items.tsv'),
    table([heads, ...rows.map(([id, title]) => [itemId(id), title])]),
  );
  const [titles, ...users] = histories as [string[], ...[string, string][]];
  const own = users.map(([id, list]) => [userId(id), list.split(' ').map(itemId).join(' ')]);
  for (const [c, client] of clients.entries()) {
    const file = join(at, `own-${client}.tsv`);
    await writeFile(file, table([titles, ...own.slice(c * usersEach, (c + 1) * usersEach)]));
    await mkdir(join(at, 'own'), { recursive: true });
    await importDataset({
      interactions: file,
      items: join(at, 'own-items.tsv'),
      columns: { sequence: 'items' },
      kCore: 0,
      output: dataOf(client),
    });
  }
  const long = rows.map(([, title]) => title).filter((title) => title.length > 6);
  // All ids of items and of users begin so.
  return [...long, 'B0ITEM', 'AUSER'];
}

type Leaf = readonly [field: string, value: unknown];

/** The fields below a value, those of lists as `name[]`, of maps as `name{}`. */
function* leaves(value: unknown, path = ''): Generator<Leaf> {
  if (Array.isArray(value)) for (const item of value) yield* leaves(item, `${path}[]`);
  else if (typeof value === 'object' && value !== null)
    for (const [name, item] of Object.entries(value))
      if (path === 'metrics') yield [`metrics{}`, [name, item]];
      else yield* leaves(item, path === '' ? name : `${path}.${name}`);
  else yield [path, value];
}

type Check = (value: unknown) => boolean;
const matches =
  (pattern: RegExp): Check =>
  (value) =>
    typeof value === 'string' && pattern.test(value);
const whole =
  (to: number, from = 0): Check =>
  (value) =>
    Number.isInteger(value) && Number(value) >= from && Number(value) <= to;
const finite: Check = (value) => typeof value === 'number' && Number.isFinite(value);
const digits = matches(/^\d{1,12}$/);
const session = matches(/^[\w-]{22}$/);
const task = matches(/^\d+-(train|evaluate|test)-client-[01]-\w{1,20}$/);
const sha256 = matches(/^[0-9a-f]{64}$/);
const file = matches(/^bodies\/\d{6}\.safetensors$/);
const measured = new Set(
  ['recall', 'ndcg', 'precision', 'mrr', 'hit'].flatMap((name) => [`${name}@10`, `${name}@20`]),
);

const activations = (name: string): Record<string, Check> => ({
  [`${name}.type`]: matches(/^ELEMENT_TYPE_FLOAT32$/),
  [`${name}.rows`]: whole(65_536, 1),
  [`${name}.columns`]: (value) => value === d,
  [`${name}.data.file`]: file,
  [`${name}.data.name`]: (value) => value === name,
  [`${name}.scales`]: (value) => value === '',
});
const numbered = { session_id: session, step: digits };
const ofTask = { session_id: session, task_id: task };

/** Every field that may be in a message, and what it may hold. */
const declared: Record<string, Record<string, Check>> = {
  Join: {
    model_hash: sha256,
    layers_kept: (value) => value === k,
    train_samples: whole(100),
    validation_samples: whole(100),
    test_users: whole(usersEach),
  },
  GetRound: { session_id: session },
  GetTask: { session_id: session, wait_seconds: whole(60) },
  Download: { ...ofTask, role: matches(/^PARAMETERS_ROLE_(TASK|ITEMS)$/), offset: digits },
  Upload: {
    'head.session_id': session,
    'head.task_id': task,
    'head.parameters.tensors[].name': matches(
      /^base_model\.model\.model\.layers\.[014]\.self_attn\.[qv]_proj\.lora_[AB]\.weight$/,
    ),
    'head.parameters.tensors[].type': matches(/^ELEMENT_TYPE_FLOAT32$/),
    'head.parameters.tensors[].dims[]': whole(d, 2),
    'head.parameters.bytes': digits,
    'head.parameters.sha256': sha256,
    'head.offset': digits,
    'head.loss': finite,
    'head.samples': whole(100),
    'head.real_tokens': digits,
    'head.computed_tokens': digits,
    'head.padding_tokens': digits,
    'data.file': file,
  },
  GetUpload: { ...ofTask, sha256 },
  ReportProgress: { ...ofTask, step: whole(100, 1), steps: whole(100, 1), loss: finite },
  ReportResult: {
    ...ofTask,
    samples: whole(100),
    loss: finite,
    'metrics{}': (entry) => {
      const [name, value] = entry as [string, unknown];
      return measured.has(name) && finite(value);
    },
    truncated: whole(100),
  },
  Leave: { session_id: session },
  Begin: { ...numbered, task_id: (value) => value === '' || task(value) },
  Forward: {
    ...numbered,
    ...activations('states'),
    'layout.lengths[]': whole(maxTokens, 1),
    'layout.padded_length': whole(maxTokens, 1),
    'layout.prefix': whole(maxTokens),
    keep: matches(/^KEEP_(UNSPECIFIED|GRADIENT|CACHE)$/),
    adapted: (value) => typeof value === 'boolean',
    'dropout.seed': digits,
    'dropout.stream[]': matches(/^(#\d+|client-[01]|train|round|dropout)$/),
    'dropout.sequences[]': whole(8),
  },
  Backward: { ...numbered, ...activations('gradient') },
  Update: { ...numbered, squared_norm: finite, learning_rate: finite },
  Decode: {
    ...numbered,
    ...activations('states'),
    'users[]': whole(8),
    beams: (value) => value === 1,
    'parents[]': whole(8),
  },
};

interface Line {
  readonly method: string;
  readonly client: string;
  readonly message: Record<string, unknown>;
}

async function lines(): Promise<Line[]> {
  const text = await readFile(logFile(), 'utf8');
  return text
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
}

interface Reference {
  readonly file: string;
  readonly name?: string;
}

interface Shaped {
  readonly session_id: string;
  readonly states?: { readonly rows: number; readonly data: Reference };
  readonly gradient?: Shaped['states'];
  readonly layout: {
    readonly lengths: readonly number[];
    readonly padded_length: number;
    readonly prefix: number;
  };
  readonly users: readonly number[];
}

/** So many tokens one after another are no accident. */
const runLength = 4;

const logFile = () => join(folder, 'requests.jsonl');

/** States behind the first layers of all tokens of sequences, as the base model has them. */
async function statesOf(model: AuditedModel, own: readonly AuditedSequence[]): Promise<Float32Tensor> {
  const selection = { sequences: own, places: own.map(({ ids }) => [...ids.keys()]) };
  let found: Float32Tensor | undefined;
  for await (const { states } of depths(model, [selection], k)) found = states[0];
  return found!;
}

const bodies = async () =>
  Promise.all(
    (await readdir(join(folder, 'bodies'))).map(async (name) => ({
      name,
      bytes: await readFile(join(folder, 'bodies', name)),
    })),
  );

test('nothing crosses but fields that are declared, with what is declared for them', async () => {
  const all = await lines();
  const seen = new Set<string>();
  for (const { method, message, ...envelope } of all) {
    const names = Object.keys(envelope).filter((name) => name !== 'stream');
    expect(names).toEqual(['index', 'time', 'client']);
    for (const [field, value] of leaves(message)) {
      const check = declared[method]?.[field];
      expect(check, `${method} has a field ${field}: ${JSON.stringify(value)}`).toBeDefined();
      expect(check!(value), `${method}.${field} is ${JSON.stringify(value)}`).toBe(true);
      seen.add(`${method}.${field}`);
    }
  }
  // All of it was really looked at, but for what only a broken line brings about.
  const expected = Object.entries(declared).flatMap(([method, fields]) =>
    Object.keys(fields).map((field) => `${method}.${field}`),
  );
  const never = expected.filter((field) => !seen.has(field));
  expect(never.filter((field) => !/^(GetRound|GetUpload)\./.test(field))).toEqual([]);
  expect(capture.stopped).toBeUndefined();
});

test('tensors have the shapes that their messages say', async () => {
  const forwards = new Map<string, number>();
  for (const { method, message } of await lines()) {
    const { session_id: id, states, gradient, layout, users } = message as unknown as Shaped;
    const rows = (states ?? gradient)?.rows;
    if (method === 'Forward') {
      expect(rows).toBe(layout.prefix + layout.lengths.length * layout.padded_length);
      forwards.set(id, rows!);
    }
    if (method === 'Backward') expect(rows).toBe(forwards.get(id));
    if (method === 'Decode') expect(rows).toBe(users.length);
    const reference = (states ?? gradient)?.data ?? (message['data'] as Reference | undefined);
    if (!reference) continue;
    const tensors = await readSafetensors(join(folder, reference.file));
    if (reference.name !== undefined) expect([...tensors.keys()]).toEqual([reference.name]);
    for (const [name, { dtype, dims }] of tensors) {
      expect(dtype, name).toBe('float32');
      if (name === reference.name) expect(dims).toEqual([rows, d]);
      // The rank is 2: an adapter's matrices.
      else expect(Math.min(...dims), name).toBe(2);
    }
  }
});

test('no title and no id of a user or an item crosses, in no spelling', async () => {
  expect(secrets.length).toBeGreaterThan(200);
  const log = await readFile(logFile());
  const all = Buffer.concat([log, ...(await bodies()).map(({ bytes }) => bytes)]);
  for (const secret of secrets) {
    const wide = Buffer.from(secret, 'utf16le');
    const texts = [Buffer.from(secret), Buffer.from(secret, 'latin1'), wide, Buffer.from(wide).swap16()];
    for (const text of texts) {
      expect(all.includes(text), secret).toBe(false);
      // Short bytes stand in the log in digits.
      expect(log.includes(text.toString('hex')), secret).toBe(false);
    }
    expect(log.includes(JSON.stringify(secret).slice(1, -1)), secret).toBe(false);
  }
});

test('no numbers are the tokens of a training sequence, its target or its answer, one after another', async () => {
  const runs = new Set<string>();
  for (const { ids } of [...sequences.values()].flat())
    for (let i = 0; i + runLength <= ids.length; i++) runs.add(ids.slice(i, i + runLength).join());
  const isRun = (list: ArrayLike<number | bigint>, at: number) => {
    for (let i = 0; i < runLength; i++) {
      const value = Number(list[at + i]);
      if (!(Number.isInteger(value) && value >= 0 && value < 512)) return false;
    }
    return runs.has(Array.from({ length: runLength }, (_, i) => list[at + i]).join());
  };
  const found = (list: ArrayLike<number | bigint>) => {
    for (let i = 0; i + runLength <= list.length; i++) if (isRun(list, i)) return true;
    return false;
  };
  expect(found([7, ...[...sequences.values()][0]![0]!.ids.slice(40, 44), 9])).toBe(true);
  for (const { method, message } of await lines()) {
    const numbers: number[] = [];
    for (const [, value] of leaves(message)) if (typeof value === 'number') numbers.push(value);
    expect(found(numbers), method).toBe(false);
  }
  for (const { name, bytes } of await bodies()) {
    // The elements begin behind the header, which is a multiple of 8 long.
    const { buffer } = new Uint8Array(bytes);
    const views = [Uint16Array, Int32Array, Float32Array, BigInt64Array];
    for (const View of views) {
      const count = Math.floor(buffer.byteLength / View.BYTES_PER_ELEMENT);
      expect(found(new View(buffer, 0, count)), `${name} as ${View.name}`).toBe(false);
    }
  }
});

const ascending = (a: number, b: number) => a - b;

/** Largest absolute difference. */
const difference = (a: Float32Tensor, b: Float32Tensor) =>
  a.data.length === b.data.length
    ? a.data.reduce((most, x, i) => Math.max(most, Math.abs(x - b.data[i]!)), 0)
    : Number.POSITIVE_INFINITY;

interface Caught {
  readonly states: Float32Tensor;
  /** The client's sequence that they are of. */
  readonly sequence: AuditedSequence;
  /** Largest difference to what the base model gives for it. */
  readonly distance: number;
}

/** What a client's training passes carried, in the order in which it came. */
async function caughtFrom(client: string, model: AuditedModel): Promise<Caught[]> {
  const own = sequences.get(client)!;
  const computed = await Promise.all(own.map((sequence) => statesOf(model, [sequence])));
  const passes = capture.passes.filter((pass) => pass.client === client && pass.keep === 'gradient');
  const all = (await Promise.all(passes.map((pass) => pass.states()))).flat();
  return all.map((states) => {
    const distances = computed.map((expected) => difference(states, expected));
    const distance = Math.min(...distances);
    return { states, sequence: own[distances.indexOf(distance)]!, distance };
  });
}

test("the states of training are those of the client's own sequences behind its first layers", async () => {
  const model = await openModel();
  for (const client of clients) {
    const own = sequences.get(client)!;
    expect(capture.clients.get(client)).toBe(k);
    const caught = await caughtFrom(client, model);
    expect(caught.map(({ sequence }) => own.indexOf(sequence)).toSorted(ascending)).toEqual([...own.keys()]);
    // Before the first update the adapter changes nothing, for B is 0; later it moves the states a little.
    for (const [i, { distance }] of caught.entries())
      expect(distance).toBeLessThan(i < batchSize ? 1e-5 : 0.5);
  }
});

const tokenCount = ({ sequence }: Caught) => claimedPlaces(sequence).length;

/** Tokens of history and target that a search through the whole vocabulary finds in captured states, by their place. */
async function searchedTokens(model: AuditedModel, { states, sequence }: Caught, options: SearchOptions) {
  const places = claimedPlaces(sequence);
  const vocabulary = Array.from({ length: model.cut.vocabularySize }, (_, token) => token);
  const rows = places.flatMap((place) => [...states.data.subarray(place * d, (place + 1) * d)]);
  const observed = float32(rows, [places.length, d]);
  const candidates = Int32Array.from(places.flatMap(() => vocabulary));
  const searched = [{ depth: k, observed, candidates }];
  const { found } = await sequentialSearch(model, [sequence], searched, options);
  return { found: [...found[0]!], truth: places.map((place) => sequence.ids[place]!) };
}

test('whoever knows the weights of the base model reads histories and targets from the states', async () => {
  const model = await openModel();
  const caught = await caughtFrom('client-0', model);
  // Short ones, so that this takes seconds: of the first step, and of the last, when the client's adapter is another
  // than the attacker thinks.
  const byLength = (part: readonly Caught[]) => part.toSorted((a, b) => tokenCount(a) - tokenCount(b))[0]!;
  const attacked = [
    [byLength(caught.slice(0, batchSize)), { tolerance: 1e-3, take: 'first' }],
    [byLength(caught.slice(-batchSize)), { tolerance: 1, take: 'nearest' }],
  ] as const;
  for (const [one, options] of attacked) {
    const { found, truth } = await searchedTokens(model, one, options);
    expect(truth.length).toBeGreaterThan(50);
    const right = truth.filter((token, i) => token === found[i]).length;
    expect(right / truth.length).toBeGreaterThanOrEqual(0.99);
  }
  expect(attacked[1][0].distance).toBeGreaterThan(0.01);
});

test('audit attacks a recording', async () => {
  const { stdout, stderr, code } = await fellrec(
    ...['audit', '--model', embeddedModel, '--data', dataOf('client-0'), '--capture', folder],
    ...['--client', 'client-0', '--cache', join(place.folder, 'cache'), '--threads', '1'],
    ...['--users', '2', '--auxiliary-users', '8', '--max-tokens', String(maxTokens)],
    ...['--attacks', 'inverter,search', '--json'],
  );
  expect(stderr).not.toContain('fellrec:');
  expect(code).toBe(0);
  const { attacks, data } = JSON.parse(stdout) as AuditResult;
  expect(data.users).toBe(2);
  expect(attacks.map(({ attack, depth }) => [attack, depth])).toEqual([
    ['inverter', k],
    ['search', k],
  ]);
  expect(attacks[1]!.recovery.tokenAccuracy!.mean).toBeGreaterThanOrEqual(0.99);
});
