// Recomputes everything that a golden fixture of a LLaMA checkpoint holds (values from transformers and peft) and says
// how far each group is from it.
import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { adamW, nodeRuntime, type Tensor } from '@fellrec/graph';
import { z } from 'zod';
import type { Sequence } from './batch.ts';
import { openCheckpoint } from './checkpoint/checkpoint.ts';
import { readSafetensors } from './checkpoint/safetensors.ts';
import { fuseAdapter } from './fuse.ts';
import type { Hypothesis } from './generation.ts';
import { type Adapter, type LanguageModel, languageModel } from './language-model.ts';
import { readAdapter } from './peft.ts';
import { expectedTensor, namedDifferences, readCases, type VerifiedGroup, worse } from './verified.ts';

const ids = z.array(z.array(z.number().int()));
const casesSchema = z.looseObject({
  input_ids: ids,
  attention_mask: ids,
  labels: ids,
  loss_base: z.number(),
  loss_lora: z.number().optional(),
  training: z
    .looseObject({
      lr: z.number(),
      betas: z.tuple([z.number(), z.number()]),
      eps: z.number(),
      weight_decay: z.number(),
      clip_grad_norm: z.number(),
      losses: z.array(z.number()),
      grad_norms_before_clip: z.array(z.number()),
    })
    .optional(),
  generation: z
    .looseObject({
      prompt_ids: ids,
      prompt_mask: ids,
      max_new_tokens: z.number().int(),
      greedy: ids,
      beam4: z.looseObject({ length_penalty: z.number(), sequences: ids, scores: z.array(z.number()) }),
    })
    .optional(),
});
type Cases = z.infer<typeof casesSchema>;

/** @throws if the folder lacks `config.json`, `model.safetensors`, `cases.json` or `expected.safetensors`. */
export async function verifyLlama(directory: string, cacheDir: string): Promise<VerifiedGroup[]> {
  const cases = await readCases(directory, casesSchema);
  const expected = await readSafetensors(join(directory, 'expected.safetensors'));
  const checkpoint = await openCheckpoint(directory, { cacheDir });
  const base = languageModel(checkpoint, nodeRuntime());
  const groups: VerifiedGroup[] = [];
  const report = (group: string, difference: number, tolerance: number) =>
    groups.push({ group, difference, tolerance, pass: difference <= tolerance });
  const sequences = batchOf(cases);
  const difference = (found: Tensor, name: string) =>
    differenceAtRealTokens(found, expectedTensor(expected, name), cases);

  const trace = await base.trace(sequences);
  report('base logits', difference(trace.logits!, 'base.logits'), 1e-4);
  const layers = Object.keys(trace).filter((name) => name.startsWith('hidden.'));
  const hidden = layers.map((name) => difference(trace[name]!, `base.${name}`));
  report('hidden states', Math.max(...hidden), 1e-4);
  report('base loss', Math.abs((await base.loss(sequences)) - cases.loss_base), 1e-5);
  if (!existsSync(join(directory, 'adapter'))) {
    await base.release();
    return groups;
  }

  const adapter = await readAdapter(join(directory, 'adapter'));
  const loraLogits = (await base.trace(sequences, adapter)).logits!;
  report('LoRA logits', difference(loraLogits, 'lora.logits'), 1e-4);
  if (cases.loss_lora !== undefined)
    report('LoRA loss', Math.abs((await base.loss(sequences, adapter)) - cases.loss_lora), 1e-5);
  const { gradients } = await base.gradients(sequences, adapter);
  report('gradients', Math.max(...namedDifferences(gradients, expected, 'lora.grad.', 'relative')), 1e-4);

  let trained = adapter;
  if (cases.training) {
    const run = await train(base, sequences, adapter, cases.training);
    trained = run.adapter;
    const losses = cases.training.losses.map((loss, t) => Math.abs(loss - run.losses[t]!));
    report('training losses', Math.max(...losses), 1e-4);
    const norms = cases.training.grad_norms_before_clip.map(
      (norm, t) => Math.abs(norm - run.norms[t]!) / norm,
    );
    report('gradient norms', Math.max(...norms), 1e-4);
    report(
      'trained tensors',
      Math.max(...namedDifferences(trained.tensors, expected, 'trained.', 'absolute')),
      1e-4,
    );
  }

  const fusedDirectory = await mkdtemp(join(tmpdir(), 'fellrec-fused-'));
  try {
    await fuseAdapter(checkpoint, trained, fusedDirectory);
    const fused = languageModel(await openCheckpoint(fusedDirectory, { cacheDir }), nodeRuntime());
    report('fused logits', difference((await fused.trace(sequences)).logits!, 'fused.logits'), 1e-4);
    await fused.release();
  } finally {
    await rm(fusedDirectory, { recursive: true });
  }

  if (cases.generation) {
    const { prompt_ids, prompt_mask, max_new_tokens, greedy, beam4 } = cases.generation;
    const prompts = prompt_ids.map((row, b) => row.filter((_, t) => prompt_mask[b]![t] === 1));
    const common = { maxNewTokens: max_new_tokens, eosIds: checkpoint.config.eosIds };
    const found = await base.generate(prompts, { ...common, beams: 1 }, trained);
    report('greedy', tokensThatDiffer(found.flat(), greedy, common.eosIds), 0);
    const beams = beam4.sequences.length / prompts.length;
    const options = { ...common, beams, lengthPenalty: beam4.length_penalty };
    const searched = (await base.generate(prompts, options, trained)).flat();
    report('beam sequences', tokensThatDiffer(searched, beam4.sequences, common.eosIds), 0);
    report(
      'beam scores',
      Math.max(...searched.map(({ score }, i) => Math.abs(score - beam4.scores[i]!))),
      1e-4,
    );
  }
  await base.release();
  return groups;
}

