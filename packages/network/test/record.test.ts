// What a recording server writes down: every field of every message, in files that can be read again, and no header.
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  create,
  type DescMessage,
  fromBinary,
  type Message,
  type MessageInitShape,
  toBinary,
} from '@bufbuild/protobuf';
import { type ReflectMessage, reflect } from '@bufbuild/protobuf/reflect';
import { BinaryWriter, WireType } from '@bufbuild/protobuf/wire';
import {
  Code,
  ConnectError,
  type ConnectRouter,
  createClient,
  createRouterTransport,
  type ServiceImpl,
} from '@connectrpc/connect';
import { readSafetensors } from '@fellrec/models';
import { afterEach, beforeEach, expect, test } from 'vitest';
import {
  FederationService,
  JoinRequestSchema,
  ReportResultRequestSchema,
  type UploadHeadSchema,
} from '#proto/federation_pb';
import { Keep, LayersService } from '#proto/layers_pb';
import { tensors } from '../../federation/test/toy.js';
import { decodeActivations } from '../src/protocol/activations.ts';
import { describe as infoOf, partsOf } from '../src/protocol/parameters.ts';
import { openRecording, type Recording } from '../src/server/record.ts';
import { fieldsOf } from '../src/server/record-fields.ts';
import { activations, believed, fiveRows, ofFive, says } from './layers-toy.ts';

let folder: string;
let recording: Recording;
let notes: string[];
beforeEach(async () => {
  folder = join(await mkdtemp(join(tmpdir(), 'fellrec-record-')), 'recording');
  notes = [];
  recording = await openRecording({ folder, onNote: (text) => notes.push(text) });
});
afterEach(async () => {
  await recording.close();
  await rm(join(folder, '..'), { recursive: true });
});

/** Clients of services that take anything, with a recording between. */
function clients(
  upload: ServiceImpl<typeof FederationService>['upload'] = async (requests) => {
    for await (const _ of requests);
    return {};
  },
  { interceptor }: Recording = recording,
) {
  const routes = (router: ConnectRouter) =>
    router
      .service(FederationService, {
        join: () => ({}),
        reportResult: () => ({}),
        upload,
        async *download() {},
      })
      .service(LayersService, { forward: () => ({}) });
  const transport = createRouterTransport(routes, {
    transport: {
      interceptors: [
        says('anna'),
        (next) => (request) => {
          request.header.set('authorization', 'Bearer SECRET');
          return next(request);
        },
      ],
    },
    router: { interceptors: [believed, interceptor] },
  });
  return {
    federation: createClient(FederationService, transport),
    layers: createClient(LayersService, transport),
  };
}

async function lines(): Promise<Record<string, unknown>[]> {
  await recording.close();
  const text = await readFile(join(folder, 'requests.jsonl'), 'utf8');
  expect(text.endsWith('\n')).toBe(true);
  return text
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line));
}
const bodies = () => readdir(join(folder, 'bodies'));

const forward = (states = activations(fiveRows)) => ({
  sessionId: 's',
  step: 2n,
  states,
  layout: ofFive,
  keep: Keep.GRADIENT,
  dropout: { seed: 5n, stream: ['client-0', '#3'], sequences: [4, 1] },
});

test('a forward pass: states as safetensors, everything else in its line', async () => {
  await clients().layers.forward(forward());
  const [{ time, ...line }, ...more] = (await lines()) as [{ time: string }];
  expect(more).toEqual([]);
  expect(Math.abs(Date.parse(time) - Date.now())).toBeLessThan(10_000);
  expect(line).toEqual({
    index: 0,
    client: 'anna',
    method: 'Forward',
    message: {
      session_id: 's',
      step: '2',
      states: {
        type: 'ELEMENT_TYPE_FLOAT32',
        rows: 5,
        columns: 3,
        data: { file: 'bodies/000000.safetensors', name: 'states' },
        scales: '',
      },
      layout: { lengths: [3, 2], padded_length: 2, prefix: 1 },
      keep: 'KEEP_GRADIENT',
      adapted: false,
      dropout: { seed: '5', stream: ['client-0', '#3'], sequences: [4, 1] },
    },
  });
  const found = await readSafetensors(join(folder, 'bodies/000000.safetensors'));
  expect(found).toEqual(
    new Map([['states', { dtype: 'float32', dims: [5, 3], data: new Float32Array(fiveRows.flat()) }]]),
  );
});

