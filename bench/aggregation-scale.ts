// One round's aggregation of many clients from disk: similarity of the updates, heating and mixing of adapters of
// SmolLM2-135M's size (LoRA of rank 8 on q_proj and v_proj of 30 layers: 120 tensors, 460,800 values a client). Two
// matrices of that size lie in the folder meanwhile (3.7 GB for a thousand clients). Exits with 1 if a sample of the
// result is further than 1e-5 from the plain formula.
//
//   node bench/aggregation-scale.ts [--clients 1000] [--threads 2] [--folder FOLDER]
import { cpus, tmpdir } from 'node:os';
import { parseArgs } from 'node:util';
import { fellrec, type Products } from '../packages/federation/src/index.ts';
import { onDisk } from '../packages/federation/src/parameters/disk.ts';
import { cosines } from '../packages/federation/src/similarity.ts';
import { float32, input, matmul, nodeRuntime, rowProducts } from '../packages/graph/src/index.ts';

const { values: given } = parseArgs({
  options: {
    clients: { type: 'string', default: '1000' },
    threads: { type: 'string', default: '2' },
    folder: { type: 'string', default: tmpdir() },
  },
});
const clients = Number(given.clients);
const threads = Number(given.threads);
const tolerance = 1e-5;
const mebi = 2 ** 20;
const rssMiB = () => process.memoryUsage.rss() / mebi;
const clock = () => performance.now() / 1000;

const dims = Array.from({ length: 30 }, () => [
  [8, 576],
  [576, 8],
  [8, 576],
  [192, 8],
]).flat();
const lengths = dims.map(([rows, columns]) => rows! * columns!);
const width = lengths.reduce((sum, length) => sum + length, 0);

/** Uniform in [-1, 1), from two numbers. */
function noise(seed: number, k: number): number {
  let x = Math.imul(seed + 1, 0x9e3779b1) ^ Math.imul(k + 1, 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 15), 0x2c1b3c6d);
  x = Math.imul(x ^ (x >>> 12), 0x297a2d39);
  return (x ^ (x >>> 15)) / 0x80000000;
}
function startRow(c: number): Float32Array {
  const row = new Float32Array(width);
  for (let k = 0; k < width; k++) row[k] = noise(c, k);
  return row;
}
/** Clients learn something of their own and something that every tenth learns too, so that cosines differ. */
function trainedRow(c: number): Float32Array {
  const row = startRow(c);
  const common = 0.01 * (1 + (c % 7));
  for (let k = 0; k < width; k++) row[k]! += 0.1 * noise(5000 + c, k) + common * noise(9000 + (c % 10), k);
  return row;
}
function adapter(row: Float32Array) {
  let from = 0;
  return new Map(
    lengths.map((length, i) => {
      from += length;
      return [`tensor-${i}`, float32(row.slice(from - length, from), dims[i]!)] as const;
    }),
  );
}

// What a round spends: waiting for blocks, computing with them, and writing what was mixed.
const seconds = { read: 0, gram: 0, weights: 0, mix: 0, write: 0, total: 0 };
type Phase = keyof typeof seconds;
async function* timed<T>(items: AsyncIterable<T>, inside: Phase, outside: Phase): AsyncGenerator<T> {
  let last = clock();
  const charge = (phase: Phase) => {
    const now = clock();
    seconds[phase] += now - last;
    last = now;
  };
  for await (const item of items) {
    charge(inside);
    yield item;
    charge(outside);
  }
  charge(inside);
}
const runtime = nodeRuntime({ threads });
const engine = rowProducts(runtime);
const products: Products = {
  gram: (blocks) => engine.gram(timed(blocks, 'read', 'gram')),
  // Between blocks in and sums out lies the product, between sums out and the next blocks in the writing.
  async *mix(matrix, blocks) {
    const before = { ...seconds };
    const started = clock();
    yield* timed(engine.mix(matrix, timed(blocks, 'read', 'mix')), 'mix', 'write');
    const [read, write] = [seconds.read - before.read, seconds.write - before.write];
    seconds.mix = clock() - started - read - write;
  },
};

const bare = await bareProduct();
const like = adapter(startRow(0));
const writingStarted = clock();
const parameters = await onDisk(given.folder, {
  like,
  starts: Array.from({ length: clients }, (_, c) => async () => adapter(startRow(c))),
  products,
});
const sampledColumns = Array.from({ length: 97 }, (_, i) => Math.floor((i * (width - 1)) / 96));
const sample: number[][] = [];
for (let c = 0; c < clients; c++) {
  const row = trainedRow(c);
  sample.push(sampledColumns.map((k) => row[k]!));
  await parameters.keep(c, adapter(row));
}
const writing = clock() - writingStarted;

