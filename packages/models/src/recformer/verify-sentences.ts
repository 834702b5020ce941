// Recomputes the golden values of a sentence encoder (from sentence-transformers): token ids and vectors of texts.
import { nodeRuntime } from '@fellrec/graph';
import { z } from 'zod';
import { loadTokenizer } from '../tokenizer.ts';
import { readCases, type VerifiedGroup, worse } from '../verified.ts';
import { openRecformer } from './checkpoint.ts';
import { encoderModel } from './model.ts';
import { sentenceVectors } from './sentences.ts';

const casesSchema = z.array(
  z.looseObject({
    text: z.string(),
    ids: z.array(z.number().int()),
    /** Of the first token's last hidden state. */
    cls_first8: z.array(z.number()),
    mean_pooled_normalised: z.array(z.number()),
  }),
);

/** @throws if the folder lacks an encoder, its tokenizer or `cases.json`. */
export async function verifySentences(directory: string, cacheDir: string): Promise<VerifiedGroup[]> {
  const cases = await readCases(directory, casesSchema);
  const model = encoderModel(await openRecformer(directory, { cacheDir }), nodeRuntime());
  const tokenizer = await loadTokenizer(directory);
  const wrong = cases.filter(({ text, ids }) => tokenizer.encode(text).join() !== ids.join()).length;
  const means = await sentenceVectors(
    cases.map(({ text }) => text),
    model,
    tokenizer,
  );
  const first = await model.encode(
    cases.map(({ ids }) => ({ ids, tokenTypes: ids.map(() => 0), itemPositions: ids.map(() => 0) })),
    undefined,
    { attention: 'full', pooling: 'cls' },
  );
  await model.release();
  const d = first.dims[1]!;
  const largest = (golden: (i: number) => readonly number[], found: (i: number, j: number) => number) =>
    cases.flatMap((_, i) => golden(i).map((value, j) => Math.abs(value - found(i, j)))).reduce(worse, 0);
  const group = (name: string, difference: number, tolerance: number) => ({
    group: name,
    difference,
    tolerance,
    pass: difference <= tolerance,
  });
  return [
    group('texts of other tokens', wrong, 0),
    group(
      'mean vectors',
      largest(
        (i) => cases[i]!.mean_pooled_normalised,
        (i, j) => means[i]![j]!,
      ),
      1e-5,
    ),
    group(
      "first tokens' vectors",
      largest(
        (i) => cases[i]!.cls_first8,
        (i, j) => first.data[i * d + j]!,
      ),
      1e-5,
    ),
  ];
}
