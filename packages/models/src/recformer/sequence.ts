// Items as tokens: what a history becomes before an encoder reads it (RecFormer, arXiv 2305.13731, section 2.1).
import type { ItemSequence } from './batch.ts';
import type { TextLimits } from './config.ts';

/** An item's attributes in their order, the tokens of name and value apart. */
export type TokenisedItem = readonly {
  readonly name: readonly number[];
  readonly value: readonly number[];
}[];

export interface Fitted {
  readonly sequence: ItemSequence;
  /** Items, counted from the oldest, up to the newest of which a token was cut or that was left out. */
  readonly dropped: number;
}

/**
 * The first token, then the items, newest first. An attribute is name and value, cut together; at most so many
 * attributes an item, items, and tokens as `limits` say. An item without tokens still uses up its number.
 */
export function itemSequence(
  history: readonly TokenisedItem[],
  { maxAttributes, maxAttributeLength, maxItems, maxTokens }: TextLimits,
  startId: number,
): Fitted {
  const ids = [startId];
  const tokenTypes = [0];
  const itemPositions = [0];
  let whole = 0;
  for (const [place, item] of history.toReversed().slice(0, maxItems).entries()) {
    const attributes = item
      .slice(0, maxAttributes)
      .flatMap(({ name, value }) =>
        [...name.map((id) => [id, 1] as const), ...value.map((id) => [id, 2] as const)].slice(
          0,
          maxAttributeLength,
        ),
      );
    const room = maxTokens - ids.length;
    for (const [id, type] of attributes.slice(0, room)) {
      ids.push(id);
      tokenTypes.push(type);
      itemPositions.push(place + 1);
    }
    if (attributes.length > room) break;
    whole++;
  }
  return { sequence: { ids, tokenTypes, itemPositions }, dropped: history.length - whole };
}