const baselineMiB = rssMiB();
const processorBefore = process.cpuUsage();
const started = clock();
const everyone = Array.from({ length: clients }, (_, c) => c);
const similar = cosines([{ holders: everyone, gram: await parameters.gram('update') }], clients);
const weighing = clock();
const strategy = fellrec({
  similarityOn: 'update',
  heating: { alpha: 0.7, beta: 5, temperature: 1, exponent: 't/beta' },
});
const reports = Array.from({ length: clients }, (_, c) => ({
  client: `${c}`,
  loss: 1 + (c % 9) / 10,
  samples: 100,
}));
const { matrix } = strategy.mix(reports, { round: 1, cosines: similar });
seconds.weights = clock() - weighing;
await parameters.mix(matrix);
seconds.total = clock() - started;
const processor = process.cpuUsage(processorBefore);
const peakMiB = process.resourceUsage().maxRSS / 1024;

const errors = { cosines: 0, mixed: 0 };
const some = [...new Set(Array.from({ length: 12 }, (_, i) => Math.floor((i * (clients - 1)) / 11)))];
const updates = some.map((c) => {
  const start = startRow(c);
  return Float64Array.from(trainedRow(c), (x, k) => x - start[k]!);
});
const dot = (a: Float64Array, b: Float64Array) => a.reduce((sum, x, k) => sum + x * b[k]!, 0);
for (const [i, a] of updates.entries())
  for (const [j, b] of updates.entries()) {
    const expected = dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
    errors.cosines = Math.max(errors.cosines, Math.abs(expected - similar[some[i]!]![some[j]!]!));
  }
for (const [c, read] of parameters.starts().entries()) {
  const row = new Float32Array(width);
  let from = 0;
  for (const { data } of (await read()).values()) {
    row.set(data, from);
    from += data.length;
  }
  for (const [s, k] of sampledColumns.entries()) {
    const expected = matrix[c]!.reduce((sum, weight, j) => sum + weight * sample[j]![s]!, 0);
    errors.mixed = Math.max(errors.mixed, Math.abs(expected - row[k]!));
  }
}
await parameters.close();
await engine.dispose();

/** GFLOP/s of the engine's matrix product alone, of the mixing's shape. */
async function bareProduct(): Promise<number> {
  const program = await runtime.compile({
    y: matmul(input('a', 'float32', [clients, clients]), input('b', 'float32', [clients, 4096])),
  });
  const feeds = {
    a: float32(new Float32Array(clients * clients).fill(0.5), [clients, clients]),
    b: float32(new Float32Array(clients * 4096).fill(0.5), [clients, 4096]),
  };
  let best = Number.POSITIVE_INFINITY;
  for (let i = 0; i < 8; i++) {
    const from = clock();
    await program.run(feeds);
    best = Math.min(best, clock() - from);
  }
  await program.dispose();
  return (2 * clients * clients * 4096) / best / 1e9;
}

const blockMiB = (4 * clients * 4096) / mebi;
const figures = {
  what: "FELLRec aggregation from disk on the engine's matrix product",
  shape: { clients, tensors: lengths.length, valuesPerClient: width },
  seconds,
  processorSeconds: { user: processor.user / 1e6, system: processor.system / 1e6 },
  secondsToWriteTheInputs: writing,
  memoryMiB: {
    peak: peakMiB,
    baseline: baselineMiB,
    block: blockMiB,
    above: peakMiB - baselineMiB - blockMiB,
  },
  matrixProduct: {
    bareGflops: bare,
    mixGflops: (2 * clients * clients * width) / seconds.mix / 1e9,
    // Both products computed whole at the bare rate.
    secondsAtBareRate: (4 * clients * clients * width) / bare / 1e9,
  },
  errors,
  tolerance,
  machine: { cpu: cpus()[0]?.model, cores: cpus().length, threads, node: process.version },
};
process.stdout.write(`${JSON.stringify(figures, undefined, 2)}\n`);
if (!(errors.cosines <= tolerance && errors.mixed <= tolerance)) {
  process.stderr.write(`bench: the result is further than ${tolerance} from the plain formula\n`);
  process.exitCode = 1;
}
