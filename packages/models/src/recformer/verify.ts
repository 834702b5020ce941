// Recomputes everything that a golden fixture of a RecFormer holds (values from PyTorch) and says how far each group is
// from it.
import { join } from 'node:path';
import {
  adamW,
  type Float32Tensor,
  float32,
  type NamedTensors,
  nodeRuntime,
  type Tensor,
} from '@fellrec/graph';
import { z } from 'zod';
import { readSafetensors, readTensor } from '../checkpoint/safetensors.ts';
import { expectedTensor, namedDifferences, readCases, type VerifiedGroup, worse } from '../verified.ts';
import { blocksFit, encoderBatch, type ItemSequence } from './batch.ts';
import { openRecformer, type RecformerCheckpoint } from './checkpoint.ts';
import type { LabelledSequence } from './contrast.ts';
import { encoderModel, unitRows, type WholeEncoderModel } from './model.ts';
import { itemSequence } from './sequence.ts';

const ids = z.array(z.number().int());
const item = z.array(z.object({ name: ids, value: ids }));
const built = z.object({
  input_ids: ids,
  token_type_ids: ids,
  item_position_ids: ids,
  attention_mask: ids,
  global_attention_mask: ids,
});
const padded = z.object({
  input_ids: z.array(ids),
  token_type_ids: z.array(ids),
  item_position_ids: z.array(ids),
  position_ids: z.array(ids),
  lengths: ids,
});
const casesSchema = z
  .looseObject({
    items: z.array(item),
    histories: z.array(ids),
    built: z.array(built),
    batch: padded,
    item_batch: padded,
    labels: ids,
    temperature: z.number(),
    loss: z.number(),
    zero_gradient: z.array(z.string()),
    cancelling_gradient: z.array(z.string()),
    training: z.object({
      lr: z.number(),
      betas: z.tuple([z.number(), z.number()]),
      eps: z.number(),
      weight_decay: z.number(),
      losses: z.array(z.number()),
      loss_after: z.number(),
      trained: z.record(
        z.string(),
        z.object({ norm: z.number(), change_norm: z.number(), first8: z.array(z.number()) }),
      ),
    }),
    construction: z.array(
      z.looseObject({
        limits: z.object({
          max_attr_num: z.number(),
          max_attr_length: z.number(),
          max_item_embeddings: z.number(),
          max_token_num: z.number(),
        }),
        history: z.array(item),
        expected: built,
      }),
    ),
  })
  .refine(
    ({ items, histories, built, batch, item_batch, labels }) =>
      [built, batch.input_ids, batch.lengths, labels].every(({ length }) => length === histories.length) &&
      [item_batch.input_ids, item_batch.lengths].every(({ length }) => length === items.length) &&
      histories.length > 0 &&
      [...histories.flat(), ...labels].every((item) => item >= 0 && item < items.length) &&
      built.every(({ input_ids }, i) => input_ids.length === batch.lengths[i]),
    'histories, built, batch, labels and items are not of equal numbers, or name items that are not there',
  );
type Cases = z.infer<typeof casesSchema>;

/** @throws if the folder lacks `config.json`, `model.safetensors`, `cases.json` or `expected.safetensors`. */
export async function verifyRecformer(directory: string, cacheDir: string): Promise<VerifiedGroup[]> {
  const cases = await readCases(directory, casesSchema);
  const expected = await readSafetensors(join(directory, 'expected.safetensors'));
  const checkpoint = await openRecformer(directory, { cacheDir });
  const groups: VerifiedGroup[] = [];
  const report = (group: string, difference: number, tolerance: number) =>
    groups.push({ group, difference, tolerance, pass: difference <= tolerance });

  report('input construction', construction(cases, checkpoint), 0);
  const histories = cases.histories.map((history) =>
    sequenceOf(
      history.map((i) => cases.items[i]!),
      checkpoint,
    ),
  );
  const items = cases.items.map((one) => sequenceOf([one], checkpoint));
  report(
    'batches',
    batchDifference(cases.batch, histories, checkpoint) +
      batchDifference(cases.item_batch, items, checkpoint),
    0,
  );
  // Both ways to compute the window, whatever is faster at this length.
  for (const form of blocksFit(checkpoint.config) ? (['dense', 'blocks'] as const) : (['dense'] as const)) {
    const model = encoderModel(checkpoint, nodeRuntime(), { form });
    await verifyForm(
      model,
      { cases, expected, checkpoint, histories, items, form },
      (group, difference, tolerance) => report(`${group} (${form})`, difference, tolerance),
    );
    await model.release();
  }
  return groups;
}

