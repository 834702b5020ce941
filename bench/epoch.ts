// One local epoch of BIGRec on real prompts against transformers + peft, alternating: both train the same adapter on the
// same batches, so their losses agree where their arithmetic does.
//
//   node bench/epoch.ts --model FOLDER --data FOLDER --python PYTHON [--samples 256] [--rounds 2]
//     [--base float32,int8,int8-fast] [--micro-batch 2] [--peer-dtypes fp32,bf16-autocast,bf16] [--threads N] [--cache FOLDER]
//
// --data is what `fellrec data import` wrote. PYTHON has torch 2.13.0, transformers 5.23.0 and peft 0.21.2; gguf and
// accelerate if the model is a .gguf file.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { random } from '../packages/graph/src/index.ts';
import {
  ignoredLabel,
  initialAdapter,
  loadTokenizer,
  openCheckpoint,
  type Sequence,
  writeAdapter,
} from '../packages/models/src/index.ts';
import { calibrationSequences, trainingSequence } from '../packages/recsys/src/bigrec/text.ts';
import { readDataset, subset, trainingSamples, videoGames } from '../packages/recsys/src/index.ts';
import { prepare } from './base.ts';
import { contest, list, type Measured, machine, ours, peer, peerWeights, rounded, total } from './contest.ts';

/** What both sides read: the optimizer's batches, in their order. */
export interface EpochTask {
  readonly batches: readonly (readonly Sequence[])[];
  /** For quantised bases. */
  readonly calibration: readonly (readonly number[])[];
  readonly learningRate: number;
  readonly clipNorm: number;
}
/** What both sides print; `seconds` are those of the epoch's batches, without loading and one more to warm up. */
export interface EpochMeasured extends Measured {
  /** Mean over the epoch's batches. */
  readonly loss: number;
  /** How much of what was computed was no padding; ours only. */
  readonly fill?: number;
}

const { values: o } = parseArgs({
  options: {
    model: { type: 'string' },
    data: { type: 'string' },
    python: { type: 'string', default: 'python3' },
    samples: { type: 'string', default: '256' },
    rounds: { type: 'string', default: '2' },
    base: { type: 'string', default: 'float32,int8,int8-fast' },
    'micro-batch': { type: 'string', default: '2' },
    'peer-dtypes': { type: 'string', default: 'fp32,bf16-autocast,bf16' },
    threads: { type: 'string', default: String(machine.cores) },
    cache: { type: 'string', default: '.cache/fellrec' },
  },
});
if (!o.model || !o.data)
  throw new Error('bench: name a model folder with --model and a data folder with --data');
const seed = 1;
const batchSize = 8;
const lora = { rank: 8, alpha: 16, dropout: 0, targetModules: ['q_proj', 'v_proj'] as const };

const { catalogue, users } = await readDataset(o.data);
const checkpoint = await openCheckpoint(o.model, { cacheDir: o.cache });
const text = {
  catalogue,
  tokenizer: await loadTokenizer(checkpoint.directory),
  domain: videoGames,
  maxTokens: 512,
  eosIds: checkpoint.config.eosIds,
};
const sequences = subset(
  users.flatMap((user) => trainingSamples(user)),
  Number(o.samples),
  seed,
  'train',
).map((sample) => trainingSequence(sample, 'answer', text).value);
const task: EpochTask = {
  batches: batches(sequences),
  calibration: calibrationSequences(text),
  learningRate: 1e-4,
  clipNorm: 1,
};
const tokens = total(sequences.map(({ ids }) => ids.length));

const folder = mkdtempSync(join(tmpdir(), 'epoch-'));
try {
  const files = { task: join(folder, 'task.json'), adapter: join(folder, 'adapter') };
  writeFileSync(files.task, JSON.stringify(task));
  await writeAdapter(
    files.adapter,
    { config: lora, tensors: initialAdapter(checkpoint.config, lora, seed) },
    o.model,
  );
  const bases = list(o.base);
  const { calibration } = task;
  await prepare(bases, { model: o.model, cache: o.cache, threads: o.threads, calibration });
  const dtypes = list(o['peer-dtypes']);
  const weights = peerWeights(o.python, o.model, dtypes, folder);
  const { model, cache, threads } = o;
  const microBatch = o['micro-batch'];
  const found = contest<EpochMeasured>(
    [
      ...bases.map((base) =>
        ours(base, 'epoch-ours.ts', { ...files, model, cache, threads, base, 'micro-batch': microBatch }),
      ),
      ...dtypes.map((dtype) =>
        peer(dtype, o.python, 'peer_epoch.py', { ...files, weights: weights.get(dtype)!, dtype, threads }),
      ),
    ],
    Number(o.rounds),
  );
  const speed = (name: string) => tokens / total(found.get(name)!.seconds);
  const fastest = dtypes.toSorted((a, b) => speed(b) - speed(a))[0];
  const ratios = bases.map((base) => {
    // Float32 weights against float32 weights, smaller ones against the smallest that PyTorch trains with.
    const alike = base === 'float32' ? 'fp32' : 'bf16';
    return {
      base,
      ...(fastest && { [`speed over ${fastest}, the fastest`]: rounded(speed(base) / speed(fastest)) }),
      ...(found.has('fp32') && { 'speed over fp32': rounded(speed(base) / speed('fp32')) }),
      ...(found.has(alike) && {
        [`memory over ${alike}`]: rounded(found.get(base)!.peakRssMiB / found.get(alike)!.peakRssMiB),
      }),
    };
  });
  const result = {
    machine: { ...machine, threads: Number(threads) },
    epoch: {
      samples: sequences.length,
      tokens,
      meanTokens: rounded(tokens / sequences.length, 1),
      labels: total(sequences.map(({ labels }) => labels.filter((id) => id !== ignoredLabel).length)),
      batch: batchSize,
      microBatch: Number(microBatch),
    },
    fellrec: Object.fromEntries(bases.map((base) => [base, row(base)])),
    peft: Object.fromEntries(dtypes.map((dtype) => [dtype, row(dtype)])),
    ratios,
  };
  process.stdout.write(`${JSON.stringify(result, undefined, 2)}\n`);

  function row(name: string) {
    const { seconds, peakRssMiB, loss, fill } = found.get(name)!;
    return {
      tokensPerSecond: rounded(speed(name), 1),
      samplesPerSecond: rounded(sequences.length / total(seconds)),
      peakRssMiB: Math.round(peakRssMiB),
      loss: rounded(loss, 5),
      ...(fill !== undefined && { fill: rounded(fill, 3) }),
    };
  }
} finally {
  rmSync(folder, { recursive: true });
}

/** Like lengths together, so that padding is rare, and the batches in random order. */
function batches(unsorted: readonly Sequence[]): Sequence[][] {
  const sorted = unsorted.toSorted((a, b) => a.ids.length - b.ids.length);
  const cut = Array.from({ length: Math.ceil(sorted.length / batchSize) }, (_, i) =>
    sorted.slice(i * batchSize, (i + 1) * batchSize),
  );
  return random(seed, 'batches').shuffle(cut);
}
