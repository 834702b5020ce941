// RecFormer at its real size (148 million parameters) beside PyTorch: a full fine-tuning step against dense attention
// and against transformers' Longformer, alternating, from the same random weights on the same batch, so that the losses
// agree; and our LoRA step, which has no peer here.
//
//   node bench/recformer.ts --python PYTHON [--rounds 2] [--steps 2] [--micro-batch 4] [--threads N]
//   node bench/recformer.ts --attention [--rounds 5]           which form of our attention is faster, by length
//   node bench/recformer.ts --items MODEL --data FOLDER        seconds to encode all items' titles
//
// PYTHON has torch 2.13.0 and transformers 5.23.0. MODEL is a folder with a BERT-family encoder and its tokenizer,
// --data what `fellrec data import` wrote.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { type Float32Tensor, float32, nodeRuntime, random } from '../packages/graph/src/index.ts';
import {
  adaptedEncoderProjections,
  encoderModel,
  freshAdapter,
  type LabelledSequence,
  type LoraConfig,
  loadTokenizer,
  openRecformer,
  type RecformerConfig,
  sentenceVectors,
  unitRows,
  writeRandomRecformer,
  writeSafetensors,
} from '../packages/models/src/index.ts';
import { readDataset } from '../packages/recsys/src/index.ts';
import { contest, type Measured, machine, ours, peer, rounded } from './contest.ts';

/** What both sides read, beside the checkpoint and the items' vectors. */
export interface RecformerTask {
  readonly batch: readonly LabelledSequence[];
  readonly temperature: number;
  readonly learningRate: number;
  /** Of our LoRA step. */
  readonly lora: LoraConfig;
}
/** What both sides print; `seconds` are those of the steps, without loading and one more to warm up. */
export interface RecformerMeasured extends Measured {
  /** Of the last step. */
  readonly loss: number;
  /** Of the libraries; the peers' only. */
  readonly versions?: Readonly<Record<string, string>>;
}

const seed = 1;
const temperature = 0.05;
const lora: LoraConfig = {
  rank: 8,
  alpha: 16,
  dropout: 0,
  targetModules: ['query', 'value', 'query_global', 'value_global'],
};
const published: RecformerConfig = {
  vocabularySize: 50_265,
  hiddenSize: 768,
  intermediateSize: 3072,
  layerCount: 12,
  headCount: 12,
  headDim: 64,
  positionCount: 4098,
  tokenTypeCount: 4,
  itemPositionCount: 51,
  attentionWindows: Array.from({ length: 12 }, () => 64),
  normEpsilon: 1e-5,
  pooling: 'cls',
  startId: 0,
  padId: 1,
  limits: { maxAttributes: 3, maxAttributeLength: 32, maxItems: 50, maxTokens: 1024 },
};

const { values: o } = parseArgs({
  options: {
    python: { type: 'string', default: 'python3' },
    rounds: { type: 'string' },
    steps: { type: 'string', default: '2' },
    'micro-batch': { type: 'string', default: '4' },
    attention: { type: 'boolean', default: false },
    items: { type: 'string' },
    data: { type: 'string' },
    threads: { type: 'string', default: String(machine.cores) },
    cache: { type: 'string', default: '.cache/fellrec' },
  },
});
if ((o.items === undefined) !== (o.data === undefined))
  throw new Error('bench: --items names a model folder and wants a data folder with --data');
const folder = mkdtempSync(join(tmpdir(), 'recformer-'));
try {
  const found = o.items
    ? await encodedItems(o.items, o.data!)
    : o.attention
      ? await attentionByLength(Number(o.rounds ?? 5))
      : await besidePyTorch(Number(o.rounds ?? 2));
  const result = { machine: { ...machine, threads: Number(o.threads) }, ...found };
  process.stdout.write(`${JSON.stringify(result, undefined, 2)}\n`);
} finally {
  rmSync(folder, { recursive: true });
}

async function besidePyTorch(rounds: number) {
  const items = 16_857;
  const batch = sequences(8, 512, published, items);
  const model = join(folder, 'model');
  const files = { task: join(folder, 'task.json'), items: join(folder, 'items.safetensors') };
  const task: RecformerTask = { batch, temperature, learningRate: 5e-5, lora };
  writeFileSync(files.task, JSON.stringify(task));
  await writeSafetensors(files.items, new Map([['items', itemVectors(items, published)]]));
  await writeRandomRecformer(model, published, seed);

  const { python, steps, threads, cache } = o;
  const common = { model, ...files, steps, threads };
  const our = (train: string) =>
    ours(train, 'recformer-ours.ts', { ...common, cache, train, 'micro-batch': o['micro-batch'] });
  const peers = ['dense', 'longformer'];
  const found = contest<RecformerMeasured>(
    [
      our('all'),
      ...peers.map((name) => peer(name, python, 'peer_recformer.py', { ...common, form: name })),
      our('lora'),
    ],
    rounds,
  );
  const tokens = batch.reduce((n, { sequence }) => n + sequence.ids.length, 0);
  const speed = (name: string) => tokens / Math.min(...found.get(name)!.seconds);
  const memory = (name: string) => found.get(name)!.peakRssMiB;
  const row = (name: string) => ({
    tokensPerSecond: rounded(speed(name), 1),
    secondsPerStep: rounded(tokens / speed(name)),
    peakRssMiB: Math.round(memory(name)),
    lossAfterSteps: rounded(found.get(name)!.loss, 5),
  });
  const fastest = peers.toSorted((a, b) => speed(b) - speed(a))[0]!;
  return {
    versions: found.get(fastest)!.versions,
    step: { sequences: batch.length, tokens, items, microBatch: Number(o['micro-batch']) },
    fellrec: { all: row('all'), [`lora, rank ${lora.rank}`]: row('lora') },
    pytorch: Object.fromEntries(peers.map((name) => [name, row(name)])),
    ratios: {
      [`speed over ${fastest}, the faster`]: rounded(speed('all') / speed(fastest)),
      'memory over the smaller': rounded(memory('all') / Math.min(...peers.map(memory))),
    },
  };
}

