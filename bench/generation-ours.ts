// Our side of bench/generation.ts and bench/constrained.ts.
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { tokenTree } from '../packages/models/src/index.ts';
import { openModel } from './base.ts';
import type { GenerationMeasured, GenerationTask } from './generation-contest.ts';

const string = { type: 'string' } as const;
const { values } = parseArgs({
  options: { task: string, model: string, cache: string, threads: string, base: string, batch: string },
});
const o = values as Required<typeof values>;
const { prompts, calibration, along, ...task }: GenerationTask = JSON.parse(readFileSync(o.task, 'utf8'));
const tree = along && tokenTree(along.sequences);
const trees = tree && along.histories.map((history) => tree.without(history));
const options = { ...task, batch: Number(o.batch) };
const model = await openModel({ ...o, calibration });

// The longest batch compiles and shows the most memory that one takes.
await model.generate(prompts.slice(-options.batch), {
  ...options,
  ...(trees && { trees: trees.slice(-options.batch) }),
});

const seconds: number[] = [];
let started = performance.now();
const onProgress = () => {
  const now = performance.now();
  seconds.push((now - started) / 1000);
  started = now;
};
const found = await model.generate(prompts, { ...options, ...(trees && { trees }), onProgress });
const lists = found.map((hypotheses) => hypotheses.map(({ ids }) => ids));
const measured: GenerationMeasured = { seconds, peakRssMiB: process.resourceUsage().maxRSS / 1024, lists };
process.stdout.write(`${JSON.stringify(measured)}\n`);
await model.release();