interface Verified {
  readonly cases: Cases;
  readonly expected: ReadonlyMap<string, Tensor>;
  readonly checkpoint: RecformerCheckpoint;
  readonly histories: readonly ItemSequence[];
  readonly items: readonly ItemSequence[];
  readonly form: 'dense' | 'blocks';
}

async function verifyForm(
  model: WholeEncoderModel,
  { cases, expected, checkpoint, histories, items, form }: Verified,
  report: (group: string, difference: number, tolerance: number) => void,
): Promise<void> {
  const golden = (name: string) => expectedTensor(expected, name);
  const { hidden, time } = await model.trace(histories, undefined, form);
  const states = Object.entries(hidden).map(([name, found]) =>
    differenceAtRealTokens(found, time, golden(name), cases.batch.lengths),
  );
  report('embeddings', states[0]!, 1e-5);
  report('layers', states.slice(1).reduce(worse), 1e-5);
  const pooled = await model.encode(histories);
  report('pooled vectors', difference(pooled.data, golden('pooled').data), 1e-5);
  report('item vectors', difference((await model.encode(items)).data, golden('items').data), 1e-5);
  const table = unitRows(golden('items') as Float32Tensor);
  report(
    'scores',
    difference(scores(unitRows(pooled), table, cases.temperature), golden('scores').data),
    1e-4,
  );

  const batch = histories.map((sequence, b): LabelledSequence => ({ sequence, label: cases.labels[b]! }));
  const options = { items: table, temperature: cases.temperature };
  const start = new Map<string, Float32Tensor>();
  for (const [name, stored] of checkpoint.tensors) start.set(name, await readTensor(stored));
  const { loss, gradients } = await model.gradients(batch, { tensors: start }, options);
  report(
    'loss',
    worse(Math.abs(loss - cases.loss), Math.abs((await model.loss(batch, undefined, options)) - cases.loss)),
    1e-5,
  );
  const pick = (names: (name: string) => boolean) => new Map([...gradients].filter(([name]) => names(name)));
  const [zero, cancelling] = [cases.zero_gradient, cases.cancelling_gradient];
  report(
    'gradients',
    namedDifferences(
      pick((name) => !zero.includes(name) && !cancelling.includes(name)),
      expected,
      'grad.',
      'relative',
    ).reduce(worse),
    1e-4,
  );
  report('gradients that are 0', largest(pick((name) => zero.includes(name))), 0);
  report('gradients that cancel', largest(pick((name) => cancelling.includes(name))), 1e-6);

  const { training } = cases;
  const optimizer = adamW({
    betas: training.betas,
    epsilon: training.eps,
    weightDecay: training.weight_decay,
  });
  let tensors: NamedTensors = start;
  let state = optimizer.init(tensors);
  const losses: number[] = [];
  for (const _ of training.losses) {
    const step = await model.gradients(batch, { tensors }, options);
    losses.push(step.loss);
    ({ parameters: tensors, state } = optimizer.update(step.gradients, state, training.lr));
  }
  losses.push(await model.loss(batch, { tensors }, options));
  report('training losses', difference(losses, [...training.losses, training.loss_after]), 1e-4);
  for (const [group, differences, tolerance] of trainedDifferences(cases, start, tensors))
    report(group, differences.reduce(worse, 0), tolerance);
}

/** Norms, norms of the change and first values of the trained tensors; those whose gradient is noise only stay near. */
function trainedDifferences(
  { training, cancelling_gradient }: Cases,
  start: NamedTensors,
  found: NamedTensors,
): (readonly [group: string, differences: number[], tolerance: number])[] {
  const named = Object.entries(training.trained).filter(([name]) => !cancelling_gradient.includes(name));
  const change = (name: string) =>
    float32(
      found.get(name)!.data.map((x, i) => x - start.get(name)!.data[i]!),
      found.get(name)!.dims,
    );
  return [
    [
      'trained norms',
      named.map(([name, { norm: golden }]) => Math.abs(norm(found.get(name)!) - golden)),
      1e-4,
    ],
    [
      'changes of norms',
      named.map(([name, { change_norm: golden }]) =>
        golden === 0 ? norm(change(name)) : Math.abs(norm(change(name)) - golden) / golden,
      ),
      1e-3,
    ],
    [
      'trained values',
      named.map(([name, { first8 }]) => difference(found.get(name)!.data.subarray(0, first8.length), first8)),
      2e-5,
    ],
    ['trained noise', cancelling_gradient.map((name) => largest(new Map([[name, change(name)]]))), 1.6e-3],
  ];
}

