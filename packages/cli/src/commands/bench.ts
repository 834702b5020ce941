import { nodeRuntime } from '@fellrec/graph';
import { ignoredLabel, initialAdapter, languageModel, openCheckpoint, type Sequence } from '@fellrec/models';

interface Options {
  readonly model: string;
  readonly cache: string;
  readonly batch: number;
  readonly microBatch: number;
  readonly length: number;
  readonly labels: number;
  readonly rank: number;
  readonly steps: number;
  readonly threads?: number;
}

/** Tokens per second of forward and backward passes on arbitrary tokens, and peak memory. */
export async function runStep(o: Options): Promise<void> {
  const checkpoint = await openCheckpoint(o.model, { cacheDir: o.cache });
  const { config } = checkpoint;
  const model = languageModel(checkpoint, nodeRuntime(o.threads ? { threads: o.threads } : {}));
  const lora = { rank: o.rank, alpha: 2 * o.rank, dropout: 0, targetModules: ['q_proj', 'v_proj'] as const };
  const adapter = { config: lora, tensors: initialAdapter(config, lora, 1) };
  const batch = Array.from({ length: o.batch }, (_, b): Sequence => {
    const ids = Array.from({ length: o.length }, (_, t) => (b * 7919 + t * 104729) % config.vocabularySize);
    return { ids, labels: ids.map((id, t) => (t < o.length - o.labels ? ignoredLabel : id)) };
  });
  const seconds: number[] = [];
  for (let step = 0; step <= o.steps; step++) {
    const started = performance.now();
    await model.gradients(batch, adapter, { microBatch: o.microBatch });
    // The first step compiles.
    if (step > 0) seconds.push((performance.now() - started) / 1000);
  }
  await model.release();
  const sorted = seconds.toSorted((a, b) => a - b);
  const speed = (time: number) => Math.round((10 * o.batch * o.length) / time) / 10;
  const result = {
    model: o.model,
    batch: o.batch,
    microBatch: o.microBatch,
    length: o.length,
    labels: o.labels,
    tokensPerSecond: { best: speed(sorted[0]!), median: speed(sorted[Math.floor(sorted.length / 2)]!) },
    secondsPerStep: seconds.map((s) => Math.round(1000 * s) / 1000),
    peakRssMiB: Math.round(process.resourceUsage().maxRSS / 1024),
  };
  process.stdout.write(`${JSON.stringify(result)}\n`);
}
