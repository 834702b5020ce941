import type { Tokenizer } from '@fellrec/models';
import { describe, expect, test } from 'vitest';
import { rougeL, scoresOf } from '../src/metrics.ts';
import type { AuditedSequence } from '../src/sequences.ts';

/** Every token is a word. */
const tokenizer: Tokenizer = {
  hash: 'words',
  encode: () => [],
  encodeContinuation: () => [],
  decode: (ids) => ids.map((id) => `w${id}`).join(' '),
};

// Template tokens are 1; a history of two items, then an answer.
const truth: AuditedSequence = {
  user: 'u',
  ids: [1, 5, 6, 1, 7, 8, 9, 1, 4, 3],
  items: [
    { item: 0, places: [1, 2] },
    { item: 1, places: [4, 5, 6] },
  ],
  answer: [8, 9],
  target: 2,
};

describe('scores of a reconstruction', () => {
  test('all right', () => {
    expect(scoresOf(truth, [5, 6, 7, 8, 9, 4, 3], tokenizer)).toEqual({
      tokenAccuracy: 1,
      tokenRecall: 1,
      exact: 1,
      rougeL: 1,
      items: 1,
      target: 1,
    });
  });

  test('two tokens changed places: recall sees them, accuracy and items do not', () => {
    const found = scoresOf(truth, [5, 6, 8, 7, 9, 4, 0], tokenizer);
    expect(found).toMatchObject({ tokenAccuracy: 3 / 5, tokenRecall: 1, exact: 0, items: 1 / 2, target: 0 });
    expect(found.rougeL).toBeCloseTo(4 / 5, 12); // w5 w6 w8 w9 of five and five
  });

  test('a token said twice counts as often as it is there', () => {
    expect(scoresOf(truth, [5, 5, 5, 5, 5, 4, 3], tokenizer)).toMatchObject({
      tokenRecall: 1 / 5,
      target: 1,
    });
  });

  test('a reconstruction of another length is refused', () => {
    expect(() => scoresOf(truth, [5, 6], tokenizer)).toThrow(
      'audit: a reconstruction of 2 tokens; history and answer have 7',
    );
  });

  // By the Python package rouge-score 0.1.2, RougeScorer(['rougeL']), its fmeasure.
  test.each([
    ['The Elder Scrolls Online - PC/Mac', 'Elder Scrolls V: Skyrim - PC', 0.5454545454545454],
    ['Titanfall - PC', 'FIFA 15', 0],
    ['Halo 3, Halo 4 and Halo: Reach', 'Halo: Reach Halo 3', 0.36363636363636365],
    ['Pokémon X', 'Pok mon X', 1],
    ['a b c d e f', 'f e d c b a', 0.16666666666666666],
    ['', 'x', 0],
  ])('ROUGE-L of "%s" and "%s"', (a, b, expected) => {
    expect(rougeL(a, b)).toBeCloseTo(expected, 12);
  });
});
