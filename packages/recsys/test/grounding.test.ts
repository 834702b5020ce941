import type { LanguageModel, Tokenizer } from '@fellrec/models';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { textVectors } from '../src/bigrec/grounding.ts';

test('titles are computed in batches whose states fit into a message, and keep their order', async () => {
  // A token a letter; a text's vector is its length.
  const tokenizer = { encode: (text: string) => [...text].map(() => 1) } as unknown as Tokenizer;
  const lengths = fc.array(fc.oneof(fc.integer({ min: 0, max: 90 }), fc.integer({ min: 0, max: 3000 })), {
    maxLength: 300,
  });
  await fc.assert(
    fc.asyncProperty(lengths, async (lengths) => {
      const batches: number[][] = [];
      const model = {
        checkpoint: { config: { contextLength: 2500, eosIds: [0] } },
        vectors: async (texts: readonly (readonly number[])[]) => {
          batches.push(texts.map((ids) => ids.length));
          return { data: Float32Array.from(texts, (ids) => ids.length), dims: [texts.length, 1] };
        },
      } as unknown as LanguageModel;
      const texts = lengths.map((length) => 'x'.repeat(length));
      const found = await textVectors(texts, model, tokenizer);
      expect(found.map(([length]) => length)).toEqual(
        lengths.map((length) => Math.min(Math.max(length, 1), 2500)),
      );
      for (const [i, batch] of batches.entries()) {
        const padded = (more: number, length = Math.max(...batch)) => (batch.length + more) * length;
        expect(batch.length).toBeLessThanOrEqual(64);
        if (batch.length > 1) expect(padded(0)).toBeLessThanOrEqual(2048);
        // None is smaller than it must be.
        const next = batches[i + 1];
        if (next && batch.length < 64) expect(padded(1, next[0])).toBeGreaterThan(2048);
      }
    }),
  );
});
