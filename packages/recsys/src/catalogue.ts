// Items. Inside the program an item is its index in its catalogue; ids and titles appear only at the boundary.
import { createHash } from 'node:crypto';

export interface Item {
  readonly id: string;
  readonly title: string;
  readonly attributes: Readonly<Record<string, string>>;
}

export interface Catalogue {
  readonly items: readonly Item[];
  /** sha256 of ids and titles: names what is computed from a catalogue. */
  readonly hash: string;
  /** The index of an item. @throws if the catalogue has no such id. */
  indexOf(id: string): number;
}

export function catalogue(items: readonly Item[]): Catalogue {
  const byId = new Map(items.map(({ id }, index) => [id, index]));
  const hash = createHash('sha256').update(JSON.stringify(items.map(({ id, title }) => [id, title])));
  return {
    items,
    hash: hash.digest('hex'),
    indexOf(id) {
      const index = byId.get(id);
      if (index === undefined) throw new Error(`catalogue: no item has the id "${id}"`);
      return index;
    },
  };
}
