// A sentence encoder as a function from texts to vectors.
import type { Runtime } from '@fellrec/graph';
import { encoderModel, loadTokenizer, openRecformer, sentenceVectors } from '@fellrec/models';

export interface Sentences {
  /** Hashes of the model and its tokenizer. */
  readonly hashes: readonly string[];
  /** Unit vectors, in the order of the texts. */
  vectors(texts: readonly string[]): Promise<Float32Array[]>;
  release(): Promise<void>;
}

/** Opens the folder of a BERT or RoBERTa. */
export async function openSentences(path: string, cacheDir: string, runtime: Runtime): Promise<Sentences> {
  const checkpoint = await openRecformer(path, { cacheDir });
  const model = encoderModel(checkpoint, runtime);
  const tokenizer = await loadTokenizer(checkpoint.directory);
  return {
    hashes: [checkpoint.hash, tokenizer.hash],
    vectors: (texts) => sentenceVectors(texts, model, tokenizer),
    release: () => model.release(),
  };
}
