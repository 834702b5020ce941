// A tree against the plain list of its sequences.
import { random } from '@fellrec/graph';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type TokenTree, type TreeNode, tokenTree } from '../src/token-tree.ts';

const end = 2;
/** Every sequence below a node, with its indices. */
function sequencesBelow(
  tree: TokenTree,
  node: TreeNode = tree.root,
  begun: readonly number[] = [],
): string[] {
  return tree.branches(node).flatMap(({ token, node: child, ends }) => {
    const ids = [...begun, token];
    return ends ? [`${ids}: ${tree.find(ids)}`] : sequencesBelow(tree, child, ids);
  });
}

/** The same from the list: sequences that are not left out, in lexicographic order, with their indices. */
function listed(sequences: readonly (readonly number[])[], leftOut: ReadonlySet<number>): string[] {
  const indices = new Map<string, number[]>();
  const order = sequences.map((ids, index) => ({ ids, index })).filter(({ index }) => !leftOut.has(index));
  order.sort((a, b) => {
    const t = a.ids.findIndex((id, t) => id !== b.ids[t]);
    return t === -1 ? 0 : a.ids[t]! - b.ids[t]!;
  });
  for (const { ids, index } of order) indices.set(`${ids}`, [...(indices.get(`${ids}`) ?? []), index]);
  return [...indices].map(([ids, of]) => `${ids}: ${of}`);
}

const sequence = fc.array(fc.integer({ min: 3, max: 6 }), { maxLength: 5 }).map((ids) => [...ids, end]);
const sequences = fc.array(sequence, { maxLength: 30 });

test('a tree holds the sequences that it is made of', () => {
  fc.assert(
    fc.property(sequences, (all) => {
      const tree = tokenTree(all);
      expect(sequencesBelow(tree)).toEqual(listed(all, new Set()));
      expect(tree.size).toBe(all.length);
      expect(tree.depth).toBe(Math.max(0, ...all.map(({ length }) => length)));
    }),
  );
});

test('a tree without some sequences is that of the others, whatever is left out first', () => {
  const chosen = fc.array(fc.nat({ max: 29 }));
  fc.assert(
    fc.property(sequences, chosen, chosen, (all, some, more) => {
      const [first, second] = [some, more].map((indices) => indices.filter((index) => index < all.length));
      const whole = tokenTree(all);
      const tree = whole.without(first!).without(second!);
      const leftOut = new Set([...first!, ...second!]);
      expect(sequencesBelow(tree)).toEqual(listed(all, leftOut));
      expect(tree.size).toBe(all.length - leftOut.size);
      for (const index of leftOut) expect(tree.find(all[index]!)).not.toContain(index);
      expect(sequencesBelow(whole)).toEqual(listed(all, new Set()));
    }),
  );
});

describe('sequences', () => {
  test('that are equal share a leaf, which is left while one of them is', () => {
    const tree = tokenTree([
      [5, 4, end],
      [7, end],
      [5, 4, end],
    ]);
    expect(tree.find([5, 4, end])).toEqual([0, 2]);
    expect(tree.without([0]).find([5, 4, end])).toEqual([2]);
    expect(
      tree
        .without([2, 0])
        .branches(tree.root)
        .map(({ token }) => token),
    ).toEqual([7]);
    expect(tree.without([0, 1, 2]).branches(tree.root)).toEqual([]);
  });

  test('that begin alike part at the end token', () => {
    const tree = tokenTree([
      [5, end],
      [5, 6, end],
    ]);
    const node = tree.descend(tree.root, 5)!;
    expect(tree.branches(node)).toMatchObject([
      { token: end, ends: true },
      { token: 6, ends: false },
    ]);
    expect(tree.branches(tree.descend(node, end)!)).toEqual([]);
    expect(tree.find([5])).toEqual([]);
    expect(tree.find([5, end, end])).toEqual([]);
    expect(tree.without([0]).descend(node, end)).toBeUndefined();
  });

  test('without an end are refused, and indices that there are not', () => {
    expect(() => tokenTree([[5, end], [], [6, end], []])).toThrow('sequences 1, 3 are empty; end each with');
    expect(() =>
      tokenTree([
        [5, 6, end],
        [4, end],
        [5, 6],
      ]),
    ).toThrow('sequence 2 begins its sequence 0');
    expect(() => tokenTree([[5, end]]).without([1])).toThrow('no sequence 1 to leave out; it has 1');
  });
});

test('a catalogue of 17 000 titles finds each of them', () => {
  const draw = random(1, 'titles');
  const titles = Array.from({ length: 17_000 }, () => [
    ...Array.from({ length: 10 + draw.integer(10) }, (_, t) => 3 + draw.integer(t < 3 ? 20 : 5000)),
    end,
  ]);
  const tree = tokenTree(titles);
  expect(titles.every((ids, index) => tree.find(ids).includes(index))).toBe(true);
  expect(tree.without([3, 14, 15]).size).toBe(16_997);
});