/** Best seconds of both forms, alternating: LoRA gradients and vectors of 8 sequences by 2 layers of the real width. */
async function attentionByLength(rounds: number) {
  const config = { ...published, vocabularySize: 1000, layerCount: 2, attentionWindows: [64, 64] };
  await writeRandomRecformer(folder, config, seed);
  const checkpoint = await openRecformer(folder, { cacheDir: o.cache });
  const runtime = nodeRuntime({ threads: Number(o.threads) });
  const parameters = {
    lora,
    tensors: freshAdapter(adaptedEncoderProjections(config, lora), lora, seed),
  };
  const options = { items: itemVectors(100, config), temperature };
  const forms = ['dense', 'blocks'] as const;
  const models = forms.map((form) => encoderModel(checkpoint, runtime, { form }));
  const lengths = [];
  for (const length of [64, 96, 128, 192, 256, 384, 512]) {
    const batch = sequences(8, length, config, 100);
    const alone = batch.map(({ sequence }) => sequence);
    const gradients = await alternating(
      models.map((model) => () => model.gradients(batch, parameters, options)),
      rounds,
    );
    const encode = await alternating(
      models.map((model) => () => model.encode(alone)),
      rounds,
    );
    lengths.push({ length, gradients: compared(gradients), encode: compared(encode) });
  }
  for (const model of models) await model.release();
  return { attention: lengths };

  function compared([dense, blocks]: readonly number[]) {
    return {
      dense: rounded(dense!, 4),
      blocks: rounded(blocks!, 4),
      'dense / blocks': rounded(dense! / blocks!),
    };
  }
}

async function encodedItems(path: string, data: string) {
  const { catalogue } = await readDataset(data);
  const titles = catalogue.items.map(({ title }) => title);
  const checkpoint = await openRecformer(path, { cacheDir: o.cache });
  const tokenizer = await loadTokenizer(checkpoint.directory);
  const model = encoderModel(checkpoint, nodeRuntime({ threads: Number(o.threads) }));
  await sentenceVectors(titles.slice(0, 1), model, tokenizer); // compiles
  const started = performance.now();
  await sentenceVectors(titles, model, tokenizer);
  const seconds = (performance.now() - started) / 1000;
  await model.release();
  const peakRssMiB = Math.round(process.resourceUsage().maxRSS / 1024);
  return {
    items: titles.length,
    seconds: rounded(seconds, 1),
    titlesPerSecond: Math.round(titles.length / seconds),
    peakRssMiB,
  };
}

/** The fastest run of each, in seconds; all take turns after one that is not timed. */
async function alternating(runs: readonly (() => Promise<unknown>)[], rounds: number): Promise<number[]> {
  for (const run of runs) await run();
  const best = runs.map(() => Number.POSITIVE_INFINITY);
  for (let round = 0; round < rounds; round++)
    for (const [i, run] of runs.entries()) {
      const started = performance.now();
      await run();
      best[i] = Math.min(best[i]!, (performance.now() - started) / 1000);
    }
  return best;
}

/** Random tokens of as many items as fit, 12 tokens each, of one length. */
function sequences(
  count: number,
  length: number,
  { vocabularySize, itemPositionCount, startId }: RecformerConfig,
  items: number,
): LabelledSequence[] {
  const { integer } = random(seed, 'sequences', length);
  return Array.from({ length: count }, () => ({
    sequence: {
      ids: Array.from({ length }, (_, t) => (t === 0 ? startId : 4 + integer(vocabularySize - 5))),
      tokenTypes: Array.from({ length }, (_, t) => (t === 0 ? 0 : t % 4 === 1 ? 1 : 2)),
      itemPositions: Array.from({ length }, (_, t) => Math.min(Math.ceil(t / 12), itemPositionCount - 1)),
    },
    label: integer(items),
  }));
}

function itemVectors(count: number, { hiddenSize: d }: RecformerConfig): Float32Tensor {
  const { normal } = random(seed, 'items');
  return unitRows(float32(Float32Array.from({ length: count * d }, normal), [count, d]));
}
