// Strategies that look at the round before, or have clients judge, go on after a stop with the same bytes.
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  chosen,
  clustered,
  createRun,
  fedavg,
  federate,
  fedfomo,
  fellrec,
  openRun,
  type ParametersFormat,
  type RoundRecord,
  type RunStore,
  type Strategy,
} from '../src/index.ts';
import { filesOf } from './files.ts';
import { quadratic, tensors } from './toy.ts';

const format: ParametersFormat = {
  write: (folder, parameters) =>
    writeFile(join(folder, 'x.json'), JSON.stringify([...parameters.get('x')!.data])),
  read: async (folder) =>
    tensors({ x: JSON.parse(await readFile(join(folder, 'x.json'), 'utf8')) as number[] }),
};
const clients = [
  quadratic('north', { target: [4, 0, 1], validationTarget: [3, 0, 0] }),
  quadratic('south', { target: [-1, 5, 0], samples: 30 }),
  quadratic('east', { target: [3, 1, 1], validationTarget: [4, 0, 1] }),
  quadratic('west', { target: [-1, 4, 2], samples: 15 }),
];
const smoothing = fellrec({
  similarityOn: 'update',
  similarity: { form: 'attention', sharpness: 2, smoothing: 0.6 },
  heating: { alpha: 0.7, beta: 3, temperature: 0.5, exponent: 't/beta' },
});
const splitting = clustered({ epsilon1: 0.6, epsilon2: 0, gammaMax: 0.1 });
const strategies: Readonly<Record<string, Strategy>> = {
  'smoothed FELLRec': smoothing,
  clustered: splitting,
  'a choice with a smoothed candidate': chosen([
    { name: 'fedavg', strategy: fedavg() },
    { name: 'fellrec', strategy: smoothing },
  ]),
  'a choice with clusters': chosen([
    { name: 'fedavg', strategy: fedavg() },
    { name: 'clustered', strategy: splitting },
  ]),
  FedFomo: fedfomo(),
};
const contents = { config: { seed: 1 }, clients: {} };
const rounds = 5;

describe.each([
  { place: 'in memory', isSpilled: false },
  { place: 'on disk', isSpilled: true },
])('a run that goes on, $place', ({ isSpilled }) => {
  let scratch: string;
  beforeAll(async () => {
    scratch = await mkdtemp(join(tmpdir(), 'resume-'));
  });
  afterAll(() => rm(scratch, { recursive: true, force: true }));

  /** From where the run stands, until so many rounds are complete. */
  async function goOn(store: RunStore, strategy: Strategy, until: number): Promise<void> {
    const resume = await store.state();
    const initial = tensors({ x: [0, 0, 0] });
    const spill = { directory: scratch, aboveBytes: 0 };
    for await (const event of federate({
      clients,
      strategy,
      initial,
      rounds,
      patience: 9,
      ...(resume && { resume }),
      ...(isSpilled && { spill }),
    })) {
      await store.record(event);
      if (event.type === 'round-finished' && event.round + 1 === until) break;
    }
    await store.close();
  }

  for (const [name, strategy] of Object.entries(strategies))
    it(`under ${name}, ends with the same bytes wherever it was stopped`, async () => {
      const folder = (stop: number) => join(scratch, `${name}-${stop}`);
      await goOn(await createRun(folder(rounds), contents, format), strategy, rounds + 1);
      const whole = await filesOf(folder(rounds));
      for (let stop = 1; stop < rounds; stop++) {
        await goOn(await createRun(folder(stop), contents, format), strategy, stop);
        await goOn(await openRun(folder(stop), format), strategy, rounds + 1);
        expect(await filesOf(folder(stop)), `after ${stop} rounds`).toEqual(whole);
      }
      const clusters = Array.from(
        { length: rounds },
        (_, round) => (JSON.parse(whole[`rounds/000${round}/round.json`]!) as RoundRecord).mixing.clusters,
      );
      // Clusters split on the way, so a run that forgot them would differ.
      if (strategy === splitting) expect(new Set(clusters.map((own) => own!.join())).size).toBeGreaterThan(1);
    });
});
