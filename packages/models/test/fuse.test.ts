// An adapter in the weights computes what it computes beside them, and comes out again.
import { cpSync, existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Float32Tensor, nodeRuntime } from '@fellrec/graph';
import { expect, test } from 'vitest';
import { openCheckpoint } from '../src/checkpoint/checkpoint.ts';
import { readSafetensors } from '../src/checkpoint/safetensors.ts';
import { fuseAdapter, unfuseAdapter } from '../src/fuse.ts';
import { languageModel } from '../src/language-model.ts';
import { readAdapter } from '../src/peft.ts';
import { largestDifference } from './numbers.ts';
import { fixture, llamaFixtures, temporaryFolder } from './shared.ts';

const folder = temporaryFolder();
const cacheDir = join(folder, 'cache');
const weights = (directory: string) =>
  readSafetensors(join(directory, 'model.safetensors')) as Promise<Map<string, Float32Tensor>>;

test.each(llamaFixtures)('%s: fused and taken out again', async (name) => {
  const adapter = await readAdapter(join(fixture(name), 'adapter'));
  const checkpoint = await openCheckpoint(fixture(name), { cacheDir });
  const [fusedFolder, restoredFolder] = [join(folder, name, 'fused'), join(folder, name, 'restored')];
  await fuseAdapter(checkpoint, adapter, fusedFolder);
  const fused = await openCheckpoint(fusedFolder, { cacheDir });
  expect(fused.config).toEqual(checkpoint.config);
  expect(fused.hash).not.toBe(checkpoint.hash);

  const [base, changed] = [await weights(fixture(name)), await weights(fusedFolder)];
  expect([...changed.keys()].sort()).toEqual([...base.keys()].sort());
  for (const [weight, { data }] of changed) {
    const adapted = adapter.config.targetModules.some((module) => weight.includes(module));
    const difference = largestDifference(data, base.get(weight)!.data);
    if (adapted) expect(difference, weight).toBeGreaterThan(1e-3);
    else expect(difference, weight).toBe(0);
  }

  const sequences = [{ ids: [1, 5, 9, 40, 33] }, { ids: [1, 8] }];
  const [beside, inside] = [languageModel(checkpoint, nodeRuntime()), languageModel(fused, nodeRuntime())];
  const expected = (await beside.trace(sequences, adapter)).logits!.data;
  expect(largestDifference((await inside.trace(sequences)).logits!.data, expected)).toBeLessThan(1e-4);
  await Promise.all([beside.release(), inside.release()]);

  await unfuseAdapter(fused, adapter, restoredFolder);
  for (const [weight, { data }] of await weights(restoredFolder))
    expect(largestDifference(data, base.get(weight)!.data), weight).toBeLessThan(1e-6);
});

test('configuration and tokenizer come along, an index of shards does not', async () => {
  const source = join(folder, 'source');
  cpSync(fixture('llama-mha-untied'), source, { recursive: true });
  cpSync(join(fixture('llama-mha-untied'), 'config.json'), join(source, 'tokenizer.json'));
  cpSync(join(fixture('llama-mha-untied'), 'config.json'), join(source, 'model.safetensors.index.json'));
  const target = join(folder, 'target');
  await fuseAdapter(
    await openCheckpoint(source, { cacheDir }),
    await readAdapter(join(source, 'adapter')),
    target,
  );
  for (const name of ['config.json', 'tokenizer.json'])
    expect(readFileSync(join(target, name))).toEqual(readFileSync(join(source, name)));
  expect(() => readFileSync(join(target, 'model.safetensors.index.json'))).toThrow('ENOENT');
});

test('an adapter made for another base is refused, and nothing is written', async () => {
  const adapter = await readAdapter(join(fixture('llama-gqa-tied'), 'adapter'));
  const other = await openCheckpoint(fixture('llama-rope3'), { cacheDir });
  const output = join(folder, 'refused');
  await expect(fuseAdapter(other, adapter, output)).rejects.toThrow(
    /made for another base model:\n.*16 tensors.* 8/s,
  );
  expect(existsSync(output)).toBe(false);
});
