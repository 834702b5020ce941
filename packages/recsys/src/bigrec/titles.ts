// A catalogue's titles as a language model says them: as tokens, and as a tree that beams run along.
import { type TokenTree, tokenTree } from '@fellrec/models';
import { answerTokens, type TextOptions } from './text.ts';

/** Made when they are first asked for, and once: recommenders with one catalogue and tokenizer share them. */
export interface Titles {
  /** By item: what is said of it, with the quotes and the end token. */
  tokens(): readonly (readonly number[])[];
  /** Of those that have at most `maxNewTokens` tokens. @throws if there is none. */
  tree(): TitleTree;
  /** Items whose titles have more. @throws if all have. */
  tooLong(): readonly number[];
}

export interface TitleTree {
  readonly tree: TokenTree;
  /** The tree's sequences of items, of those that it has. */
  placesOf(items: readonly number[]): number[];
  readonly itemsOf: readonly number[];
}

export function catalogueTitles(
  text: Pick<TextOptions, 'catalogue' | 'tokenizer' | 'eosIds'>,
  maxNewTokens: number,
): Titles {
  let tokens: readonly (readonly number[])[] | undefined;
  let tree: TitleTree | undefined;
  let tooLong: readonly number[] | undefined;
  const titles: Titles = {
    tokens() {
      tokens ??= text.catalogue.items.map(({ title }) => answerTokens(title, text));
      return tokens;
    },
    tree() {
      tree ??= treeOf(titles.tokens(), titles.tooLong());
      return tree;
    },
    tooLong() {
      tooLong ??= [...titles.tokens().entries()].flatMap(([item, ids]) =>
        ids.length > maxNewTokens ? item : [],
      );
      if (tooLong.length === titles.tokens().length)
        throw new Error(
          `bigrec: no title has at most ${maxNewTokens} tokens, so none can be said; raise generation.maxNewTokens`,
        );
      return tooLong;
    },
  };
  return titles;
}

function treeOf(answers: readonly (readonly number[])[], leftOut: readonly number[]): TitleTree {
  const without = new Set(leftOut);
  const itemsOf = [...answers.keys()].filter((item) => !without.has(item));
  const places = new Map(itemsOf.map((item, place) => [item, place]));
  return {
    tree: tokenTree(itemsOf.map((item) => answers[item]!)),
    placesOf: (items) => [...new Set(items)].flatMap((item) => places.get(item) ?? []),
    itemsOf,
  };
}