async function train(
  model: LanguageModel,
  sequences: readonly Sequence[],
  start: Adapter,
  { lr, betas, eps, weight_decay, clip_grad_norm, losses: steps }: NonNullable<Cases['training']>,
): Promise<{ adapter: Adapter; losses: number[]; norms: number[] }> {
  const optimizer = adamW({ betas, epsilon: eps, weightDecay: weight_decay, clipNorm: clip_grad_norm });
  let adapter = start;
  let state = optimizer.init(adapter.tensors);
  const losses: number[] = [];
  const norms: number[] = [];
  for (let t = 0; t < steps.length; t++) {
    const { loss, gradients } = await model.gradients(sequences, adapter);
    const next = optimizer.update(gradients, state, lr * (1 - t / steps.length));
    losses.push(loss);
    norms.push(next.gradientNorm);
    state = next.state;
    adapter = { ...adapter, tensors: next.parameters };
  }
  return { adapter, losses, norms };
}

/** The fixture's batch as it stands: it is padded on the left, and losses are read at padding too. */
function batchOf({ input_ids, attention_mask, labels }: Cases): Sequence[] {
  return input_ids.map((row, b) => ({ ids: row, attention: attention_mask[b]!, labels: labels[b]! }));
}

/** The largest difference of [batch * time, n] from an expected [batch, time, n] at the real tokens. */
function differenceAtRealTokens(found: Tensor, expected: Tensor, { attention_mask }: Cases): number {
  const width = expected.dims.at(-1)!;
  let largest = 0;
  attention_mask.flat().forEach((real, row) => {
    if (real === 0) return;
    for (let i = row * width; i < (row + 1) * width; i++)
      largest = worse(largest, Math.abs(Number(found.data[i]) - Number(expected.data[i])));
  });
  return largest;
}

/** Expected sequences are padded behind their end. */
function tokensThatDiffer(
  found: readonly Hypothesis[],
  expected: readonly (readonly number[])[],
  eosIds: readonly number[],
): number {
  return expected.reduce((n, row, i) => {
    const ids = found[i]?.ids ?? [];
    const ended = eosIds.includes(ids.at(-1) ?? -1);
    return n + row.filter((id, t) => (t < ids.length ? ids[t] !== id : !ended)).length;
  }, 0);
}
