import { expect, test } from 'vitest';
import { catalogue } from '../src/catalogue.ts';
import { cachedVectors } from '../src/title-vectors.ts';
import { temporaryFolder } from './shared.ts';

const cacheDir = temporaryFolder();
const items = (...titles: string[]) =>
  catalogue(titles.map((title, i) => ({ id: `${i}`, title, attributes: {} })));

test('vectors of titles are computed once for a catalogue, a model and a tokenizer', async () => {
  const computed: string[] = [];
  const vectorsOf = async (titles: readonly string[], ...computedBy: string[]) => {
    const of = { catalogue: items(...titles), computedBy, cacheDir };
    const found = await cachedVectors(of, async (asked) => {
      computed.push(`${computedBy}: ${asked}`);
      return asked.map((title) => Float32Array.of(title.length, computedBy.join().length));
    });
    return found.map((vector) => [...vector]);
  };
  const first = await vectorsOf(['a', 'bcd'], 'model', 'words');
  expect(first).toEqual([
    [1, 11],
    [3, 11],
  ]);
  expect(await vectorsOf(['a', 'bcd'], 'model', 'words')).toEqual(first);
  await vectorsOf(['a', 'bcd'], 'model', 'letters');
  await vectorsOf(['a', 'bcd'], 'other', 'words');
  await vectorsOf(['a', 'bce'], 'model', 'words');
  expect(computed).toEqual([
    'model,words: a,bcd',
    'model,letters: a,bcd',
    'other,words: a,bcd',
    'model,words: a,bce',
  ]);
});
