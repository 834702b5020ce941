// Generation for the evaluation of users against transformers' `generate` on the same prompts, alternating, and whether
// both find the same best beam.
//
//   node bench/generation.ts --model FOLDER --data FOLDER --python PYTHON [--users 200] [--rounds 2]
//     [--base float32,int8,int8-fast] [--batch 16] [--peer-dtypes fp32,bf16] [--peer-batches 8,16] [--threads N] [--cache FOLDER]
//
// --data is what `fellrec data import` wrote. PYTHON has torch 2.13.0 and transformers 5.23.0, and gguf if the model is a
// .gguf file.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { loadTokenizer, openCheckpoint } from '../packages/models/src/index.ts';
import { calibrationSequences, promptTokens } from '../packages/recsys/src/bigrec/text.ts';
import { readDataset, subset, testSamples, videoGames } from '../packages/recsys/src/index.ts';
import { prepare } from './base.ts';
import { contest, list, type Measured, machine, ours, peer, peerWeights, rounded, total } from './contest.ts';

/** What both sides read. */
export interface GenerationTask {
  /** Shortest first. */
  readonly prompts: readonly (readonly number[])[];
  readonly beams: number;
  readonly maxNewTokens: number;
  readonly eosIds: readonly number[];
  /** For quantised bases. */
  readonly calibration: readonly (readonly number[])[];
}
/** What both sides print; `seconds` are those of the batches, without loading and one more to warm up. */
export interface GenerationMeasured extends Measured {
  /** Of each prompt, the best beam's tokens up to the end token. */
  readonly best: readonly (readonly number[])[];
}

const { values: o } = parseArgs({
  options: {
    model: { type: 'string' },
    data: { type: 'string' },
    python: { type: 'string', default: 'python3' },
    users: { type: 'string', default: '200' },
    rounds: { type: 'string', default: '2' },
    base: { type: 'string', default: 'float32,int8,int8-fast' },
    batch: { type: 'string', default: '16' },
    'peer-dtypes': { type: 'string', default: 'fp32,bf16' },
    'peer-batches': { type: 'string', default: '8,16' },
    threads: { type: 'string', default: String(machine.cores) },
    cache: { type: 'string', default: '.cache/fellrec' },
  },
});
if (!o.model || !o.data)
  throw new Error('bench: name a model folder with --model and a data folder with --data');
const seed = 1;
const maxNewTokens = 24;

const { catalogue, users } = await readDataset(o.data);
const checkpoint = await openCheckpoint(o.model, { cacheDir: o.cache });
const { eosIds } = checkpoint.config;
const text = {
  catalogue,
  tokenizer: await loadTokenizer(checkpoint.directory),
  domain: videoGames,
  maxTokens: 512,
  eosIds,
};
const prompts = subset(users.flatMap(testSamples), Number(o.users), seed, 'test')
  .map(({ history }) => promptTokens(history, maxNewTokens, text).value)
  .sort((a, b) => a.length - b.length);
const task: GenerationTask = {
  prompts,
  beams: 4,
  maxNewTokens,
  eosIds,
  calibration: calibrationSequences(text),
};

const folder = mkdtempSync(join(tmpdir(), 'generation-'));
try {
  const file = join(folder, 'task.json');
  writeFileSync(file, JSON.stringify(task));
  const bases = list(o.base);
  const { calibration } = task;
  await prepare(bases, { model: o.model, cache: o.cache, threads: o.threads, calibration });
  const dtypes = list(o['peer-dtypes']);
  const weights = peerWeights(o.python, o.model, dtypes, folder);
  const { model, cache, threads, batch, python } = o;
  const peers = dtypes.flatMap((dtype) =>
    list(o['peer-batches']).map((size) =>
      peer(`${dtype}, batch ${size}`, python, 'peer_generate.py', {
        ...{ task: file, weights: weights.get(dtype)!, batch: size, threads },
      }),
    ),
  );
  const found = contest<GenerationMeasured>(
    [
      ...bases.map((base) =>
        ours(base, 'generation-ours.ts', { task: file, model, cache, threads, base, batch }),
      ),
      ...peers,
    ],
    Number(o.rounds),
  );
  const speed = (name: string) => prompts.length / total(found.get(name)!.seconds);
  const fastest = peers.map(({ name }) => name).toSorted((a, b) => speed(b) - speed(a))[0];
  const exact = peers.find(({ name }) => name.startsWith('fp32'))?.name;
  const row = (name: string) => ({
    usersPerSecond: rounded(speed(name), 3),
    peakRssMiB: Math.round(found.get(name)!.peakRssMiB),
    ...(exact && { [`same best beam as ${exact}`]: rounded(agreement(name, exact), 4) }),
  });
  const result = {
    machine: { ...machine, threads: Number(threads) },
    generation: {
      users: prompts.length,
      meanTokens: rounded(total(prompts.map(({ length }) => length)) / prompts.length, 1),
      beams: task.beams,
      maxNewTokens,
      batch: Number(batch),
    },
    fellrec: Object.fromEntries(bases.map((base) => [base, row(base)])),
    transformers: Object.fromEntries(peers.map(({ name }) => [name, row(name)])),
    ...(fastest && {
      ratios: bases.map((base) => ({
        base,
        [`speed over ${fastest}, the fastest`]: rounded(speed(base) / speed(fastest)),
        [`memory over ${fastest}`]: rounded(found.get(base)!.peakRssMiB / found.get(fastest)!.peakRssMiB),
      })),
    }),
  };
  process.stdout.write(`${JSON.stringify(result, undefined, 2)}\n`);

  /** The share of prompts for which two contestants found the same best beam. */
  function agreement(a: string, b: string): number {
    const other = found.get(b)!.best;
    const same = found.get(a)!.best.filter((ids, i) => ids.join() === other[i]!.join());
    return same.length / other.length;
  }
} finally {
  rmSync(folder, { recursive: true });
}
