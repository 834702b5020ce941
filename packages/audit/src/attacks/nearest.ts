// The two attacks that need no training, in the manner of BEI and HEI (arXiv 2405.11916): the model's own head on a
// layer's states, and the nearest row of the embedding table.
import {
  add,
  div,
  input,
  linear,
  mul,
  scalar,
  scale,
  sqrt,
  sub,
  sumLast,
  type Tensor,
  topIndices,
  transpose,
} from '@fellrec/graph';
import { rowBlocks } from '../layerwise.ts';
import { tokenClaims } from '../metrics.ts';
import type { StudyOptions } from '../options.ts';
import type { StateAttack } from './attack.ts';

const names = ['head', 'embedding-cosine', 'embedding-l2'] as const;

/** Rows at once: logits of a vocabulary of 49,152 take 100 MB then. */
const rowsAtOnce = 512;

/** Those of the attacks that are asked for, in one program. */
export async function nearestAttacks({ model, attacks, victims }: StudyOptions): Promise<StateAttack> {
  const { cut, runtime } = model;
  const asked = names.filter((name) => attacks.includes(name));
  const hidden = input('hidden', 'float32', ['rows', cut.hiddenSize]);
  const words = cut.words();
  const products = linear(hidden, words); // [rows, vocabulary]
  const squares = transpose(sumLast(mul(words, words)), [1, 0]); // [1, vocabulary]
  const scores = {
    head: () => cut.head(hidden),
    // A row of zeros, as a padding token has, is no neighbour of anything.
    'embedding-cosine': () => mul(products, div(scalar(1), sqrt(add(squares, scalar(1e-30))))),
    // -|h - e|^2, without |h|^2 which is the same for all.
    'embedding-l2': () => sub(scale(products, 2), squares),
  };
  const program = await runtime.compile(
    Object.fromEntries(asked.map((name) => [name, topIndices(scores[name](), 1)])),
  );
  return {
    selections: [],
    async at(depth, { victims: states }) {
      const tokens = new Map(asked.map((name) => [name, new Int32Array(states.dims[0]!)]));
      for (const { from, part } of rowBlocks(states, rowsAtOnce)) {
        const tops: Record<string, Tensor> = await program.run({ hidden: part });
        for (const [name, found] of tokens) found.set(Int32Array.from(tops[name]!.data, Number), from);
      }
      return [...tokens].map(([attack, found]) => ({ attack, depth, claims: tokenClaims(found, victims) }));
    },
    dispose: () => program.dispose(),
  };
}
