import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { constant, float32, input, matmul, nodeRuntime, type Runtime } from '@fellrec/graph';
import {
  type Adapter,
  type Base,
  bases,
  ignoredLabel,
  initialAdapter,
  type LanguageModel,
  type LlamaConfig,
  languageModel,
  openCheckpoint,
  quantizeBase,
  type Sequence,
  type TokenCounts,
} from '@fellrec/models';
import { ConfigError } from '../config.ts';
import { print } from '../output.ts';
import { table } from '../table.ts';

interface Options {
  readonly model: string;
  readonly cache: string;
  readonly base: string;
  readonly batch: number;
  readonly microBatch: number;
  readonly length: number;
  readonly labels: number;
  readonly rank: number;
  readonly steps: number;
  readonly threads?: number;
  readonly json?: boolean;
}

/** Tokens per second of forward and backward passes on arbitrary tokens, and peak memory. */
export async function runStep(o: Options): Promise<void> {
  const runtime = nodeRuntime(o.threads ? { threads: o.threads } : {});
  const { model, config, seconds, tokens } = await timedSteps(o, runtime);
  await model.release();
  const peakRssMiB = Math.round(process.resourceUsage().maxRSS / 1024);
  const sorted = seconds.toSorted((a, b) => a - b);
  const speed = (time: number) => rounded((o.batch * o.length) / time);
  const gigaflops = stepGigaflops(config, o) / sorted[0]!;
  const bare = await bareGigaflops(config, o, runtime);
  const result = {
    model: o.model,
    base: o.base,
    batch: o.batch,
    microBatch: o.microBatch,
    length: o.length,
    labels: o.labels,
    fill: 1 - tokens.padding / tokens.computed,
    tokensPerSecond: { best: speed(sorted[0]!), median: speed(sorted[Math.floor(sorted.length / 2)]!) },
    secondsPerStep: seconds.map((s) => Math.round(1000 * s) / 1000),
    gigaflopsPerSecond: {
      step: rounded(gigaflops),
      bareFloat32Product: rounded(bare),
      share: Math.round((100 * gigaflops) / bare) / 100,
    },
    peakRssMiB,
  };
  process.stdout.write(`${JSON.stringify(result)}\n`);
}

/** The operators that a step spends its time in, from ONNX Runtime's own profile. */
export async function runProfile(o: Options): Promise<void> {
  const profileFolder = await mkdtemp(join(tmpdir(), 'fellrec-profile-'));
  try {
    const runtime = nodeRuntime({ profileFolder, ...(o.threads && { threads: o.threads }) });
    const { model } = await timedSteps(o, runtime);
    await model.release();
    const operators = await operatorTimes(profileFolder, o.steps + 1);
    const total = operators.reduce((sum, { milliseconds }) => sum + milliseconds, 0);
    const rows = operators
      .slice(0, 20)
      .map(({ operator, milliseconds, calls }) => [
        operator,
        milliseconds.toFixed(1),
        `${((100 * milliseconds) / total).toFixed(1)} %`,
        String(calls),
      ]);
    rows.push(['all', total.toFixed(1), '', '']);
    print(operators, table(['operator', 'ms a step', 'share', 'calls'], rows), { json: o.json ?? false });
  } finally {
    await rm(profileFolder, { recursive: true });
  }
}

/** Steps on arbitrary tokens; the first, which compiles, is not timed. */
async function timedSteps(
  o: Options,
  runtime: Runtime,
): Promise<{ model: LanguageModel; config: LlamaConfig; seconds: number[]; tokens: TokenCounts }> {
  const base = o.base as Base;
  if (!bases.includes(base)) throw new ConfigError(`bench: no base "${base}"; bases: ${bases.join(', ')}`);
  if (o.labels >= o.length)
    throw new ConfigError(`bench: ${o.labels} labels need sequences longer than ${o.length} tokens`);
  const checkpoint = await openCheckpoint(o.model, { cacheDir: o.cache });
  const { config } = checkpoint;
  const sequence = (b: number): Sequence => {
    const ids = Array.from({ length: o.length }, (_, t) => (b * 7919 + t * 104729) % config.vocabularySize);
    return { ids, labels: ids.map((id, t) => (t < o.length - o.labels ? ignoredLabel : id)) };
  };
  const calibration = Array.from({ length: 8 }, (_, i) => sequence(1000 + i).ids);
  const quantized =
    base === 'float32'
      ? undefined
      : await quantizeBase(checkpoint, { base, calibration, runtime: nodeRuntime(), cacheDir: o.cache });
  const model = languageModel(checkpoint, runtime, quantized);
  const lora = { rank: o.rank, alpha: 2 * o.rank, dropout: 0, targetModules: ['q_proj', 'v_proj'] as const };
  const adapter: Adapter = { config: lora, tensors: initialAdapter(config, lora, 1) };
  const batch = Array.from({ length: o.batch }, (_, b) => sequence(b));
  const seconds: number[] = [];
  let tokens: TokenCounts = { real: 0, computed: 0, padding: 0 };
  for (let step = 0; step <= o.steps; step++) {
    const started = performance.now();
    ({ tokens } = await model.gradients(batch, adapter, { microBatch: o.microBatch }));
    if (step > 0) seconds.push((performance.now() - started) / 1000);
  }
  return { model, config, seconds, tokens };
}

