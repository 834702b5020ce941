// What a search reads of the next tokens' log-probabilities: the likeliest of the vocabulary, or those that go on along
// a tree. These are the full vocabulary's and are not scaled to sum to 1 over the tree's, as with transformers'
// `prefix_allowed_tokens_fn`.
import { type Float32Tensor, int64, type Tensor } from '@fellrec/graph';
import type { BeamTokens, NextTokens } from './generation.ts';
import type { WantedTokens } from './programs.ts';
import type { TokenTree, TreeBranch, TreeNode } from './token-tree.ts';

export interface NextTokensReader {
  /** What the programs are to return. */
  readonly wanted: WantedTokens;
  /** What a program is fed for it: the prompts' pass, or a decoding step. */
  feeds(step?: BeamTokens): Record<string, Tensor>;
  read(found: Readonly<Record<string, Tensor>>): NextTokens;
}

export function likeliestTokens(count: number): NextTokensReader {
  return {
    wanted: count,
    feeds: () => ({}),
    read: ({ nextIds, logProbabilities }) => ({
      perRow: nextIds!.dims[1]!,
      ids: nextIds!.data,
      logProbabilities: (logProbabilities as Float32Tensor).data,
    }),
  };
}

export interface AlongTreesOptions {
  readonly beams: number;
  /** Next tokens of a row that the search looks at. */
  readonly count: number;
  readonly vocabularySize: number;
}

/** Each user's beams along the user's tree, of which something is left. A reader serves one search. */
export function alongTrees(
  trees: readonly TokenTree[],
  { beams, count, vocabularySize }: AlongTreesOptions,
): NextTokensReader {
  // Where every beam of every user has come to.
  let nodes: readonly TreeNode[] = trees.flatMap(({ root }) => new Array<TreeNode>(beams).fill(root));
  let branches: readonly (readonly TreeBranch[])[] = [];
  return {
    wanted: 'chosen',
    feeds(step) {
      if (!step) branches = trees.map((tree) => tree.branches(tree.root));
      else {
        const treeOf = (row: number) => trees[step.users[Math.floor(row / beams)]!]!;
        nodes = step.tokens.map((token, row) => treeOf(row).descend(nodes[step.parents[row]!]!, token)!);
        branches = nodes.map((node, row) => treeOf(row).branches(node));
      }
      const chosen = branches.flatMap((open, row) => open.map(({ token }) => placeOf(row, token)));
      return { chosen: int64(chosen, [chosen.length]) };
    },
    read({ logProbabilities }) {
      const { data } = logProbabilities as Float32Tensor;
      const perRow = Math.min(count, Math.max(...branches.map(({ length }) => length)));
      const next = {
        perRow,
        ids: new Int32Array(branches.length * perRow),
        logProbabilities: new Float32Array(branches.length * perRow).fill(Number.NEGATIVE_INFINITY),
        ends: new Array<boolean>(branches.length * perRow).fill(false),
      };
      let first = 0;
      branches.forEach((open, row) => {
        const ranked = open
          .map(({ token, ends }, i) => ({ token, ends, logProbability: data[first + i]! }))
          .sort((a, b) => b.logProbability - a.logProbability)
          .slice(0, perRow);
        ranked.forEach(({ token, ends, logProbability }, i) => {
          const at = row * perRow + i;
          next.ids[at] = token;
          next.ends[at] = ends;
          next.logProbabilities[at] = logProbability;
        });
        first += open.length;
      });
      return next;
    },
  };

  /** In [rows * vocabulary]. */
  function placeOf(row: number, token: number): number {
    if (!(token >= 0 && token < vocabularySize))
      throw new Error(
        `model: a tree has token ${token}, the vocabulary has ${vocabularySize}; is it another model's tokenizer?`,
      );
    return row * vocabularySize + token;
  }
}
