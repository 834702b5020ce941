// Our side of bench/generation.ts.
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { nodeRuntime } from '../packages/graph/src/index.ts';
import { languageModel, openCheckpoint } from '../packages/models/src/index.ts';
import type { GenerationMeasured, GenerationTask } from './generation.ts';

const string = { type: 'string' } as const;
const { values } = parseArgs({
  options: { task: string, model: string, cache: string, threads: string, base: string, batch: string },
});
const o = values as Required<typeof values>;
if (o.base !== 'float32') throw new Error(`bench: --base ${o.base} is unknown; there is float32`);
const { prompts, ...options }: GenerationTask = JSON.parse(readFileSync(o.task, 'utf8'));
const size = Number(o.batch);
const model = languageModel(
  await openCheckpoint(o.model, { cacheDir: o.cache }),
  nodeRuntime({ threads: Number(o.threads) }),
);

// The longest batch compiles and shows the most memory that one takes.
await model.generate(prompts.slice(-size), options);

const best: (readonly number[])[] = [];
const seconds: number[] = [];
for (let at = 0; at < prompts.length; at += size) {
  const started = performance.now();
  const found = await model.generate(prompts.slice(at, at + size), options);
  seconds.push((performance.now() - started) / 1000);
  best.push(...found.map(([first]) => first!.ids));
}
const measured: GenerationMeasured = { seconds, peakRssMiB: process.resourceUsage().maxRSS / 1024, best };
process.stdout.write(`${JSON.stringify(measured)}\n`);
await model.release();
