import type { Dataset } from '@fellrec/recsys';
import { testSamples } from '@fellrec/recsys';
import { beforeAll, describe, expect, test } from 'vitest';
import { historyPlaces, type SequenceMaker, titlePlaces } from '../src/sequences.ts';
import { openSample, openStories, storyPrompts } from './shared.ts';

let dataset: Dataset;
let tokenizer: Awaited<ReturnType<typeof openStories>>['tokenizer'];
let maker: SequenceMaker;
beforeAll(async () => {
  dataset = await openSample();
  ({ tokenizer } = await openStories());
  maker = storyPrompts(dataset.catalogue, tokenizer);
});

describe('which tokens of a prompt say something about its user', () => {
  test("the titles', each item's its own, and the target's; nothing of the template", () => {
    const title = (item: number) => dataset.catalogue.items[item]!.title;
    for (const sample of dataset.users.slice(0, 20).flatMap(testSamples)) {
      const made = maker.history(sample)!;
      const textAt = (places: readonly number[]) =>
        tokenizer.decode(places.map((place) => made.ids[place]!)).trim();
      // This tokenizer has quotation marks and commas as tokens of their own.
      for (const { item, places } of made.items) expect(textAt(places)).toBe(title(item));
      expect(textAt(made.answer)).toContain(title(made.target));
      const own = new Set([...historyPlaces(made), ...made.answer]);
      const template = tokenizer.decode(made.ids.filter((_, place) => !own.has(place)));
      expect(template).toContain('please recommend a new video game');
      for (const { item } of made.items) expect(template).not.toContain(title(item));
    }
  });

  test('a title that stands there twice is found twice, one that does not at no place', () => {
    const text = 'before:"Halo", "Halo 3", "Halo"';
    const ids = tokenizer.encode(text);
    const [first, second, third, none] = titlePlaces(ids, ['Halo', 'Halo 3', 'Halo', 'Doom'], tokenizer);
    expect(first!.at(-1)!).toBeLessThan(second![0]!);
    expect(second!.at(-1)!).toBeLessThan(third![0]!);
    expect(none).toEqual([]);
  });

  test('a character of several tokens belongs to its title with all of them', () => {
    for (const title of ['塞尔达传说', 'Ōkami ☃', '½ Life', '𝔻oom 🎮', '\ufffd']) {
      const ids = tokenizer.encode(`before:"${title}", "Halo"`);
      const [places, halo] = titlePlaces(ids, [title, 'Halo'], tokenizer);
      expect(tokenizer.decode(places!.map((place) => ids[place]!)).trim()).toBe(title);
      expect(tokenizer.decode(halo!.map((place) => ids[place]!)).trim()).toBe('Halo');
    }
  });

  test('of an item without a title there is nothing to recover', () => {
    const [sample] = dataset.users.flatMap(testSamples);
    const newest = sample!.history.at(-1)!;
    const items = dataset.catalogue.items.map((item, i) => (i === newest ? { ...item, title: '' } : item));
    const untitled = storyPrompts({ ...dataset.catalogue, items }, tokenizer);
    expect(maker.history(sample!)!.items.map(({ item }) => item)).toContain(newest);
    const { items: found } = untitled.history(sample!)!;
    expect(found.map(({ item }) => item)).not.toContain(newest);
    expect(found.every(({ places }) => places.length > 0)).toBe(true);
    expect(untitled.item(newest)).toBeUndefined();
  });

  test('what does not fit is left out', () => {
    const [sample] = dataset.users.flatMap(testSamples);
    const short = storyPrompts(
      {
        ...dataset.catalogue,
        items: dataset.catalogue.items.map((item) => ({ ...item, title: item.title.repeat(40) })),
      },
      tokenizer,
    );
    expect(short.history(sample!)).toBeUndefined();
    expect(short.item(0)).toBeUndefined();
  });
});
