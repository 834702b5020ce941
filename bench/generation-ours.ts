// Our side of bench/generation.ts.
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { openModel } from './base.ts';
import type { GenerationMeasured, GenerationTask } from './generation.ts';

const string = { type: 'string' } as const;
const { values } = parseArgs({
  options: { task: string, model: string, cache: string, threads: string, base: string, batch: string },
});
const o = values as Required<typeof values>;
const { prompts, calibration, ...task }: GenerationTask = JSON.parse(readFileSync(o.task, 'utf8'));
const options = { ...task, batch: Number(o.batch) };
const model = await openModel({ ...o, calibration });

// The longest batch compiles and shows the most memory that one takes.
await model.generate(prompts.slice(-options.batch), options);

const seconds: number[] = [];
let started = performance.now();
const onProgress = () => {
  const now = performance.now();
  seconds.push((now - started) / 1000);
  started = now;
};
const found = await model.generate(prompts, { ...options, onProgress });
const best = found.map(([first]) => first!.ids);
const measured: GenerationMeasured = { seconds, peakRssMiB: process.resourceUsage().maxRSS / 1024, best };
process.stdout.write(`${JSON.stringify(measured)}\n`);
await model.release();
