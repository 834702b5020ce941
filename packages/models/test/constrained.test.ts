// Beam search along a tree against transformers, and against all of the tree's sequences, scored one by one.
import { join } from 'node:path';
import { nodeRuntime } from '@fellrec/graph';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Checkpoint, openCheckpoint } from '../src/checkpoint/checkpoint.ts';
import type { Hypothesis } from '../src/generation.ts';
import { type Adapter, languageModel, type WholeLanguageModel } from '../src/language-model.ts';
import { projections } from '../src/lora.ts';
import { quantizeBase } from '../src/quantize.ts';
import { tokenTree } from '../src/token-tree.ts';
import { largestDifference, relativeDifference } from './numbers.ts';
import { fixture, readJson, stories260k, temporaryFolder } from './shared.ts';
import { end, plainLogProbability, prompts, randomAdapter, titles } from './titles.ts';

const cacheDir = temporaryFolder();
const runtime = nodeRuntime({ threads: 1 });
let checkpoint: Checkpoint;
let model: WholeLanguageModel;
let adapter: Adapter;
beforeAll(async () => {
  checkpoint = await openCheckpoint(stories260k, { cacheDir });
  model = languageModel(checkpoint, runtime);
  adapter = randomAdapter(checkpoint.config, { rank: 2, alpha: 4, dropout: 0, targetModules: projections });
});
afterAll(() => model.release());

const catalogue = titles(300, 1);
const tree = tokenTree(catalogue);
const options = { maxNewTokens: tree.depth, eosIds: [end], batch: 3 };

/** All titles that a user has not had, by log p / length, best first. */
async function exhaustive(
  prompt: readonly number[],
  history: readonly number[],
  used?: Adapter,
): Promise<Hypothesis[]> {
  const open = tree.without(history);
  const distinct = new Map(catalogue.map((ids) => [ids.join(), ids]));
  const all: Hypothesis[] = [];
  for (const ids of distinct.values()) {
    const sequences = open.find(ids);
    if (sequences.length === 0) continue;
    all.push({ ids, score: (await plainLogProbability(model, prompt, ids, used)) / ids.length, sequences });
  }
  return all.sort((a, b) => b.score - a.score);
}

const idsOf = (found: readonly Hypothesis[]) => found.map(({ ids }) => ids);
const scoresOf = (found: readonly Hypothesis[]) => found.map(({ score }) => score);
const sequencesOf = (found: readonly Hypothesis[]) => found.map(({ sequences }) => sequences);

/** With those scores, best first; of two that are as near as the arithmetic is exact, either may be. */
function expectSame(found: readonly Hypothesis[], expected: readonly Hypothesis[]): void {
  const byIds = new Map(expected.map((hypothesis) => [hypothesis.ids.join(), hypothesis]));
  expect(found).toHaveLength(byIds.size);
  expect(new Set(found.map(({ ids }) => ids.join()))).toEqual(new Set(byIds.keys()));
  for (const [rank, { ids, score, sequences }] of found.entries()) {
    const own = byIds.get(ids.join())!;
    expect(sequences).toEqual(own.sequences);
    expect(Math.abs(score - own.score)).toBeLessThan(1e-5);
    expect(Math.abs(score - expected[rank]!.score)).toBeLessThan(1e-5);
  }
}

const { sequences, cases } = readJson<{
  sequences: number[][];
  cases: { prompt: number[]; history: number[]; beams: Record<string, { ids: number[]; score: number }[]> }[];
}>(join(fixture('constrained'), 'cases.json'));

test.each([1, 4, 20])("finds the lists of transformers' constrained generate, %i beams", async (beams) => {
  const whole = tokenTree(sequences);
  const trees = cases.map(({ history }) => whole.without(history));
  const given = cases.map(({ prompt }) => prompt);
  const found = await model.generate(given, { ...options, maxNewTokens: whole.depth, beams, trees });
  for (const [i, { beams: lists }] of cases.entries()) {
    const expected = lists[beams]!;
    expect(idsOf(found[i]!), `prompt ${i}`).toEqual(expected.map(({ ids }) => ids));
    const scores = expected.map(({ score }) => score);
    expect(largestDifference(scoresOf(found[i]!), scores)).toBeLessThan(1e-4);
    for (const { ids, sequences: of } of found[i]!) expect(of!.map((s) => sequences[s])).toEqual([ids]);
  }
});

describe('a beam for every sequence', () => {
  test.each(['no adapter', 'an adapter'])('ranks the whole tree, %s', async (with_) => {
    const used = with_ === 'an adapter' ? adapter : undefined;
    const given = prompts(2, 1);
    const trees = given.map(() => tree);
    const found = await model.generate(given, { ...options, beams: 300, trees }, used);
    for (const [i, prompt] of given.entries()) expectSame(found[i]!, await exhaustive(prompt, [], used));
  });

  test("ranks what is left of each user's tree", async () => {
    const given = prompts(3, 2);
    const histories = [[], [4, 250, 17], catalogue.flatMap((_, index) => (index % 50 === 0 ? [] : [index]))];
    const trees = histories.map((history) => tree.without(history));
    const found = await model.generate(given, { ...options, beams: 300, trees });
    for (const [i, prompt] of given.entries()) expectSame(found[i]!, await exhaustive(prompt, histories[i]!));
    expect(found[2]!.length).toBeLessThanOrEqual(6);
  });
});

