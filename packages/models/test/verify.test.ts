// Fixtures of transformers and peft: logits, hidden states, losses, gradients, training, fusing, generation.
import { cpSync } from 'node:fs';
import { join } from 'node:path';
import { float32 } from '@fellrec/graph';
import { expect, test } from 'vitest';
import { readSafetensors, writeSafetensors } from '../src/checkpoint/safetensors.ts';
import { verifyLlama } from '../src/verify.ts';
import { fixture, llamaFixtures, temporaryFolder } from './shared.ts';

const folder = temporaryFolder();

test.each(llamaFixtures)('%s equals transformers and peft', async (name) => {
  const groups = await verifyLlama(fixture(name), join(folder, 'cache'));
  expect(groups.filter(({ pass }) => !pass)).toEqual([]);
  expect(groups.map(({ group }) => group)).toEqual([
    'base logits',
    'hidden states',
    'base loss',
    'LoRA logits',
    'LoRA loss',
    'gradients',
    'training losses',
    'gradient norms',
    'trained tensors',
    'fused logits',
    'greedy',
    'beam sequences',
    'beam scores',
  ]);
});

test('a changed weight is reported', async () => {
  const tampered = join(folder, 'weights');
  cpSync(fixture('llama-mha-untied'), tampered, { recursive: true });
  const file = join(tampered, 'model.safetensors');
  const tensors = await readSafetensors(file);
  const name = 'model.layers.0.mlp.up_proj.weight';
  const { data, dims } = tensors.get(name)!;
  const values = Float32Array.from(data as Float32Array);
  values[5]! += 0.5;
  tensors.set(name, float32(values, dims));
  await writeSafetensors(file, tensors as Parameters<typeof writeSafetensors>[1]);
  const failed = (await verifyLlama(tampered, join(folder, 'cache'))).filter(({ pass }) => !pass);
  expect(failed.map(({ group }) => group)).toEqual(
    expect.arrayContaining(['base logits', 'hidden states', 'base loss', 'gradients', 'fused logits']),
  );
});

test('a changed adapter leaves the base as it is', async () => {
  const tampered = join(folder, 'adapter');
  cpSync(fixture('llama-mha-untied'), tampered, { recursive: true });
  const file = join(tampered, 'adapter', 'adapter_model.safetensors');
  const halved = new Map(
    [...(await readSafetensors(file))].map(([name, { data, dims }]) => [
      name,
      float32(
        (data as Float32Array).map((x) => x / 2),
        dims,
      ),
    ]),
  );
  await writeSafetensors(file, halved);
  const groups = await verifyLlama(tampered, join(folder, 'cache'));
  const passed = groups.filter(({ pass }) => pass).map(({ group }) => group);
  expect(passed).toEqual(expect.arrayContaining(['base logits', 'hidden states', 'base loss']));
  expect(passed).not.toContain('LoRA logits');
  expect(passed).not.toContain('gradients');
});