/** How many of the cases' inputs are built differently. */
function construction(
  { construction, items, histories, built: expected }: Cases,
  { config }: RecformerCheckpoint,
): number {
  const cases = [
    ...construction.map(({ history, limits, expected }) => ({
      expected,
      found: itemSequence(
        history,
        {
          maxAttributes: limits.max_attr_num,
          maxAttributeLength: limits.max_attr_length,
          maxItems: limits.max_item_embeddings - 1,
          maxTokens: limits.max_token_num,
        },
        config.startId,
      ).sequence,
    })),
    ...histories.map((history, i) => ({
      expected: expected[i]!,
      found: itemSequence(
        history.map((place) => items[place]!),
        config.limits,
        config.startId,
      ).sequence,
    })),
  ];
  return cases.filter(
    ({ found, expected }) =>
      found.ids.join() !== expected.input_ids.join() ||
      found.tokenTypes.join() !== expected.token_type_ids.join() ||
      found.itemPositions.join() !== expected.item_position_ids.join() ||
      expected.attention_mask.length !== found.ids.length,
  ).length;
}

function sequenceOf(items: Cases['items'], { config }: RecformerCheckpoint): ItemSequence {
  return itemSequence(items, config.limits, config.startId).sequence;
}

/** How many values of a padded batch differ up to the golden one's width. */
function batchDifference(
  golden: Cases['batch'],
  sequences: readonly ItemSequence[],
  { config }: RecformerCheckpoint,
): number {
  const { feeds, time } = encoderBatch(config, sequences, 'dense');
  const pairs = [
    ['ids', golden.input_ids],
    ['positions', golden.position_ids],
    ['tokenTypes', golden.token_type_ids],
    ['itemPositions', golden.item_position_ids],
  ] as const;
  return pairs.reduce(
    (n, [name, rows]) =>
      n +
      rows.flatMap((row, b) => row.filter((id, t) => Number(feeds[name]!.data[b * time + t]) !== id)).length,
    0,
  );
}

/** The largest difference of [batch * time, d] from an expected [batch, other time, d] at the real tokens. */
function differenceAtRealTokens(
  found: Tensor,
  time: number,
  expected: Tensor,
  lengths: readonly number[],
): number {
  const [, width, d] = expected.dims as [number, number, number];
  return lengths
    .map((length, b) =>
      difference(
        (found.data as Float32Array).subarray(b * time * d, (b * time + length) * d),
        (expected.data as Float32Array).subarray(b * width * d, (b * width + length) * d),
      ),
    )
    .reduce(worse, 0);
}

function difference(found: ArrayLike<number>, expected: ArrayLike<number> | BigInt64Array): number {
  if (found.length !== expected.length) return Number.POSITIVE_INFINITY;
  let largest = 0;
  for (let i = 0; i < found.length; i++) largest = worse(largest, Math.abs(found[i]! - Number(expected[i])));
  return largest;
}

/** Cosines of unit rows / temperature, [a, b]. */
function scores(a: Float32Tensor, b: Float32Tensor, temperature: number): number[] {
  const d = a.dims[1]!;
  return Array.from({ length: a.dims[0]! }, (_, i) =>
    Array.from({ length: b.dims[0]! }, (_, j) => {
      let sum = 0;
      for (let k = 0; k < d; k++) sum += a.data[i * d + k]! * b.data[j * d + k]!;
      return sum / temperature;
    }),
  ).flat();
}

function largest(tensors: NamedTensors): number {
  let found = 0;
  for (const { data } of tensors.values()) for (const x of data) found = worse(found, Math.abs(x));
  return found;
}

function norm({ data }: Float32Tensor): number {
  let squares = 0;
  for (const x of data) squares += x * x;
  return Math.sqrt(squares);
}
