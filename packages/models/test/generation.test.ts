// The search against all continuations of a small vocabulary, enumerated.
import { random } from '@fellrec/graph';
import { describe, expect, test } from 'vitest';
import { beamSearch, type DecodeStep, type Hypothesis, type NextTokens } from '../src/generation.ts';
import { largestDifference } from './numbers.ts';

const vocabulary = 12;
const eos = 0;

/** Log-probabilities of a language in which every prefix has its own distribution. */
function after(user: number, prefix: readonly number[]): Float32Array {
  const { normal } = random(11, user, ...prefix);
  const logits = Array.from({ length: vocabulary }, () => 2 * normal());
  const normaliser = Math.log(logits.reduce((sum, x) => sum + Math.exp(x), 0));
  return Float32Array.from(logits, (x) => x - normaliser);
}

/** All tokens of rows of log-probabilities, best first. */
function ranked(rows: readonly Float32Array[]): NextTokens {
  const sorted = rows.map((row) =>
    Array.from(row, (logProbability, id) => ({ logProbability, id })).sort(
      (a, b) => b.logProbability - a.logProbability,
    ),
  );
  return {
    perRow: rows[0]!.length,
    ids: sorted.flatMap((row) => row.map(({ id }) => id)),
    logProbabilities: sorted.flatMap((row) => row.map(({ logProbability }) => logProbability)),
  };
}

/** Beams as a decoder keeps them: prefixes by row, reordered by `parents`. */
function language(users: number, beams: number) {
  let rows = Array.from({ length: users * beams }, (): number[] => []);
  const asked: number[] = [];
  const first = ranked(Array.from({ length: users }, (_, user) => after(user, [])));
  const step: DecodeStep = async ({ users, tokens, parents }) => {
    asked.push(users.length);
    rows = tokens.map((token, row) => [...rows[parents[row]!]!, token]);
    return ranked(rows.map((prefix, row) => after(users[Math.floor(row / beams)]!, prefix)));
  };
  return { first, step, asked };
}

/** Every continuation that ends with the end token or with the second token, best first. */
function enumerated(user: number, lengthPenalty: number): Hypothesis[] {
  const all: Hypothesis[] = [];
  after(user, []).forEach((one, first) => {
    if (first === eos) all.push({ ids: [eos], score: one });
    else
      after(user, [first]).forEach((two, second) => {
        all.push({ ids: [first, second], score: (one + two) / 2 ** lengthPenalty });
      });
  });
  return all.sort((a, b) => b.score - a.score);
}

const scores = (found: readonly Hypothesis[]) => found.map(({ score }) => score);
const sequences = (found: readonly Hypothesis[]) => found.map(({ ids }) => ids);

describe('beam search', () => {
  test.each([0, 1, 2])(
    'with a beam for every token finds the best, length penalty %i',
    async (lengthPenalty) => {
      const [users, beams] = [5, vocabulary - 1];
      const { first, step } = language(users, beams);
      const options = { beams, maxNewTokens: 2, lengthPenalty, eosIds: [eos] };
      const found = await beamSearch(first, users, step, options);
      found.forEach((hypotheses, user) => {
        const expected = enumerated(user, lengthPenalty).slice(0, beams);
        expect(sequences(hypotheses)).toEqual(sequences(expected));
        expect(largestDifference(scores(hypotheses), scores(expected))).toBeLessThan(1e-5);
      });
    },
  );

  test('ends only beams that are among the best, as transformers', async () => {
    // The end token is third: with two beams it is out, however much better it is than what follows.
    const first = ranked([Float32Array.from([0.2, 0.4, 0.3, 0.1], Math.log)]);
    const step = async () => ranked([0, 1].map(() => new Float32Array(4).fill(Math.log(0.25))));
    const options = { beams: 2, maxNewTokens: 2, lengthPenalty: 0, eosIds: [eos] };
    const [found] = await beamSearch(first, 1, step, options);
    expect(sequences(found!).map(([token]) => token)).toEqual([1, 1]);
    expect(largestDifference(scores(found!), [Math.log(0.1), Math.log(0.1)])).toBeLessThan(1e-6);
  });

  test('treats users as if each were alone', async () => {
    const options = { beams: 3, maxNewTokens: 7, eosIds: [eos, 4] };
    const { first, step } = language(3, 3);
    const together = await beamSearch(first, 3, step, options);
    // The first user alone.
    const alone = language(1, 3);
    const [only] = await beamSearch(alone.first, 1, alone.step, options);
    expect(together[0]).toEqual(only);
    for (const hypotheses of together) {
      expect(hypotheses).toHaveLength(3);
      for (const { ids } of hypotheses) {
        expect(ids.length).toBeLessThanOrEqual(7);
        const end = ids.findIndex((id) => id === eos || id === 4);
        expect(end === -1 ? 6 : end).toBe(ids.length - 1);
      }
    }
  });
});

test('greedy search takes the best token each time, stops at the end token and asks no further', async () => {
  const users = 6;
  const { first, step, asked } = language(users, 1);
  const found = await beamSearch(first, users, step, { beams: 1, maxNewTokens: 9, eosIds: [eos] });
  found.forEach(([hypothesis, ...others], user) => {
    const ids: number[] = [];
    let logProbability = 0;
    while (ids.length < 9 && ids.at(-1) !== eos) {
      const row = after(user, ids);
      const best = row.indexOf(Math.max(...row));
      logProbability += row[best]!;
      ids.push(best);
    }
    expect(others).toEqual([]);
    expect(hypothesis!.ids).toEqual(ids);
    expect(Math.abs(hypothesis!.score - logProbability / ids.length)).toBeLessThan(1e-6);
  });
  const lengths = found.map(([best]) => best!.ids.length);
  expect(new Set(lengths).size).toBeGreaterThan(1);
  expect(asked).toEqual(asked.map((_, i) => lengths.filter((length) => length > i + 1).length));
});
