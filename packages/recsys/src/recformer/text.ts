// Items and histories as the encoder reads them: attributes as name and value, the newest item first.
import {
  type Fitted,
  itemSequence,
  type RecformerConfig,
  type TokenisedItem,
  type Tokenizer,
} from '@fellrec/models';
import type { Catalogue, Item } from '../catalogue.ts';

export interface TextOptions {
  readonly catalogue: Catalogue;
  readonly tokenizer: Tokenizer;
  /** Attributes in their order; `title` is the item's title. What an item does not have is left out. */
  readonly attributes: readonly string[];
  readonly config: Pick<RecformerConfig, 'limits' | 'startId'>;
}

export interface ItemText {
  /** The input of a history, oldest item first. */
  history(items: readonly number[]): Fitted;
  /** The input of one item. */
  item(index: number): Fitted;
}

/** The texts of a catalogue, tokenised once. @throws if an attribute is one of no item, or if there are too many. */
export function itemText({ catalogue, tokenizer, attributes, config }: TextOptions): ItemText {
  const { items } = catalogue;
  const unknown = attributes.filter((name) => !items.some((item) => textOf(item, name)));
  const twice = attributes.find((name, i) => attributes.indexOf(name) !== i);
  if (twice) throw new Error(`recformer: the attribute "${twice}" is listed twice`);
  if (unknown.includes('title')) throw new Error('recformer: all titles of the catalogue are empty');
  if (unknown.length > 0)
    throw new Error(
      `recformer: no item has the attribute ${unknown.map((name) => `"${name}"`).join(', ')}; the catalogue has ${known(items).join(', ')}`,
    );
  const most = config.limits.maxAttributes;
  if (attributes.length > most)
    throw new Error(
      `recformer: ${attributes.length} attributes (${attributes.join(', ')}); the model reads ${most} of an item`,
    );
  const names = new Map(attributes.map((name) => [name, tokenizer.encodeContinuation(name)]));
  const tokenised: TokenisedItem[] = items.map((item) =>
    attributes.flatMap((name) => {
      const value = textOf(item, name);
      return value ? [{ name: names.get(name)!, value: tokenizer.encodeContinuation(value) }] : [];
    }),
  );
  const sequence = (history: readonly number[]) =>
    itemSequence(
      history.map((item) => tokenised[item]!),
      config.limits,
      config.startId,
    );
  return { history: sequence, item: (index) => sequence([index]) };
}

function textOf(item: Item, name: string): string | undefined {
  if (name === 'title') return item.title;
  return Object.hasOwn(item.attributes, name) ? item.attributes[name] : undefined;
}

function known(items: readonly Item[]): string[] {
  return ['title', ...new Set(items.flatMap(({ attributes }) => Object.keys(attributes)))];
}
