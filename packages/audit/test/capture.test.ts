// Recordings of a server are read as they are, and refused where they are damaged.
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { float32 } from '@fellrec/graph';
import { writeSafetensors } from '@fellrec/models';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { readCapture } from '../src/capture.ts';

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'fellrec-capture-'));
  await mkdir(join(folder, 'bodies'));
});
afterEach(() => rm(folder, { recursive: true }));

const join_ = { index: 0, client: 'anna', method: 'Join', message: { layers_kept: 2 } };
/** Two sequences of 3 and 2 tokens that begin with the same one, padded to 2 more. */
const forward = {
  index: 1,
  client: 'anna',
  method: 'Forward',
  message: {
    session_id: 's',
    step: '1',
    keep: 'KEEP_GRADIENT',
    states: {
      type: 'ELEMENT_TYPE_INT8_ROWS',
      rows: 5,
      columns: 2,
      data: { file: 'bodies/000001.safetensors', name: 'states' },
    },
    layout: { lengths: [3, 2], padded_length: 2, prefix: 1 },
  },
};
type Forward = typeof forward;
const changed = (message: object): Forward => ({ ...forward, message: { ...forward.message, ...message } });
const states = (change: object) => changed({ states: { ...forward.message.states, ...change } });

async function record(...lines: readonly unknown[]): Promise<void> {
  const text = lines.map((line) => (typeof line === 'string' ? line : `${JSON.stringify(line)}\n`)).join('');
  await writeFile(join(folder, 'requests.jsonl'), text);
  const numbers = float32([0, 0, 10, 11, 20, 21, 30, 31, 40, 41], [5, 2]);
  await writeSafetensors(join(folder, 'bodies/000001.safetensors'), new Map([['states', numbers]]));
}

test('a forward pass: whose it is, what for, and the states of each sequence', async () => {
  await record(join_, { ...join_, client: 'ben', message: {} }, forward);
  const { clients, passes, stopped } = await readCapture(folder);
  expect(clients).toEqual(
    new Map([
      ['anna', 2],
      ['ben', undefined],
    ]),
  );
  expect(stopped).toBeUndefined();
  expect(passes).toEqual([
    {
      index: 1,
      client: 'anna',
      k: 2,
      keep: 'gradient',
      encoding: 'int8',
      lengths: [3, 2],
      states: expect.any(Function),
    },
  ]);
  expect(await passes[0]!.states()).toEqual([
    float32([0, 0, 10, 11, 20, 21], [3, 2]),
    float32([0, 0, 30, 31], [2, 2]),
  ]);
});

test('passes that came again or were refused are not there, a cut last line is passed over', async () => {
  await record(
    join_,
    forward,
    { ...forward, index: 2 },
    changed({ step: '2', keep: 'KEEP_UNSPECIFIED' }),
    { ...states({ data: { file: 'bodies/000004.states.data.bin' } }), index: 4 },
    { ...states({ rows: 7 }), index: 5 },
    { ...changed({ layout: { ...forward.message.layout, lengths: [3, 9] } }), index: 6 },
    { index: 7, stopped: 'the disk is full' },
    '{"index":8,"client":"an',
  );
  const { passes, stopped } = await readCapture(folder);
  expect(passes.map(({ keep }) => keep)).toEqual(['gradient', 'nothing']);
  expect(stopped).toBe('the disk is full');
});

test('a client that joins again with another k, which a server refuses, keeps the k of its states', async () => {
  await record({ ...join_, message: { layers_kept: 1 } }, join_, forward, {
    ...join_,
    message: { layers_kept: 5 },
  });
  expect((await readCapture(folder)).passes.map(({ k }) => k)).toEqual([2]);
  await record(join_, forward, { ...join_, message: {} });
  expect((await readCapture(folder)).passes.map(({ k }) => k)).toEqual([2]);
});

test.each<[string, RegExp, ...unknown[]]>([
  ['no JSON', /requests\.jsonl, line 2 is no JSON/, join_, '{]\n'],
  ['no object', /line 1: expected an object, found \[\]/, '[]\n'],
  ['a client that is a number', /line 1: client: expected text, found 3/, { ...join_, client: 3 }],
  [
    'k below 0',
    /layers_kept: expected a whole number from 0, found -1/,
    { ...join_, message: { layers_kept: -1 } },
  ],
  ['states without a type', /states\.type: expected text, found nothing/, join_, states({ type: undefined })],
  [
    'lengths that are none',
    /layout\.lengths: expected a list/,
    join_,
    changed({ layout: { prefix: 1, padded_length: 2 } }),
  ],
  [
    'a file elsewhere',
    /"bodies\/\.\.\/x\.safetensors" is no file of a recording/,
    join_,
    states({ data: { file: 'bodies/../x.safetensors' } }),
  ],
  ['states of nobody', /message 1 .* anna, who never joined/, forward],
])('%s is an error that says where', async (_, message, ...lines) => {
  await record(...lines);
  await expect(readCapture(folder)).rejects.toThrow(message);
});

test('states that are not there, or of another shape', async () => {
  await record(join_, forward);
  const [pass] = (await readCapture(folder)).passes;
  const file = join(folder, 'bodies/000001.safetensors');
  await writeSafetensors(file, new Map([['states', float32([1, 2], [1, 2])]]));
  await expect(pass!.states()).rejects.toThrow(/states are \[1,2\], requests\.jsonl says \[5, 2\]/);
  await writeSafetensors(file, new Map([['gradient', float32([1, 2], [1, 2])]]));
  await expect(pass!.states()).rejects.toThrow(/holds no states/);
  await rm(file);
  await expect(pass!.states()).rejects.toThrow(/cannot read .*000001\.safetensors/);
  await expect(readCapture(join(folder, 'nowhere'))).rejects.toThrow(/was it "fellrec serve --record"\?/);
});
