// Our side of bench/epoch.ts: the steps of BIGRec's training, timed.
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { adamW, linearSchedule } from '../packages/graph/src/index.ts';
import { readAdapter } from '../packages/models/src/index.ts';
import { openModel } from './base.ts';
import type { EpochMeasured, EpochTask } from './epoch.ts';

const string = { type: 'string' } as const;
const { values } = parseArgs({
  options: {
    task: string,
    adapter: string,
    model: string,
    cache: string,
    threads: string,
    base: string,
    'micro-batch': string,
  },
});
const o = values as Required<typeof values>;
const { batches, calibration, learningRate, clipNorm }: EpochTask = JSON.parse(readFileSync(o.task, 'utf8'));
const { config, tensors } = await readAdapter(o.adapter);
const model = await openModel({ ...o, calibration });
const options = { microBatch: Number(o['micro-batch']) };
const optimizer = adamW({ clipNorm });

// The longest batch compiles and shows the most memory that a step takes.
const longest = batches.toSorted((a, b) => b.at(-1)!.ids.length - a.at(-1)!.ids.length)[0]!;
await model.gradients(longest, { config, tensors }, options);

let parameters = tensors;
let state = optimizer.init(parameters);
let loss = 0;
const seconds: number[] = [];
const tokens = { computed: 0, padding: 0 };
for (const [step, batch] of batches.entries()) {
  const started = performance.now();
  const found = await model.gradients(batch, { config, tensors: parameters }, options);
  const rate = learningRate * linearSchedule(step, batches.length);
  ({ parameters, state } = optimizer.update(found.gradients, state, rate));
  loss += found.loss / batches.length;
  tokens.computed += found.tokens.computed;
  tokens.padding += found.tokens.padding;
  seconds.push((performance.now() - started) / 1000);
}
const measured: EpochMeasured = {
  seconds,
  peakRssMiB: process.resourceUsage().maxRSS / 1024,
  loss,
  fill: 1 - tokens.padding / tokens.computed,
};
process.stdout.write(`${JSON.stringify(measured)}\n`);
await model.release();
