// Texts as vectors by a plain sentence encoder: every token reads every other, the vector is the mean over all tokens.
import type { Tokenizer } from '../tokenizer.ts';
import { type EncoderModel, unitRow } from './model.ts';

const batchSize = 32;

/** Unit vectors of texts, in their order. Texts of like length are computed together; what exceeds the positions is cut. */
export async function sentenceVectors(
  texts: readonly string[],
  model: EncoderModel,
  tokenizer: Tokenizer,
  onProgress?: (done: number, total: number) => void,
): Promise<Float32Array[]> {
  const { config } = model.checkpoint;
  const encoded = texts.map((text, index) => {
    const ids = tokenizer.encode(text).slice(0, config.positionCount - 2);
    const zeros = ids.map(() => 0);
    return { index, sequence: { ids, tokenTypes: zeros, itemPositions: zeros } };
  });
  encoded.sort((a, b) => a.sequence.ids.length - b.sequence.ids.length);
  const vectors: Float32Array[] = [];
  for (let at = 0; at < encoded.length; at += batchSize) {
    const part = encoded.slice(at, at + batchSize);
    const sequences = part.map(({ sequence }) => sequence);
    const { data, dims } = await model.encode(sequences, undefined, { attention: 'full', pooling: 'avg' });
    const d = dims[1]!;
    for (const [row, { index }] of part.entries())
      vectors[index] = unitRow(data.slice(row * d, (row + 1) * d));
    onProgress?.(at + part.length, encoded.length);
  }
  return vectors;
}
