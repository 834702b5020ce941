// How long one round's aggregation takes: similarity of the updates, heating and mixing of five clients' adapters of
// LLaMA-7B's size (LoRA of rank 8 on q_proj and v_proj of 32 layers: 128 tensors, 4,194,304 values a client).
//
//   node bench/aggregation.ts [repetitions]
import { cpus } from 'node:os';
import { fellrec, plainProducts } from '../packages/federation/src/index.ts';
import { inMemory } from '../packages/federation/src/parameters/memory.ts';
import { cosines } from '../packages/federation/src/similarity.ts';

const repetitions = Number(process.argv[2] ?? 30);
const clients = 5;
const tensors = 128;
const elements = 32_768; // 8 x 4096

function adapter(seed: number): Map<string, { dtype: 'float32'; dims: number[]; data: Float32Array }> {
  let state = seed;
  const next = () => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    return state / 0x80000000;
  };
  return new Map(
    Array.from({ length: tensors }, (_, i) => [
      `layers.${i >> 2}.${i & 3}`,
      { dtype: 'float32' as const, dims: [8, 4096], data: Float32Array.from({ length: elements }, next) },
    ]),
  );
}

// Its own start, as after the first personalised round: nothing is shared in memory.
const starts = Array.from({ length: clients }, (_, c) => adapter(c + 1));
const trained = Array.from({ length: clients }, (_, c) => adapter(c + 101));
const reports = starts.map((_, c) => ({ client: `client-${c}`, loss: 1 + c / 10, samples: 1000 }));
const strategy = fellrec({
  similarityOn: 'update',
  heating: { alpha: 0.7, beta: 5, temperature: 1, exponent: 't/beta' },
});

const seconds = { mix: [] as number[], apply: [] as number[], total: [] as number[] };
for (let i = 0; i < repetitions; i++) {
  const parameters = await inMemory({
    like: starts[0]!,
    starts: starts.map((start) => async () => start),
    products: plainProducts,
  });
  for (const [c, own] of trained.entries()) await parameters.keep(c, own);
  const started = performance.now();
  const { matrix } = strategy.mix(reports, {
    round: 1,
    cosines: cosines([{ holders: [...starts.keys()], gram: await parameters.gram('update') }], clients),
  });
  const mixed = performance.now();
  await parameters.mix(matrix);
  const ended = performance.now();
  seconds.mix.push((mixed - started) / 1000);
  seconds.apply.push((ended - mixed) / 1000);
  seconds.total.push((ended - started) / 1000);
}

const summary = (values: number[]) => {
  const sorted = values.toSorted((a, b) => a - b);
  return { best: sorted[0], median: sorted[sorted.length >> 1], first: values[0] };
};
const figures = {
  what: 'FELLRec aggregation in plain TypeScript, seconds',
  shape: { clients, tensors, valuesPerClient: tensors * elements },
  repetitions,
  similarityAndWeights: summary(seconds.mix),
  applyMixing: summary(seconds.apply),
  total: summary(seconds.total),
  machine: { cpu: cpus()[0]?.model, cores: cpus().length, node: process.version },
};
process.stdout.write(`${JSON.stringify(figures, undefined, 2)}\n`);
