// Our side of bench/recformer.ts: training steps of all tensors or of an adapter, timed.
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { adamW, nodeRuntime } from '../packages/graph/src/index.ts';
import {
  adaptedEncoderProjections,
  encoderModel,
  freshAdapter,
  openRecformer,
  readParameters,
  readSafetensors,
} from '../packages/models/src/index.ts';
import type { RecformerMeasured, RecformerTask } from './recformer.ts';

const string = { type: 'string' } as const;
const { values } = parseArgs({
  options: {
    model: string,
    task: string,
    items: string,
    steps: string,
    threads: string,
    cache: string,
    train: string,
    'micro-batch': string,
  },
});
const o = values as Required<typeof values>;
const { batch, temperature, learningRate, lora }: RecformerTask = JSON.parse(readFileSync(o.task, 'utf8'));
const items = (await readSafetensors(o.items)).get('items')!;
if (items.dtype !== 'float32') throw new Error(`bench: the items' vectors are ${items.dtype}, not float32`);
const checkpoint = await openRecformer(o.model, { cacheDir: o.cache });
const runtime = nodeRuntime({ threads: Number(o.threads) });
const model = encoderModel(checkpoint, runtime);
const options = { items, temperature, microBatch: Number(o['micro-batch']) };
const optimizer = adamW();

const adapter = o.train === 'lora' && { lora };
let tensors = adapter
  ? freshAdapter(adaptedEncoderProjections(checkpoint.config, lora), lora, 1)
  : await readParameters(checkpoint);
let state = optimizer.init(tensors);
tensors = state.parameters;
let loss = 0;
const seconds: number[] = [];
// The first step compiles.
for (let step = 0; step <= Number(o.steps); step++) {
  const started = performance.now();
  const found = await model.gradients(batch, { ...adapter, tensors }, options);
  ({ parameters: tensors, state } = optimizer.update(found.gradients, state, learningRate));
  loss = found.loss;
  if (step > 0) seconds.push((performance.now() - started) / 1000);
}
const measured: RecformerMeasured = { seconds, peakRssMiB: process.resourceUsage().maxRSS / 1024, loss };
process.stdout.write(`${JSON.stringify(measured)}\n`);
await model.release();
