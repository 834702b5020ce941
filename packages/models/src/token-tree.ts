// Token sequences as a tree (a trie): what may follow each of their beginnings. It is held as the sequences in
// lexicographic order: a node is the range of those that begin alike, so a tree is little more than its tokens, and one
// without some of its sequences is the same with their places left out.

/** The sequences that have their first `depth` tokens in common: from .. to - 1 in lexicographic order. */
export interface TreeNode {
  readonly depth: number;
  readonly from: number;
  readonly to: number;
}

export interface TreeBranch {
  readonly token: number;
  readonly node: TreeNode;
  /** Whether the node is a leaf: its sequences are whole. */
  readonly ends: boolean;
}

export interface TokenTree {
  /** Tokens of the longest sequence, left out or not. */
  readonly depth: number;
  /** Sequences that are left. */
  readonly size: number;
  readonly root: TreeNode;
  /** The children that have a sequence left below them, by ascending token; none of a leaf. */
  branches(node: TreeNode): TreeBranch[];
  /** The child with this token; undefined if no sequence is left below it. */
  descend(node: TreeNode, token: number): TreeNode | undefined;
  /** Indices of the sequences left that have these tokens, ascending; one, or more if some are equal. */
  find(ids: readonly number[]): number[];
  /** Without more of its sequences, by their indices: O(r log r) for r left out in all. @throws if there is no such index. */
  without(indices: Iterable<number>): TokenTree;
}

/**
 * The tree of sequences that each end with the end token, so that none begins another. Equal ones share a leaf.
 * @throws if a sequence is empty or begins another.
 */
export function tokenTree(sequences: readonly (readonly number[])[]): TokenTree {
  const empty = sequences.flatMap(({ length }, index) => (length === 0 ? [index] : []));
  if (empty.length > 0)
    throw new Error(
      `model: a token tree's sequences ${empty.join(', ')} are empty; end each with the end token`,
    );
  const sorted = inOrder(sequences);
  const { order, length, token } = sorted;
  for (let place = 1; place < order.length; place++) {
    const [shorter, longer] = [length(place - 1), length(place)];
    if (shorter < longer && commonLength(sorted, place) === shorter)
      throw new Error(
        `model: a token tree's sequence ${order[place - 1]} begins its sequence ${order[place]}; end each with the end token`,
      );
  }
  const places = new Uint32Array(order.length);
  order.forEach((index, place) => {
    places[index] = place;
  });
  const depth = sequences.reduce((longest, ids) => Math.max(longest, ids.length), 0);

  /** Without the sequences at some places, ascending. */
  function view(leftOut: Uint32Array): TokenTree {
    const leftOutBefore = (place: number) => firstPlace(0, leftOut.length, (i) => leftOut[i]! >= place);
    const left = ({ from, to }: TreeNode) => to - from - (leftOutBefore(to) - leftOutBefore(from));
    const isLeftOut = (place: number) => leftOut[leftOutBefore(place)] === place;
    const root = { depth: 0, from: 0, to: order.length };
    const tree: TokenTree = {
      depth,
      size: left(root),
      root,
      branches(node) {
        const found: TreeBranch[] = [];
        if (isLeaf(node)) return found;
        for (let from = node.from; from < node.to; ) {
          const next = token(from, node.depth);
          const to = firstPlace(from, node.to, (place) => token(place, node.depth) > next);
          const child = { depth: node.depth + 1, from, to };
          if (left(child) > 0) found.push({ token: next, node: child, ends: isLeaf(child) });
          from = to;
        }
        return found;
      },
      descend(node, next) {
        if (isLeaf(node)) return undefined;
        const from = firstPlace(node.from, node.to, (place) => token(place, node.depth) >= next);
        const to = firstPlace(from, node.to, (place) => token(place, node.depth) > next);
        const child = { depth: node.depth + 1, from, to };
        return left(child) > 0 ? child : undefined;
      },
      find(ids) {
        let node: TreeNode | undefined = root;
        for (const id of ids) node = node && tree.descend(node, id);
        if (!node || !isLeaf(node)) return [];
        const { from, to } = node;
        return Array.from(order.subarray(from, to)).filter((index) => !isLeftOut(places[index]!));
      },
      without(indices) {
        const all = new Set(leftOut);
        for (const index of indices) {
          const place = places[index];
          if (place === undefined)
            throw new Error(
              `model: a token tree has no sequence ${index} to leave out; it has ${order.length}`,
            );
          all.add(place);
        }
        return view(Uint32Array.from(all).sort());
      },
    };
    return tree;
  }

  /** Either all sequences of a node end at its depth, or none. */
  function isLeaf(node: TreeNode): boolean {
    return node.from < node.to && length(node.from) === node.depth;
  }

  return view(new Uint32Array(0));
}

/** Sequences in lexicographic order; of equal ones the first index first. */
interface InOrder {
  /** Indices of the sequences. */
  readonly order: Uint32Array;
  /** Tokens of the sequence at a place of the order. */
  length(place: number): number;
  token(place: number, depth: number): number;
}

function inOrder(sequences: readonly (readonly number[])[]): InOrder {
  const compare = (a: number, b: number) => {
    const [one, other] = [sequences[a]!, sequences[b]!];
    const shared = Math.min(one.length, other.length);
    for (let t = 0; t < shared; t++) if (one[t] !== other[t]) return one[t]! - other[t]!;
    return one.length - other.length || a - b;
  };
  const order = Uint32Array.from(sequences.keys()).sort(compare);
  const offsets = new Uint32Array(order.length + 1);
  order.forEach((index, place) => {
    offsets[place + 1] = offsets[place]! + sequences[index]!.length;
  });
  const tokens = new Int32Array(offsets.at(-1)!);
  order.forEach((index, place) => {
    tokens.set(sequences[index]!, offsets[place]);
  });
  return {
    order,
    length: (place) => offsets[place + 1]! - offsets[place]!,
    token: (place, depth) => tokens[offsets[place]! + depth]!,
  };
}

/** How many tokens the sequence at a place has in common with the one before. */
function commonLength({ length, token }: InOrder, place: number): number {
  const shorter = Math.min(length(place - 1), length(place));
  let common = 0;
  while (common < shorter && token(place - 1, common) === token(place, common)) common++;
  return common;
}

/** The first of from .. to - 1 that `isReached` holds for, and for all after it; `to` if none. */
function firstPlace(from: number, to: number, isReached: (place: number) => boolean): number {
  let [low, high] = [from, to];
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (isReached(middle)) high = middle;
    else low = middle + 1;
  }
  return low;
}
