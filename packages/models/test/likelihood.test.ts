// Likelihoods of given continuations against each computed alone.
import { nodeRuntime } from '@fellrec/graph';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { openCheckpoint } from '../src/checkpoint/checkpoint.ts';
import { type Adapter, languageModel, type WholeLanguageModel } from '../src/language-model.ts';
import { projections } from '../src/lora.ts';
import { relativeDifference } from './numbers.ts';
import { stories260k, temporaryFolder } from './shared.ts';
import { end, plainLogProbability, prompts, randomAdapter, titles } from './titles.ts';

const cacheDir = temporaryFolder();
let model: WholeLanguageModel;
let adapter: Adapter;
beforeAll(async () => {
  const checkpoint = await openCheckpoint(stories260k, { cacheDir });
  model = languageModel(checkpoint, nodeRuntime({ threads: 1 }));
  adapter = randomAdapter(checkpoint.config, { rank: 2, alpha: 4, dropout: 0, targetModules: projections });
});
afterAll(() => model.release());

const candidates = titles(40, 1);
/** Every prompt has candidates of its own, and not as many. */
const cases = {
  'prompts that begin alike': prompts(5, 1),
  'prompts that are the same': new Array<number[]>(4).fill(prompts(1, 2)[0]!),
  'a prompt alone': prompts(1, 3),
  'prompts of one token': [[1], [300]],
};

describe.each(Object.entries(cases))('%s', (_, given) => {
  const continuations = given.map((_, i) => candidates.slice(3 * i, 3 * i + 10 + i));

  test.each(['no adapter', 'an adapter'])('have continuations as likely as alone, %s', async (with_) => {
    const used = with_ === 'an adapter' ? adapter : undefined;
    for (const batch of [1, 4, 100]) {
      const found = await model.likelihoods(given, continuations, { batch }, used);
      expect(found.map(({ length }) => length)).toEqual(continuations.map(({ length }) => length));
      for (const [i, prompt] of given.entries()) {
        const expected = [];
        for (const ids of continuations[i]!)
          expected.push(await plainLogProbability(model, prompt, ids, used));
        expect(
          relativeDifference(
            found[i]!.map(({ logProbability }) => logProbability),
            expected,
          ),
        ).toBeLessThan(1e-6);
        expect(found[i]!.map(({ tokens }) => tokens)).toEqual(continuations[i]!.map(({ length }) => length));
      }
    }
  });
});

test('of a vocabulary of one-token continuations sum to 1', async () => {
  const all = Array.from({ length: 512 }, (_, id) => [id]);
  const [found] = await model.likelihoods(prompts(1, 4), [all], { batch: 200 });
  const sum = found!.reduce((total, { logProbability }) => total + Math.exp(logProbability), 0);
  expect(Math.abs(sum - 1)).toBeLessThan(1e-5);
});

test('need no candidates', async () => {
  const given = prompts(3, 5);
  const found = await model.likelihoods(given, [[], [[5, end]], []]);
  expect(found.map(({ length }) => length)).toEqual([0, 1, 0]);
  expect(await model.likelihoods([], [])).toEqual([]);
});

test('need a token in every prompt and continuation', async () => {
  const wrong = [[[5], []], [[]], [[7]]];
  await expect(model.likelihoods([[1], [], [1]], wrong)).rejects.toThrow(
    'no token in continuation 1 of prompt 0, prompt 1, continuation 0 of prompt 1; each needs one',
  );
  await expect(model.likelihoods([[1]], [])).rejects.toThrow('continuations of 0 prompts, there are 1');
});
