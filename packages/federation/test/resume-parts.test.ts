// A run of clients that hold different tensors, of which some are absent, goes on after a stop with the same bytes.
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  type Client,
  createRun,
  type FederateOptions,
  federate,
  fellrec,
  openRun,
  type ParametersFormat,
  type RoundRecord,
  type RunStore,
} from '../src/index.ts';
import { filesOf } from './files.ts';
import { halfway, tensors } from './toy.ts';

/** One file a tensor: which ones a client holds shows in its folder. */
const format: ParametersFormat = {
  async write(folder, parameters) {
    for (const [name, { data }] of parameters) await writeFile(join(folder, name), JSON.stringify([...data]));
  },
  async read(folder) {
    const names = (await readdir(folder)).filter((name) => name !== 'best.json');
    const read = names.map(
      async (name) => [name, JSON.parse(await readFile(join(folder, name), 'utf8')) as number[]] as const,
    );
    return tensors(Object.fromEntries(await Promise.all(read)));
  },
};

const absences: Readonly<Record<string, readonly number[]>> = { whole: [1], lower: [2, 3], ends: [0, 4] };
/** Fails in its rounds; whole hangs instead. */
function absent(client: Client): Client {
  return {
    ...client,
    train(parameters, context) {
      if (!absences[client.name]!.includes(context.round)) return client.train(parameters, context);
      return client.name === 'whole' ? new Promise(() => {}) : Promise.reject(new Error('no connection'));
    },
  };
}
const run: Omit<FederateOptions, 'spill'> = {
  clients: [
    halfway('whole', { target: 1 }),
    halfway('lower', { target: 2, holds: ['embedding', 'layer'] }),
    halfway('ends', { target: 3, holds: ['head', 'embedding'], samples: 5 }),
  ].map(absent),
  strategy: fellrec({
    similarityOn: 'update',
    similarity: { form: 'relative', smoothing: 0.6 },
    heating: { alpha: 0.7, beta: 3, temperature: 0.5, exponent: 't/beta' },
  }),
  initial: tensors({ embedding: [0, 1], layer: [2, 3, 4], head: [5] }),
  rounds: 6,
  patience: 9,
  participation: { quorum: 2, deadlineSeconds: 0.2 },
};

describe.each([
  { place: 'in memory', isSpilled: false },
  { place: 'on disk', isSpilled: true },
])('a run with absent clients and different holdings, $place', ({ isSpilled }) => {
  let scratch: string;
  let whole: Record<string, string>;
  const contents = { config: { seed: 1 }, clients: {} };

  /** From where the run stands, for so many rounds in all. */
  async function goOn(store: RunStore, rounds: number): Promise<void> {
    const resume = await store.state();
    const spill = { directory: scratch, aboveBytes: 0 };
    for await (const event of federate({
      ...run,
      ...(resume && { resume }),
      ...(isSpilled && { spill }),
    })) {
      await store.record(event);
      if (event.type === 'round-finished' && event.round + 1 === rounds) break;
    }
    await store.close();
  }
  /** All but the events, whose order is that of arrival, as a map of lines. */
  async function bytesOf(directory: string) {
    const { 'events.jsonl': events, ...files } = await filesOf(directory);
    return { ...files, events: events!.split('\n').sort().join('\n') };
  }
  beforeAll(async () => {
    scratch = await mkdtemp(join(tmpdir(), 'resume-'));
    await mkdir(join(scratch, 'whole'));
    await goOn(await createRun(join(scratch, 'whole'), contents, format), Number.POSITIVE_INFINITY);
    whole = await bytesOf(join(scratch, 'whole'));
  });
  afterAll(() => rm(scratch, { recursive: true, force: true }));

  it('keeps what each client holds, absent ones too', () => {
    const records = [0, 1, 2, 3, 4, 5].map(
      (round) => JSON.parse(whole[`rounds/000${round}/round.json`]!) as RoundRecord,
    );
    expect(records.map(({ absent }) => absent?.join())).toEqual([
      'ends',
      'whole',
      'lower',
      'lower',
      'ends',
      undefined,
    ]);
    const files = Object.keys(whole).filter((path) => /rounds\/0004\/.*\//.test(path));
    expect(files).toEqual([
      'rounds/0004/ends/embedding',
      'rounds/0004/ends/head',
      'rounds/0004/lower/embedding',
      'rounds/0004/lower/layer',
      'rounds/0004/whole/embedding',
      'rounds/0004/whole/head',
      'rounds/0004/whole/layer',
    ]);
  });

  it('ends with the same bytes wherever it was stopped', async () => {
    for (const stop of [1, 2, 4, 5]) {
      const directory = join(scratch, `stopped-${stop}`);
      await goOn(await createRun(directory, contents, format), stop);
      await goOn(await openRun(directory, format), Number.POSITIVE_INFINITY);
      expect(await bytesOf(directory), `after ${stop} rounds`).toEqual(whole);
    }
  });
});
