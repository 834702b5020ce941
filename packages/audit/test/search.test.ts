import { type Float32Tensor, random } from '@fellrec/graph';
import { describe, expect, test } from 'vitest';
import { refiningSearch } from '../src/attacks/refine.ts';
import { searchEnds, sequentialSearch } from '../src/attacks/search.ts';
import { type AuditedModel, depths } from '../src/layerwise.ts';
import { claimedPlaces } from '../src/metrics.ts';
import type { AuditedSequence } from '../src/sequences.ts';
import { openStories, openTinyEncoder } from './shared.ts';

/** The embedded model's byte tokens, 3 to 258, were never trained: some have one embedding. */
const firstWord = 260;

const none = { complete: 0, unlisted: 0, unmatched: 0, mistaken: 0 };

/** Sequences of random tokens of which some are a history. */
function drawn(first: number, vocabulary: number, count: number, typed: boolean): AuditedSequence[] {
  const { integer } = random(3, 'search');
  return Array.from({ length: count }, (_, user) => {
    const ids = Array.from({ length: 16 + user }, () => first + integer(vocabulary - first));
    const places = [...ids.keys()].slice(4);
    return {
      user: String(user),
      ids,
      items: [{ item: user, places }],
      answer: [],
      target: 0,
      ...(typed && {
        tokenTypes: ids.map((_, t) => (t === 0 ? 0 : 2)),
        itemPositions: ids.map((_, t) => (t === 0 ? 0 : 1)),
      }),
    };
  });
}

async function observedAt(model: AuditedModel, sequences: readonly AuditedSequence[], depth: number) {
  let own: Float32Tensor | undefined;
  const selection = { sequences, places: sequences.map(claimedPlaces) };
  for await (const { states } of depths(model, [selection], depth)) own = states[0];
  return own!;
}

/** Lists of candidates with the true token at a drawn rank below `ranks`. */
function lists(
  sequences: readonly AuditedSequence[],
  first: number,
  vocabulary: number,
  ranks: number,
): Int32Array {
  const { integer } = random(4, 'candidates');
  const count = 8;
  return Int32Array.from(
    sequences.flatMap((sequence) =>
      claimedPlaces(sequence).flatMap((place) => {
        const others = Array.from(
          { length: count },
          (_, i) => first + ((sequence.ids[place]! - first + 1 + i * 3) % (vocabulary - first)),
        );
        return others.with(integer(ranks), sequence.ids[place]!);
      }),
    ),
  );
}

const truth = (sequences: readonly AuditedSequence[]) =>
  sequences.flatMap((sequence) => claimedPlaces(sequence).map((place) => sequence.ids[place]!));

describe('the exact search', () => {
  test('finds tokens in order, from states of any depth, wherever they stand in the list', async () => {
    const { model } = await openStories();
    const sequences = drawn(firstWord, 512, 4, false);
    const candidates = lists(sequences, firstWord, 512, 8);
    const searched = await Promise.all(
      [0, 2, 5].map(async (depth) => ({
        depth,
        observed: await observedAt(model, sequences, depth),
        candidates,
      })),
    );
    const { found } = await sequentialSearch(model, sequences, searched, { tolerance: 1e-3, take: 'first' });
    for (const tokens of found) expect([...tokens]).toEqual(truth(sequences));
  });

  test('says nothing from where the token is not among the candidates', async () => {
    const { model } = await openStories();
    const [sequence] = drawn(firstWord, 512, 1, false);
    const candidates = lists([sequence!], firstWord, 512, 8);
    const wrong = candidates.slice();
    const place = 6;
    for (let i = 8 * place; i < 8 * (place + 1); i++)
      if (wrong[i] === truth([sequence!])[place]) wrong[i] = 259;
    const observed = await observedAt(model, [sequence!], 3);
    const { found } = await sequentialSearch(
      model,
      [sequence!],
      [{ depth: 3, observed, candidates: wrong }],
      {
        tolerance: 1e-3,
        take: 'first',
      },
    );
    expect([...found[0]!.subarray(0, place)]).toEqual(truth([sequence!]).slice(0, place));
    expect(new Set(found[0]!.subarray(place))).toEqual(new Set([-1]));
    expect(searchEnds([sequence!], { depth: 3, observed, candidates: wrong }, found[0]!)).toEqual({
      ...none,
      unlisted: 1,
    });
    expect(searchEnds([sequence!], { depth: 3, observed, candidates }, found[0]!)).toEqual({
      ...none,
      unmatched: 1,
    });
  });

  test('a wide tolerance takes the first candidate, the nearest of all is the right one', async () => {
    const { model } = await openStories();
    const [sequence] = drawn(firstWord, 512, 1, false);
    const states = {
      depth: 2,
      observed: await observedAt(model, [sequence!], 2),
      candidates: lists([sequence!], firstWord, 512, 8),
    };
    const wide = { tolerance: Number.POSITIVE_INFINITY } as const;
    const first = await sequentialSearch(model, [sequence!], [states], { ...wide, take: 'first' });
    const nearest = await sequentialSearch(model, [sequence!], [states], { ...wide, take: 'nearest' });
    expect([...first.found[0]!]).not.toEqual(truth([sequence!]));
    expect([...nearest.found[0]!]).toEqual(truth([sequence!]));
    expect(searchEnds([sequence!], states, first.found[0]!)).toEqual({ ...none, mistaken: 1 });
    expect(searchEnds([sequence!], states, nearest.found[0]!)).toEqual({ ...none, complete: 1 });
  });

  test('where tokens read both ways a guess is improved until its states are those observed', async () => {
    const { model, checkpoint } = await openTinyEncoder();
    const vocabulary = checkpoint.config.vocabularySize;
    const sequences = drawn(5, vocabulary, 3, true);
    const candidates = lists(sequences, 5, vocabulary, 2);
    const searched = await Promise.all(
      [1, checkpoint.config.layerCount].map(async (depth) => ({
        depth,
        observed: await observedAt(model, sequences, depth),
        candidates,
      })),
    );
    const { found } = await refiningSearch(model, sequences, searched, { tolerance: 1e-3, take: 'first' });
    for (const tokens of found) expect([...tokens]).toEqual(truth(sequences));
  });
});
