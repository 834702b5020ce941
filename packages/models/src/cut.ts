// One side of a model that is cut, as a folder of its own that opens as the whole model's does.
import { existsSync } from 'node:fs';
import { copyFile, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Checkpoint } from './checkpoint/checkpoint.ts';
import { configJson } from './checkpoint/config.ts';
import { assertWhole, type ModelPart, ofPart, partContents, writePart } from './checkpoint/part.ts';
import { copySafetensors } from './checkpoint/safetensors.ts';
import type { RecformerCheckpoint } from './recformer/checkpoint.ts';
import { recformerConfigJson } from './recformer/config.ts';
import { tokenizerFiles } from './tokenizer.ts';

/**
 * Writes the tensors of a part, their bytes as they are, with what opens them, into `directory`; a client also gets the
 * tokenizer, where there is one. What is the start of a RecFormer is written as the RecFormer that it becomes.
 * @throws if the model has no such cut, or is a part itself.
 */
export async function cutCheckpoint(
  checkpoint: Checkpoint | RecformerCheckpoint,
  { side, k }: ModelPart,
  directory: string,
): Promise<void> {
  const { config, tensors, hash, unused } = checkpoint;
  const { layerCount } = config;
  assertWhole(checkpoint, 'cutting');
  if (!(k >= 0 && k < layerCount))
    throw new Error(`model: k is ${k}; of ${layerCount} layers it can be 0 to ${layerCount - 1}`);
  const used = new Map([...tensors].filter(([name]) => !unused.includes(name)));
  const own = ofPart(used, { side, k }, layerCount);
  const contents = await partContents(config, { side, k }, own);
  const json =
    'family' in checkpoint ? recformerConfigJson(checkpoint.config) : configJson(checkpoint.config);
  await mkdir(directory, { recursive: true });
  await writePart(directory, { side, k, layerCount, hash, contents });
  await writeFile(join(directory, 'config.json'), `${JSON.stringify(json, undefined, 2)}\n`);
  if (side === 'client')
    for (const name of tokenizerFiles) {
      const file = join(checkpoint.directory, name);
      if (existsSync(file)) await copyFile(file, join(directory, name));
    }
  await copySafetensors(join(directory, 'model.safetensors'), own);
}
