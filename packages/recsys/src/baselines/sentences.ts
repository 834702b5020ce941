// Titles that mean the same: what is near to the history in a sentence encoder's space, with nothing learned.
import { float32 } from '@fellrec/graph';
import { historyLength } from '../samples.ts';
import { assertItems, type Baseline } from './baseline.ts';

/** Of the last ten items the newest counts 1, each before it this much less. */
const decay = 0.8;

/**
 * score(j | history) = v_j . sum over the last 10 items of 0.8^age v_i, of unit vectors v, [items][d]; age 0 is the newest.
 * @throws without vectors, and on items that have none.
 */
export function sentenceNeighbours(vectors: readonly Float32Array[]): Baseline {
  const [first] = vectors;
  if (!first) throw new Error('sentences: the catalogue has no title vector; pass one of each item');
  const d = first.length;
  return {
    async score(queries) {
      const scores = new Float32Array(queries.length * vectors.length);
      for (const [query, { history }] of queries.entries()) {
        assertItems(`sentences: query ${query}`, history, vectors.length);
        const wanted = new Float64Array(d);
        for (const [age, item] of history.slice(-historyLength).reverse().entries())
          for (let k = 0; k < d; k++) wanted[k]! += decay ** age * vectors[item]![k]!;
        for (const [item, vector] of vectors.entries()) {
          let sum = 0;
          for (let k = 0; k < d; k++) sum += wanted[k]! * vector[k]!;
          scores[query * vectors.length + item] = sum;
        }
      }
      return float32(scores, [queries.length, vectors.length]);
    },
    dispose: async () => {},
  };
}
