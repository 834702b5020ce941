// Both directions of matching at a cut of the embedded model: from states to tokens, from a gradient to the target.
import { type Float32Tensor, float32, random } from '@fellrec/graph';
import { ignoredLabel, initialAdapter, localMiddle, splitLanguageModel } from '@fellrec/models';
import { renderAnswer, subset, testSamples } from '@fellrec/recsys';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { openLabelMatcher } from '../src/gradients/label-matching.ts';
import { type MatchOptions, openMatcher } from '../src/gradients/matching.ts';
import { cosine } from '../src/gradients/vectors.ts';
import { depths, offsetsOf, rowsBetween } from '../src/layerwise.ts';
import { claimedPlaces } from '../src/metrics.ts';
import { openSample, openStories, runtime, storyPrompts } from './shared.ts';

const { checkpoint, model, tokenizer } = await openStories();
const { catalogue, users } = await openSample();
const { history } = storyPrompts(catalogue, tokenizer);
const samples = subset(users.flatMap(testSamples), 6, 1, 'matching');
const sequences = samples.map((sample) => history(sample)!);
const answers = catalogue.items.map(({ title }) => [...tokenizer.encodeContinuation(renderAnswer(title)), 2]);
const last = model.cut.layerCount - 1;
const d = model.cut.hiddenSize;
/** Of each sequence, [tokens, d], by depth. */
const states: Float32Tensor[][] = [];

/** The end token was never read in training: its embedding is that of any byte. */
const withoutEnd = (tokens: readonly number[]) => tokens.slice(0, -1);

beforeAll(async () => {
  const places = sequences.map(({ ids }) => ids.map((_, place) => place));
  const offsets = offsetsOf(sequences.map(({ ids }) => ids.length));
  for await (const { states: found } of depths(model, [{ sequences, places }], last))
    states.push(
      sequences.map(({ ids }, i) => {
        const own = rowsBetween(found[0]!, offsets[i]!, offsets[i]! + ids.length);
        return float32(own.data.slice(), own.dims);
      }),
    );
});
afterAll(() => model.layers.release());

test('from 70 % of the tokens, states at depth 1 give more, and the objective falls', async () => {
  const matcher = await openMatcher(model);
  const options: MatchOptions = { k: 1, steps: 60, learningRate: 0.3, candidates: 16, checks: 32 };
  const { uniform, integer } = random(1, 'corrupted');
  for (const [user, sequence] of sequences.slice(0, 2).entries()) {
    const places = claimedPlaces(sequence);
    const guess = [...sequence.ids];
    for (const place of places) if (uniform() < 0.3) guess[place] = integer(512);
    const right = (tokens: readonly number[]) =>
      places.filter((place) => tokens[place] === sequence.ids[place]).length / places.length;
    const { rounded, tokens, objective } = await matcher.match(states[1]![user]!, guess, options);
    expect(objective.at(-1)! / objective[0]!).toBeLessThan(0.2);
    expect(right(rounded)).toBeGreaterThan(right(guess) + 0.1);
    expect(right(tokens)).toBeGreaterThanOrEqual(right(rounded));
  }
  await matcher.dispose();
});

test('from the true tokens nothing is changed', async () => {
  const matcher = await openMatcher(model);
  const { ids } = sequences[0]!;
  const options: MatchOptions = { k: 2, steps: 5, learningRate: 0.1, candidates: 4, checks: 8 };
  const { tokens, objective } = await matcher.match(states[2]![0]!, ids, options);
  expect(objective[0]).toBeLessThan(1e-8);
  expect(withoutEnd(tokens)).toEqual(withoutEnd(ids));
  await matcher.dispose();
});

