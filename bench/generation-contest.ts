// What bench/generation.ts and bench/constrained.ts have in common: the text of prompts, and our side and transformers' on
// the same prompts, alternating.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { loadTokenizer, openCheckpoint } from '../packages/models/src/index.ts';
import { calibrationSequences } from '../packages/recsys/src/bigrec/text.ts';
import { readDataset, videoGames } from '../packages/recsys/src/index.ts';
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
  /** Beams run along these: a catalogue's titles, each with the end token; and of each prompt those that are left out. */
  readonly along?: {
    readonly sequences: readonly (readonly number[])[];
    readonly histories: readonly (readonly number[])[];
  };
}

/** What both sides print; `seconds` are those of the batches, without loading and one more to warm up. */
export interface GenerationMeasured extends Measured {
  /** Of each prompt, the tokens of what was found up to the end token, best first. */
  readonly lists: readonly (readonly (readonly number[])[])[];
}

const string = { type: 'string' } as const;
export const generationFlags = {
  model: string,
  data: string,
  python: { ...string, default: 'python3' },
  rounds: { ...string, default: '2' },
  base: { ...string, default: 'float32,int8,int8-fast' },
  threads: { ...string, default: String(machine.cores) },
  cache: { ...string, default: '.cache/fellrec' },
};

interface Flags {
  readonly model: string;
  readonly python: string;
  readonly rounds: string;
  readonly base: string;
  readonly batch: string;
  readonly 'peer-dtypes': string;
  readonly 'peer-batches': string;
  readonly threads: string;
  readonly cache: string;
}

/** A data folder's users and catalogue, and how a model reads them. @throws without a model or data */
export async function openPrompts(model: string | undefined, data: string | undefined, cacheDir: string) {
  if (!model || !data)
    throw new Error('bench: name a model folder with --model and a data folder with --data');
  const { catalogue, users } = await readDataset(data);
  const checkpoint = await openCheckpoint(model, { cacheDir });
  const tokenizer = await loadTokenizer(checkpoint.directory);
  const { eosIds } = checkpoint.config;
  const text = { catalogue, tokenizer, domain: videoGames, maxTokens: 512, eosIds };
  return { model, users, text, calibration: calibrationSequences(text) };
}

/** Prints how fast each side is; `alike` says how much of what the float32 peer found another side has too. */
export async function generationContest(
  o: Flags,
  task: GenerationTask,
  {
    name,
    peerScript,
    facts,
    alike,
  }: {
    readonly name: string;
    readonly peerScript: string;
    /** Of the task, beside what all have. */
    readonly facts: Readonly<Record<string, number>>;
    readonly alike: (
      found: GenerationMeasured,
      exact: GenerationMeasured,
      exactName: string,
    ) => Readonly<Record<string, number>>;
  },
): Promise<void> {
  const { model, cache, threads, batch, python } = o;
  const { prompts, beams, maxNewTokens, calibration } = task;
  const folder = mkdtempSync(join(tmpdir(), `${name}-`));
  try {
    const file = join(folder, 'task.json');
    writeFileSync(file, JSON.stringify(task));
    const bases = list(o.base);
    await prepare(bases, { model, cache, threads, calibration });
    const dtypes = list(o['peer-dtypes']);
    const weights = peerWeights(python, model, dtypes, folder);
    const peers = dtypes.flatMap((dtype) =>
      list(o['peer-batches']).map((size) =>
        peer(`${dtype}, batch ${size}`, python, peerScript, {
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
    const speed = (of: string) => prompts.length / total(found.get(of)!.seconds);
    const fastest = peers.map((one) => one.name).toSorted((a, b) => speed(b) - speed(a))[0];
    const exact = peers.find((one) => one.name.startsWith('fp32'))?.name;
    const row = (of: string) => ({
      usersPerSecond: rounded(speed(of), 3),
      peakRssMiB: Math.round(found.get(of)!.peakRssMiB),
      ...(exact && alike(found.get(of)!, found.get(exact)!, exact)),
    });
    const result = {
      machine: { ...machine, threads: Number(threads) },
      [name]: {
        users: prompts.length,
        meanTokens: rounded(total(prompts.map(({ length }) => length)) / prompts.length, 1),
        ...facts,
        beams,
        maxNewTokens,
        batch: Number(batch),
      },
      fellrec: Object.fromEntries(bases.map((base) => [base, row(base)])),
      transformers: Object.fromEntries(peers.map((one) => [one.name, row(one.name)])),
      ...(fastest && {
        ratios: bases.map((base) => ({
          base,
          [`speed over ${fastest}, the fastest`]: rounded(speed(base) / speed(fastest)),
          [`memory over ${fastest}`]: rounded(found.get(base)!.peakRssMiB / found.get(fastest)!.peakRssMiB),
        })),
      }),
    };
    process.stdout.write(`${JSON.stringify(result, undefined, 2)}\n`);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** The share of prompts for which two sides found the same, of each its first `count`. */
export function sameShare(
  found: GenerationMeasured,
  other: GenerationMeasured,
  count = Number.POSITIVE_INFINITY,
): number {
  const told = ({ lists }: GenerationMeasured) => lists.map((one) => JSON.stringify(one.slice(0, count)));
  const theirs = told(other);
  return rounded(told(found).filter((one, i) => one === theirs[i]).length / theirs.length, 4);
}