test.each(['float16', 'int8'] as const)(
  'states that cross as %s are written as decoded',
  async (encoding) => {
    const states = activations(fiveRows, encoding);
    await clients().layers.forward(forward(states));
    const [{ message }] = (await lines()) as [{ message: { states: { type: string; scales: string } } }];
    expect(message.states.type).toBe(
      { float16: 'ELEMENT_TYPE_FLOAT16', int8: 'ELEMENT_TYPE_INT8_ROWS' }[encoding],
    );
    expect(message.states.scales).toHaveLength(encoding === 'int8' ? 2 * 4 * 5 : 0);
    const found = (await readSafetensors(join(folder, 'bodies/000000.safetensors'))).get('states');
    expect(found).toEqual(decodeActivations('', states, states));
  },
);

test('what is no activations is written as it came', async () => {
  const states = activations(fiveRows);
  const short = { ...states, data: new Uint8Array(70).fill(7) };
  await clients().layers.forward(forward(short));
  await clients().layers.forward(forward(activations([[Number.NaN, 1]])));
  const [first, second] = (await lines()) as { message: { states: { data: unknown } } }[];
  expect(first!.message.states.data).toEqual({ file: 'bodies/000000.states.data.bin' });
  expect(await readFile(join(folder, 'bodies/000000.states.data.bin'))).toEqual(Buffer.alloc(70, 7));
  expect(second!.message.states.data).toBe('0000c07f0000803f');
});

test('an upload: the head when it comes, the parameters by their names when all are there', async () => {
  const trained = tensors({ a: [1, 2, 3, 4, 5.5], b: [7] });
  await clients().federation.upload(
    messages({ parameters: infoOf(trained), sessionId: 's', loss: 0.5 }, ...partsOf(trained, 0, 16)),
  );
  const [head, data] = (await lines()) as { message: Record<string, unknown> }[];
  expect(head).toMatchObject({ index: 0, message: { head: { session_id: 's', loss: 0.5 } } });
  expect(head!.message).toMatchObject({
    head: { parameters: { tensors: [{ name: 'a', type: 'ELEMENT_TYPE_FLOAT32', dims: [5] }, {}] } },
  });
  expect(data).toMatchObject({
    index: 1,
    stream: 0,
    message: { data: { file: 'bodies/000001.safetensors' } },
  });
  expect(await readSafetensors(join(folder, 'bodies/000001.safetensors'))).toEqual(trained);
});

test('an upload that breaks off, and the rest of it', async () => {
  const trained = tensors({ a: Array.from({ length: 40 }, (_, i) => i) }); // 160 bytes
  const info = infoOf(trained);
  const parts = [...partsOf(trained, 0, 80)];
  const breaking = clients(async (requests) => {
    let count = 0;
    for await (const _ of requests) if (++count === 2) throw new ConnectError('broke', Code.Unavailable);
    return {};
  });
  await expect(breaking.federation.upload(messages({ parameters: info }, ...parts))).rejects.toThrow('broke');
  await clients().federation.upload(messages({ parameters: info, offset: 80n }, parts[1]!));
  const found = await lines();
  expect(found.map(({ stream }) => stream)).toEqual([undefined, 0, undefined, 2]);
  expect(await bodies()).toEqual(['000001.data.bin', '000003.data.bin']);
  for (const [i, file] of (await bodies()).entries())
    expect(new Uint8Array(await readFile(join(folder, 'bodies', file)))).toEqual(parts[i]);
});

test('a field that the protocol does not know is written down too', async () => {
  const smuggled = new TextEncoder().encode('Titanfall');
  const extra = new BinaryWriter().tag(77, WireType.LengthDelimited).bytes(smuggled).finish();
  const join_ = create(JoinRequestSchema, { modelHash: 'ab', trainSamples: 3 });
  const message = fromBinary(JoinRequestSchema, Buffer.concat([toBinary(JoinRequestSchema, join_), extra]));
  await clients().federation.join(message);
  const [line] = await lines();
  const data = `09${Buffer.from(smuggled).toString('hex')}`;
  expect(line!['message']).toEqual({
    model_hash: 'ab',
    train_samples: 3,
    validation_samples: 0,
    test_users: 0,
    $unknown: [{ number: 77, wire_type: WireType.LengthDelimited, data }],
  });
});

test('every field of every request has a place', () => {
  const none = { tensor: () => 'tensor', bytes: () => 'bytes' };
  const inputs = [FederationService, LayersService].flatMap(({ methods }) =>
    methods.map(({ input }) => input),
  );
  for (const input of inputs) {
    const filled = reflect(input, filledIn(input));
    const names = (desc: DescMessage, found: unknown): void => {
      for (const { name, oneof, message } of desc.fields) {
        if (oneof && !(name in (found as object))) continue;
        expect(found, `${desc.name}.${name}`).toHaveProperty(name);
        const value = (found as Record<string, unknown>)[name];
        if (message) names(message, Array.isArray(value) ? value[0] : value);
      }
    };
    names(input, fieldsOf(filled, none));
  }
});

