import { float32 } from '@fellrec/graph';
import { beforeAll, describe, expect, test } from 'vitest';
import { releaseOf, typicalNorms } from '../src/defences/defence.ts';
import type { StudyOptions } from '../src/options.ts';
import type { AttackName, MetricName } from '../src/result.ts';
import { attackStates, type StudyResult } from '../src/study.ts';
import { openSample, openStories, storyPrompts, studyOf } from './shared.ts';

let options: StudyOptions;
let found: StudyResult;
const mean = (result: StudyResult, attack: AttackName, depth: number, metric: MetricName) =>
  result.attacks.find((one) => one.attack === attack && one.depth === depth)?.recovery[metric]?.mean;

beforeAll(async () => {
  const { model, tokenizer } = await openStories();
  const dataset = await openSample();
  const sequences = storyPrompts(dataset.catalogue, tokenizer);
  options = studyOf({ model, tokenizer, dataset, sequences }, { victims: 6, auxiliary: 24, held: 6 });
  found = await attackStates(options);
});

describe('the whole study of a small model', () => {
  test('every attack at every depth', () => {
    for (const depth of options.depths)
      expect(found.attacks.filter((one) => one.depth === depth).map(({ attack }) => attack)).toEqual(
        options.attacks,
      );
  });

  test('embeddings are the tokens', () => {
    expect(mean(found, 'embedding-l2', 0, 'tokenAccuracy')).toBe(1);
    expect(mean(found, 'embedding-cosine', 0, 'exact')).toBe(1);
  });

  test('attacks without training fade with depth, a trained inverter less', () => {
    const [first, last] = [1, 5].map((depth) => mean(found, 'embedding-cosine', depth, 'tokenAccuracy')!);
    expect(last).toBeLessThan(0.2);
    expect(first).toBeGreaterThan(0.9);
    expect(mean(found, 'inverter', 4, 'tokenAccuracy')).toBeGreaterThan(0.7);
  });

  test('with known weights and float32 states the search finds every token, from any depth', () => {
    for (const depth of options.depths) expect(mean(found, 'search', depth, 'tokenAccuracy')).toBe(1);
    expect(mean(found, 'search', 2, 'target')).toBe(1);
  });

  test('knowing the catalogue, most of the history; the target best from the last states', () => {
    expect(mean(found, 'catalogue', 2, 'items')).toBeGreaterThan(0.9);
    expect(mean(found, 'catalogue', 5, 'target')!).toBeGreaterThan(mean(found, 'catalogue', 0, 'target')!);
  });

  test('guessing recovers nothing to speak of', () => {
    expect(found.floors.map(({ floor }) => floor)).toEqual(['random', 'most frequent', 'template only']);
    for (const { recovery } of found.floors) {
      expect(recovery.exact?.mean).toBe(0);
      expect(recovery.items?.mean).toBeLessThan(0.15);
    }
  });

  test('the inverter says what it learned from', () => {
    expect(found.inverter).toMatchObject({ users: 24, epochs: 2 });
    expect(found.inverter!.accuracy.map(({ depth }) => depth)).toEqual(options.depths);
    expect(found.inverter!.accuracy[1]!.accuracy).toBeGreaterThan(0.9);
  });
});

describe('what leaves otherwise', () => {
  const at = async (release: StudyOptions['release'], more: Partial<StudyOptions> = {}) =>
    attackStates({ ...options, attacks: ['inverter', 'search'], depths: [2], release, ...more });

  test('the search takes the nearest where states are rounded, and finds the tokens still', async () => {
    const nearest = { budget: 16, tolerance: Number.POSITIVE_INFINITY, take: 'nearest' } as const;
    const result = await at(releaseOf({ kind: 'int8' }, { row: 1, matrix: 1 }, 1), { search: nearest });
    expect(mean(result, 'search', 2, 'tokenAccuracy')).toBeGreaterThan(0.95);
  });

  test('float32 tolerance does not fit int8: no state is reproduced', async () => {
    const result = await at(releaseOf({ kind: 'int8' }, { row: 1, matrix: 1 }, 1));
    expect(mean(result, 'search', 2, 'tokenAccuracy')).toBeLessThan(0.05);
  });

  test('states without anything in them give no attack anything', async () => {
    const empty: StudyOptions['release'] = ({ data, dims }) => float32(new Float32Array(data.length), dims);
    const result = await at(empty, { attacks: options.attacks, depths: [5] });
    for (const { recovery } of result.attacks) {
      expect(recovery.tokenAccuracy?.mean ?? 0).toBeLessThan(0.2);
      expect(recovery.items?.mean ?? 0).toBeLessThan(0.2);
    }
    // The length of a target is still to be seen, and few titles have it.
    expect(mean(result, 'catalogue', 5, 'target')).toBeLessThan(mean(found, 'catalogue', 5, 'target')!);
  });

  test('noise of a small epsilon hides the history, from every attack', async () => {
    const norms = await typicalNorms(options.model, options.held, undefined, 2);
    const nearest = { budget: 16, tolerance: Number.POSITIVE_INFINITY, take: 'nearest' } as const;
    const result = await at(releaseOf({ kind: 'noise', epsilon: 8 }, norms, 1), { search: nearest });
    expect(mean(result, 'search', 2, 'tokenAccuracy')).toBeLessThan(0.2);
    expect(mean(result, 'inverter', 2, 'items')).toBe(0);
  });
});

describe('bad input', () => {
  test('nobody to attack, nobody to learn from', async () => {
    await expect(attackStates({ ...options, victims: [] })).rejects.toThrow('no users to attack');
    await expect(attackStates({ ...options, auxiliary: [] })).rejects.toThrow(
      '0 other users to train the inverter on and 6 to measure it on',
    );
  });
});
