// An encoder that trains in a second.
import { copyFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type RecformerConfig, writeRandomRecformer } from '@fellrec/models';
import { embeddedModel } from './shared.ts';

export const tinyEncoder: RecformerConfig = {
  vocabularySize: 512,
  hiddenSize: 16,
  intermediateSize: 32,
  layerCount: 2,
  headCount: 2,
  headDim: 8,
  positionCount: 130,
  tokenTypeCount: 4,
  itemPositionCount: 11,
  attentionWindows: [16, 16],
  normEpsilon: 1e-5,
  pooling: 'cls',
  startId: 1,
  padId: 0,
  limits: { maxAttributes: 3, maxAttributeLength: 16, maxItems: 10, maxTokens: 128 },
};

/** A folder with random weights of that shape, or with one of other layers, and a tokenizer. */
export async function writeTinyEncoder(folder: string, seed = 1, config = tinyEncoder): Promise<string> {
  await writeRandomRecformer(folder, config, seed);
  await copyFile(join(embeddedModel, 'tokenizer.json'), join(folder, 'tokenizer.json'));
  return folder;
}