test('the walk corrects a wrong token where only one is', async () => {
  const matcher = await openMatcher(model);
  const { ids } = sequences[0]!;
  const guess = [...ids];
  guess[90] = ids[90]! + 1;
  const options: MatchOptions = { k: 1, steps: 0, learningRate: 0, candidates: 512, checks: 1 };
  const { rounded, tokens } = await matcher.match(states[1]![0]!, guess, options);
  expect(withoutEnd(rounded)).toEqual(withoutEnd(guess));
  expect(withoutEnd(tokens)).toEqual(withoutEnd(ids));
  await matcher.dispose();
});

test('the gradient is the one that a split model sends', async () => {
  const range = { from: 2, to: last };
  const middle = localMiddle({ layers: model.layers, range });
  const sent: Float32Tensor[] = [];
  const split = splitLanguageModel({
    checkpoint,
    runtime,
    layers: model.layers,
    kept: range.from,
    middle: {
      ...middle,
      trains: true,
      backward: (gradient) => {
        sent.push(float32(gradient.data.slice(), gradient.dims));
        return middle.backward(gradient);
      },
    },
  });
  const { ids, target } = sequences[0]!;
  const answer = answers[target]!;
  const labels = ids.map((id, t) => (t < ids.length - answer.length ? ignoredLabel : id));
  const config = { rank: 2, alpha: 2, dropout: 0, targetModules: ['q_proj'], layers: [last] } as const;
  const tensors = initialAdapter(checkpoint.config, config, 1);
  await split.gradients([{ ids, labels }], { config, tensors });
  const matcher = await openLabelMatcher(model, { shortlist: 1 });
  const found = await matcher.gradient(states[last]![0]!, answer);
  const expected = sent[0]!.data.subarray(0, found.data.length);
  expect(cosine(found.data, expected)).toBeCloseTo(1, 6);
  expect(Math.hypot(...found.data) / Math.hypot(...expected)).toBeCloseTo(1, 4);
  await matcher.dispose();
  await split.release();
});

test('the target of most users is the first of all titles, and its tokens come out without them', async () => {
  const matcher = await openLabelMatcher(model, { shortlist: 8 });
  let [first, tokens, right] = [0, 0, 0];
  for (const [user, { target }] of sequences.entries()) {
    const hidden = states[last]![user]!;
    const truth = answers[target]!;
    const gradient = await matcher.gradient(hidden, truth);
    const { order, labels } = await matcher.rank({ hidden, gradient }, answers);
    expect([...order].sort((a, b) => a - b)).toEqual(answers.map((_, i) => i));
    if (catalogue.items[order[0]!]!.title === catalogue.items[target]!.title) first++;
    tokens += truth.length;
    right += truth.filter((label, i) => labels[truth.length - 1 - i] === label).length;
  }
  expect(first).toBeGreaterThanOrEqual(5);
  expect(right / tokens).toBeGreaterThan(0.4);
  await matcher.dispose();
});

test('titles that are longer than what was seen come last', async () => {
  const matcher = await openLabelMatcher(model, { shortlist: 3 });
  const hidden = float32(states[last]![0]!.data.slice(0, 12 * d), [12, d]);
  const truth = [5, 6, 7];
  const gradient = await matcher.gradient(hidden, truth);
  const long = (length: number) => Array.from({ length }, (_, i) => 5 + i);
  const { order } = await matcher.rank({ hidden, gradient }, [long(12), truth, long(40), [9]]);
  expect(order.slice(0, 2)).toEqual([1, 3]);
  await matcher.dispose();
});

test('a gradient that is not of a title ranks none first by its likeness', async () => {
  const matcher = await openLabelMatcher(model, { shortlist: 8 });
  const { normal } = random(2, 'noise');
  const ranks: number[] = [];
  for (const [user, { target }] of sequences.entries()) {
    const hidden = states[last]![user]!;
    const gradient = float32(hidden.data.map(normal), hidden.dims);
    ranks.push((await matcher.rank({ hidden, gradient }, answers)).order.indexOf(target));
  }
  expect(ranks.filter((rank) => rank === 0).length).toBeLessThanOrEqual(1);
  await matcher.dispose();
});
