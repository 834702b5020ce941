// Grounding (BIGRec, arXiv 2308.08434): a generated title is placed among the catalogue's by the base model's own
// vectors, the normalised last hidden state of a text's last token; near is good.
import type { LanguageModel, Tokenizer } from '@fellrec/models';
import type { Catalogue } from '../catalogue.ts';
import { cachedVectors } from '../title-vectors.ts';

/** At once, at most. With cut models a batch's states are one message: 32 MiB of 2,048 tokens with 4,096 numbers each. */
const limits = { texts: 64, tokens: 2048 };

/** Vectors of texts, [texts, d]. Texts of like length are computed together. */
export async function textVectors(
  texts: readonly string[],
  model: LanguageModel,
  tokenizer: Tokenizer,
  onProgress?: (done: number, total: number) => void,
): Promise<Float32Array[]> {
  const { contextLength, eosIds } = model.checkpoint.config;
  const encoded = texts.map((text, index) => {
    const ids = tokenizer.encode(text).slice(0, contextLength);
    // A tokenizer without a begin token has nothing to say about an empty text.
    return { index, ids: ids.length > 0 ? ids : [eosIds[0] ?? 0] };
  });
  encoded.sort((a, b) => a.ids.length - b.ids.length);
  const vectors: Float32Array[] = [];
  for (let at = 0, size = 0; at < encoded.length; at += size) {
    size = batchSize(encoded, at);
    const part = encoded.slice(at, at + size);
    const { data, dims } = await model.vectors(part.map(({ ids }) => ids));
    const d = dims[1]!;
    part.forEach(({ index }, row) => {
      vectors[index] = data.slice(row * d, (row + 1) * d);
    });
    onProgress?.(at + part.length, encoded.length);
  }
  return vectors;
}

/** How many of them from `at` on, shortest first and each padded to the longest, are within the limits; one at least. */
function batchSize(encoded: readonly { readonly ids: readonly number[] }[], at: number): number {
  let size = 1;
  while (size < limits.texts && (size + 1) * (encoded[at + size]?.ids.length ?? Infinity) <= limits.tokens)
    size++;
  return size;
}

/** The catalogue's vectors: computed once per base model, tokenizer and catalogue, then read from the cache. */
export function catalogueVectors(
  catalogue: Catalogue,
  model: LanguageModel,
  tokenizer: Tokenizer,
  cacheDir: string,
  onProgress?: (done: number, total: number) => void,
): Promise<Float32Array[]> {
  const computedBy = [model.checkpoint.hash, tokenizer.hash];
  return cachedVectors({ catalogue, computedBy, cacheDir }, (titles) =>
    textVectors(titles, model, tokenizer, onProgress),
  );
}

/** Minus the Euclidean distance of `vector` to each item's. */
export function nearness(vector: Float32Array, items: readonly Float32Array[]): Float64Array {
  return Float64Array.from(items, (item) => {
    let sum = 0;
    for (let d = 0; d < item.length; d++) sum += (vector[d]! - item[d]!) ** 2;
    return -Math.sqrt(sum);
  });
}