describe.each([1, 4, 20])('%i beams', (beams) => {
  test('come to sequences of the tree, no two the same, best first', async () => {
    const given = prompts(7, 3);
    const found = await model.generate(given, { ...options, beams, trees: given.map(() => tree) }, adapter);
    for (const [i, hypotheses] of found.entries()) {
      expect(hypotheses).toHaveLength(beams);
      expect(new Set(idsOf(hypotheses).map(String)).size).toBe(beams);
      expect(scoresOf(hypotheses)).toEqual(scoresOf(hypotheses).toSorted((a, b) => b - a));
      for (const { ids, score, sequences } of hypotheses) {
        expect(sequences).toEqual(catalogue.flatMap((title, s) => (`${title}` === `${ids}` ? [s] : [])));
        const expected = await plainLogProbability(model, given[i]!, ids, adapter);
        expect(Math.abs(score - expected / ids.length)).toBeLessThan(1e-5);
      }
    }
  });

  test('are of no title of the history', async () => {
    const given = prompts(5, 4);
    const first = await model.generate(given, { ...options, beams, trees: given.map(() => tree) });
    const histories = first.map((hypotheses) => hypotheses.flatMap(({ sequences }) => sequences!));
    const trees = histories.map((history) => tree.without(history));
    const found = await model.generate(given, { ...options, beams, trees });
    for (const [i, hypotheses] of found.entries()) {
      expect(hypotheses.length).toBeGreaterThan(0);
      const had = new Set(histories[i]);
      expect(sequencesOf(hypotheses).flatMap((indices) => indices!.filter((s) => had.has(s)))).toEqual([]);
    }
  });

  test('are fewer where a tree has fewer sequences; none where nothing is left', async () => {
    const given = prompts(6, 5);
    const small = [
      [300, 301, end],
      [300, end],
      [300, 301, 302, 303, 304, end],
      [300, end],
    ];
    const whole = tokenTree(small);
    const trees = [[], [0, 1, 2], [0, 1, 2, 3], [1], [1, 3], [0, 2]].map((history) => whole.without(history));
    const found = await model.generate(given, { ...options, beams, trees });
    const left = [[[0], [1, 3], [2]], [[3]], [], [[0], [2], [3]], [[0], [2]], [[1, 3]]];
    for (const [i, hypotheses] of found.entries()) {
      const sequences = sequencesOf(hypotheses).map(String).sort();
      if (beams === 1) expect(sequences).toHaveLength(Math.min(1, left[i]!.length));
      else expect(sequences).toEqual(left[i]!.map(String).sort());
      for (const { ids, score } of hypotheses) {
        const expected = await plainLogProbability(model, given[i]!, ids);
        expect(Math.abs(score - expected / ids.length)).toBeLessThan(1e-5);
      }
    }
  });

  test('end at leaves, whatever the end token', async () => {
    const given = prompts(2, 6);
    const trees = given.map(() => tokenTree([[300, end, 301], [300, end, 302], [303]]));
    const found = await model.generate(given, { beams, maxNewTokens: 3, eosIds: [end], trees });
    for (const hypotheses of found) expect(hypotheses).toHaveLength(Math.min(beams, 3));
  });
});

describe('trees', () => {
  const given = prompts(2, 7);
  const generate = (trees: Parameters<typeof model.generate>[1]['trees'], maxNewTokens = 12) =>
    model.generate(given, { beams: 2, maxNewTokens, eosIds: [end], ...(trees && { trees }) });

  test('are one for each prompt', async () => {
    await expect(generate([tree])).rejects.toThrow('1 trees for 2 prompts; one for each');
  });

  test('are not cut', async () => {
    const deep = tokenTree([
      [300, 301, end],
      [300, end],
    ]);
    await expect(generate([tokenTree([]), deep], 2)).rejects.toThrow(
      'maxNewTokens is 2, the longest sequence of a tree has 3 tokens',
    );
  });

  test('have tokens of the vocabulary', async () => {
    const foreign = tokenTree([[512, end]]);
    await expect(generate([foreign, foreign])).rejects.toThrow(
      'a tree has token 512, the vocabulary has 512',
    );
  });

  test('tell what is done, those that are empty first', async () => {
    const done: number[] = [];
    const trees = [tree, tokenTree([])];
    const onProgress = (count: number) => done.push(count);
    const found = await model.generate(given, { ...options, beams: 2, trees, onProgress });
    expect(found.map(({ length }) => length)).toEqual([2, 0]);
    expect(done).toEqual([2]);
    const nothing = [tokenTree([]), tree.without(catalogue.keys())];
    expect(await generate(nothing)).toEqual([[], []]);
  });
});

test.each(['int8', 'int8-fast'] as const)('%s: beams and likelihoods score alike', async (base) => {
  const given = prompts(4, 8);
  const quantized = languageModel(
    checkpoint,
    runtime,
    await quantizeBase(checkpoint, { base, calibration: prompts(8, 9), runtime, cacheDir }),
  );
  const trees = given.map(() => tree);
  const found = await quantized.generate(given, { ...options, beams: 20, trees }, adapter);
  const likelihoods = await quantized.likelihoods(given, found.map(idsOf), {}, adapter);
  for (const [i, hypotheses] of found.entries()) {
    expect(hypotheses).toHaveLength(20);
    const means = likelihoods[i]!.map(({ logProbability, tokens }) => logProbability / tokens);
    expect(relativeDifference(scoresOf(hypotheses), means)).toBeLessThan(base === 'int8' ? 3e-4 : 1e-2);
  }
  await quantized.release();
});
