// What is near to the history in a sentence encoder's space, against numbers by hand.
import { expect, test } from 'vitest';
import { sentenceNeighbours } from '../src/baselines/sentences.ts';

const vectors = [
  [1, 0],
  [0, 1],
  [0.6, 0.8],
].map((vector) => Float32Array.from(vector));
const scores = async (history: readonly number[]) => {
  const { data } = await sentenceNeighbours(vectors).score([{ history, seen: history }]);
  return [...data].map(Number);
};
const close = (found: readonly number[], expected: readonly number[]) => {
  expect(found).toHaveLength(expected.length);
  for (const [i, value] of expected.entries()) expect(found[i]).toBeCloseTo(value, 6);
};

test('the newest item counts 1, each before it 0.8 of the next', async () => {
  // (0, 1) + 0.8 (1, 0)
  close(await scores([0, 1]), [0.8, 1, 0.8 * 0.6 + 0.8]);
  // (1, 0) + 0.8 (0, 1)
  close(await scores([1, 0]), [1, 0.8, 0.6 + 0.8 * 0.8]);
});

test('of a long history the last ten items count', async () => {
  const last = Array.from({ length: 10 }, () => 1);
  const sum = (1 - 0.8 ** 10) / (1 - 0.8);
  close(await scores([0, ...last]), [0, sum, 0.8 * sum]);
});
