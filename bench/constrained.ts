// Ranking by beams along the tree of the catalogue's titles, without each user's history, against transformers' `generate`
// with `prefix_allowed_tokens_fn` on the same prompts, alternating, and whether both find the same lists.
//
//   node bench/constrained.ts --model FOLDER --data FOLDER --python PYTHON [--users 100] [--beams 20] [--rounds 2]
//     [--base float32,int8,int8-fast] [--batch 8] [--peer-dtypes fp32] [--peer-batches 4,8] [--threads N] [--cache FOLDER]
//
// --data is what `fellrec data import` wrote. PYTHON has torch 2.14.1 and transformers 5.23.0, and gguf if the model is a
// .gguf file.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { loadTokenizer, openCheckpoint, tokenTree } from '../packages/models/src/index.ts';
import { answerTokens, calibrationSequences, promptTokens } from '../packages/recsys/src/bigrec/text.ts';
import { readDataset, subset, testSamples, videoGames } from '../packages/recsys/src/index.ts';
import { prepare } from './base.ts';
import { contest, list, type Measured, machine, ours, peer, peerWeights, rounded, total } from './contest.ts';
import type { GenerationTask } from './generation.ts';

/** What both sides read. */
export interface ConstrainedTask extends GenerationTask {
  /** The catalogue's titles, each with the end token. */
  readonly sequences: readonly (readonly number[])[];
  /** Of each prompt, the sequences that are left out. */
  readonly histories: readonly (readonly number[])[];
}
/** What both sides print; `seconds` are those of the batches, without loading and one more to warm up. */
export interface ConstrainedMeasured extends Measured {
  /** Of each prompt, the titles found, best first. */
  readonly lists: readonly (readonly (readonly number[])[])[];
}

const { values: o } = parseArgs({
  options: {
    model: { type: 'string' },
    data: { type: 'string' },
    python: { type: 'string', default: 'python3' },
    users: { type: 'string', default: '100' },
    beams: { type: 'string', default: '20' },
    rounds: { type: 'string', default: '2' },
    base: { type: 'string', default: 'float32,int8,int8-fast' },
    batch: { type: 'string', default: '8' },
    'peer-dtypes': { type: 'string', default: 'fp32' },
    'peer-batches': { type: 'string', default: '4,8' },
    threads: { type: 'string', default: String(machine.cores) },
    cache: { type: 'string', default: '.cache/fellrec' },
  },
});
if (!o.model || !o.data)
  throw new Error('bench: name a model folder with --model and a data folder with --data');
const seed = 1;

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
const sequences = catalogue.items.map(({ title }) => answerTokens(title, text));
const maxNewTokens = tokenTree(sequences).depth;
const asked = subset(users.flatMap(testSamples), Number(o.users), seed, 'test')
  .map(({ history, seen }) => ({ prompt: promptTokens(history, maxNewTokens, text).value, seen }))
  .sort((a, b) => a.prompt.length - b.prompt.length);
const prompts = asked.map(({ prompt }) => prompt);
const task: ConstrainedTask = {
  prompts,
  beams: Number(o.beams),
  maxNewTokens,
  eosIds,
  calibration: calibrationSequences(text),
  sequences,
  histories: asked.map(({ seen }) => seen),
};

const folder = mkdtempSync(join(tmpdir(), 'constrained-'));
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
      peer(`${dtype}, batch ${size}`, python, 'peer_constrained.py', {
        ...{ task: file, weights: weights.get(dtype)!, batch: size, threads },
      }),
    ),
  );
  const found = contest<ConstrainedMeasured>(
    [
      ...bases.map((base) =>
        ours(base, 'constrained-ours.ts', { task: file, model, cache, threads, base, batch }),
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
    ...(exact && {
      [`same list as ${exact}`]: rounded(sameLists(name, exact), 4),
      sharedTitles: rounded(sharedTitles(name, exact), 4),
    }),
  });
  const result = {
    machine: { ...machine, threads: Number(threads) },
    constrained: {
      users: prompts.length,
      meanTokens: rounded(total(prompts.map(({ length }) => length)) / prompts.length, 1),
      titles: sequences.length,
      meanTitleTokens: rounded(total(sequences.map(({ length }) => length)) / sequences.length, 1),
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

  /** The share of prompts for which two contestants found the same titles in the same order. */
  function sameLists(a: string, b: string): number {
    const other = found.get(b)!.lists;
    return (
      found.get(a)!.lists.filter((titles, i) => `${titles.map(String)}` === `${other[i]!.map(String)}`)
        .length / other.length
    );
  }

  /** The share of the second's titles that the first found for the same prompt. */
  function sharedTitles(a: string, b: string): number {
    const other = found.get(b)!.lists;
    const shared = found.get(a)!.lists.map((titles, i) => {
      const has = new Set(titles.map(String));
      return other[i]!.filter((ids) => has.has(String(ids))).length;
    });
    return total(shared) / total(other.map(({ length }) => length));
  }
} finally {
  rmSync(folder, { recursive: true });
}
