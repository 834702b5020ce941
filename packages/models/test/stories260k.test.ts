// stories260K against transformers: tokenizer, logits, hidden state, greedy continuation.
import { join } from 'node:path';
import { nodeRuntime } from '@fellrec/graph';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { openCheckpoint } from '../src/checkpoint/checkpoint.ts';
import { languageModel, type WholeLanguageModel } from '../src/language-model.ts';
import { loadTokenizer, type Tokenizer } from '../src/tokenizer.ts';
import { largestDifference } from './numbers.ts';
import { fixture, readJson, stories260k, temporaryFolder } from './shared.ts';

const cases = readJson<{
  greedy_from_bos: number[];
  greedy_text: string;
  prompt: string;
  prompt_ids: number[];
  last_logits: number[];
  last_hidden: number[];
  titles: { text: string; ids: number[]; decoded: string }[];
}>(join(fixture('stories260k'), 'cases.json'));

let tokenizer: Tokenizer;
let model: WholeLanguageModel;
const cacheDir = temporaryFolder();
beforeAll(async () => {
  tokenizer = await loadTokenizer(stories260k);
  model = languageModel(await openCheckpoint(stories260k, { cacheDir }), nodeRuntime());
});
afterAll(() => model.release());

describe('tokenizer', () => {
  test('ids and decoded text of titles', () => {
    expect(cases.titles).toHaveLength(64);
    for (const { text, ids, decoded } of cases.titles) {
      expect(tokenizer.encode(text)).toEqual(ids);
      expect(tokenizer.decode(ids)).toBe(decoded);
    }
  });

  test('the beginning of a sequence is marked once', () => {
    expect(tokenizer.encode(cases.prompt)).toEqual(cases.prompt_ids);
    expect(cases.prompt_ids[0]).toBe(1);
    expect(tokenizer.encodeContinuation(cases.prompt)).toEqual(cases.prompt_ids.slice(1));
    expect(tokenizer.decode([])).toBe('');
  });
});

test('logits and hidden state of the last token of a prompt', async () => {
  const found = await model.trace([{ ids: cases.prompt_ids }]);
  const last = (name: string, width: number) => {
    const start = (cases.prompt_ids.length - 1) * width;
    return (found[name]!.data as Float32Array).subarray(start, start + width);
  };
  expect(largestDifference(last('logits', 512), cases.last_logits)).toBeLessThan(1e-4);
  expect(largestDifference(last('hidden.5', 64), cases.last_hidden)).toBeLessThan(1e-4);
  const vectors = await model.vectors([cases.prompt_ids]);
  expect(largestDifference(vectors.data, cases.last_hidden)).toBeLessThan(1e-4);
});

test('greedy continuation of the beginning of a sequence', async () => {
  const maxNewTokens = cases.greedy_from_bos.length - 1;
  const [[best] = []] = await model.generate([[1]], { beams: 1, maxNewTokens, eosIds: [2] });
  expect([1, ...best!.ids]).toEqual(cases.greedy_from_bos);
  expect(tokenizer.decode(cases.greedy_from_bos)).toBe(cases.greedy_text);
});