/**
 * Floating-point operations of a step's matrix products, in 10^9: two an element of a product, forward and for the
 * gradient of what comes in. Frozen matrices have no gradient; layer 0 passes none on to the embedding; the last layer's
 * output and feed-forward part, and the head, see only tokens that predict a label. The adapter's are left out.
 */
function stepGigaflops(c: LlamaConfig, o: Options): number {
  const tokens = o.batch * o.length;
  const labels = o.batch * o.labels;
  const [d, q, kv] = [c.hiddenSize, c.headCount * c.headDim, c.keyValueHeadCount * c.headDim];
  const inputs = d * (q + 2 * kv);
  const rest = q * d + 3 * d * c.intermediateSize;
  const linear =
    tokens * inputs * (2 * c.layerCount - 1) +
    (tokens * (c.layerCount - 1) + labels) * rest * 2 +
    labels * c.vocabularySize * d * 2;
  // Scores and reading forward; four products back.
  const attention = 6 * o.batch * c.headCount * o.length ** 2 * c.headDim * c.layerCount;
  return (2 * (linear + attention)) / 1e9;
}

/** The rate of the product alone that a step has most of: tokens x d by d x feed-forward, in 10^9 operations a second. */
async function bareGigaflops(c: LlamaConfig, o: Options, runtime: Runtime): Promise<number> {
  const [n, k, m] = [o.microBatch * o.length, c.hiddenSize, c.intermediateSize];
  const filled = (rows: number, columns: number) =>
    float32(
      Float32Array.from({ length: rows * columns }, (_, i) => (i % 13) - 6),
      [rows, columns],
    );
  const product = matmul(input('a', 'float32', [n, k]), constant(filled(k, m)));
  const program = await runtime.compile({ product });
  const feeds = { a: filled(n, k) };
  let best = Number.POSITIVE_INFINITY;
  for (let i = 0; i < 50; i++) {
    const started = performance.now();
    await program.run(feeds);
    best = Math.min(best, performance.now() - started);
  }
  await program.dispose();
  return (2 * n * k * m) / best / 1e6;
}

interface OperatorTime {
  readonly operator: string;
  /** A step; the median of a node's runs, so that the first and disturbed ones do not count. */
  readonly milliseconds: number;
  readonly calls: number;
}

async function operatorTimes(folder: string, steps: number): Promise<OperatorTime[]> {
  const nodes = new Map<string, { operator: string; microseconds: number[] }>();
  for (const file of await readdir(folder)) {
    const events = JSON.parse(await readFile(join(folder, file), 'utf8')) as {
      name: string;
      dur: number;
      args?: { op_name?: string };
    }[];
    for (const { name, dur, args } of events) {
      if (!args?.op_name || !name.endsWith('_kernel_time')) continue;
      const key = `${file} ${name}`;
      const node = nodes.get(key) ?? { operator: args.op_name, microseconds: [] };
      node.microseconds.push(dur);
      nodes.set(key, node);
    }
  }
  const byOperator = new Map<string, { milliseconds: number; calls: number }>();
  for (const { operator, microseconds } of nodes.values()) {
    const sorted = microseconds.toSorted((a, b) => a - b);
    const calls = sorted.length / steps;
    const sum = byOperator.get(operator) ?? { milliseconds: 0, calls: 0 };
    sum.milliseconds += (sorted[sorted.length >> 1]! * calls) / 1000;
    sum.calls += calls;
    byOperator.set(operator, sum);
  }
  return [...byOperator]
    .map(([operator, { milliseconds, calls }]) => ({ operator, milliseconds, calls: Math.round(calls) }))
    .sort((a, b) => b.milliseconds - a.milliseconds);
}

function rounded(x: number): number {
  return Math.round(10 * x) / 10;
}