test('docs/split.md says of every field of every request what it tells', async () => {
  const text = await readFile(join(import.meta.dirname, '../../../docs/split.md'), 'utf8');
  const rows = [...text.matchAll(/^\| ((?:`\w+`(?:, )?)+) \| `(\w+)` \| .+ \|$/gm)];
  const listed = rows.flatMap(([, messages, field]) =>
    [...messages!.matchAll(/\w+/g)].map(([message]) => `${message}.${field}`),
  );
  const fields = new Set<string>();
  const visit = (desc: DescMessage): void => {
    for (const { name, message } of desc.fields) {
      fields.add(`${desc.name.replace(/Request$/, '')}.${name}`);
      if (message) visit(message);
    }
  };
  for (const { methods } of [FederationService, LayersService]) for (const { input } of methods) visit(input);
  expect(listed.toSorted()).toEqual([...fields].sort());
});

test('numbers that JSON has no word for, and names that are none', async () => {
  const metrics = { ndcg: Number.NaN, ['__proto__']: 1, loss: Number.NEGATIVE_INFINITY };
  const request = create(ReportResultRequestSchema, { metrics: Object.fromEntries(Object.entries(metrics)) });
  await clients().federation.reportResult(request);
  await recording.close();
  const text = await readFile(join(folder, 'requests.jsonl'), 'utf8');
  expect(text).toContain('"ndcg":"NaN"');
  expect(text).toContain('"loss":"-Infinity"');
});

test('no header is written', async () => {
  const { federation, layers } = clients();
  await federation.join({ modelHash: 'ab' });
  await layers.forward(forward());
  for await (const _ of federation.download({ taskId: 't' }));
  expect((await lines()).map(({ method }) => method)).toEqual(['Join', 'Forward', 'Download']);
  for (const file of await readdir(folder, { recursive: true, withFileTypes: true }))
    if (file.isFile())
      expect(await readFile(join(file.parentPath, file.name), 'latin1')).not.toMatch(/SECRET|Bearer/);
});

test('beyond its limit recording ends and says so, and requests are answered on', async () => {
  const small = join(folder, 'small');
  const limited = await openRecording({ folder: small, maxBytes: 1200, onNote: (text) => notes.push(text) });
  const { layers } = clients(undefined, limited);
  for (let i = 0; i < 5; i++) await layers.forward(forward());
  await limited.close();
  expect(notes).toEqual(['recording ends after 2 messages: more than 1200 bytes; the run goes on']);
  const text = await readFile(join(small, 'requests.jsonl'), 'utf8');
  expect(
    text
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line).index),
  ).toEqual([0, 1, 2]);
  expect(text).toMatch(/\n\{"index":2,"stopped":"more than 1200 bytes"\}\n$/);
  expect(await readdir(join(small, 'bodies'))).toHaveLength(2);
});

test('a folder that cannot be written to any more ends the recording, not the run', async () => {
  const { layers } = clients();
  await layers.forward(forward());
  while ((await readFile(join(folder, 'requests.jsonl'), 'utf8')).length === 0); // the body is whole by then
  await rm(join(folder, 'bodies'), { recursive: true });
  await layers.forward(forward());
  await recording.close();
  expect(notes).toEqual([expect.stringMatching(/recording ends after 2 messages: .*(cannot write|ENOENT)/)]);
});

test('a recording is not written over', async () => {
  await expect(openRecording({ folder, onNote: () => {} })).rejects.toThrow(
    /holds a recording; choose another/,
  );
});

async function* messages(value: MessageInitShape<typeof UploadHeadSchema>, ...parts: Uint8Array[]) {
  yield { part: { case: 'head' as const, value } };
  for (const value of parts) yield { part: { case: 'data' as const, value } };
}

/** A message with something in each field; of a oneof in the first. */
function filledIn(desc: DescMessage): Message {
  const message: ReflectMessage = reflect(desc);
  for (const field of desc.fields) {
    if (field.oneof && message.oneofCase(field.oneof)) continue;
    const inner = () => reflect(field.message!, filledIn(field.message!));
    switch (field.fieldKind) {
      case 'list':
        message.get(field).add(field.message ? inner() : field.enum ? 1 : field.scalar === 9 ? 'x' : 1);
        break;
      case 'map':
        message.get(field).set('x', 1);
        break;
      case 'message':
        message.set(field, inner());
        break;
      case 'enum':
        message.set(field, 1);
        break;
      default:
        message.set(field, message.get(field));
    }
  }
  return message.message;
}
