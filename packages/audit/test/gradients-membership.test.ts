// Membership: the area under the curve by hand and by its symmetries, scores by formula, and a client that memorises.
import { type Float32Tensor, float32, type NamedTensors } from '@fellrec/graph';
import { type LoraConfig, languageModel } from '@fellrec/models';
import { subset, testSamples, videoGames } from '@fellrec/recsys';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { gradientAttacks } from '../src/gradients/attacks.ts';
import {
  areaUnderCurve,
  bootstrapAuc,
  type Learner,
  membershipScores,
  simulatedRounds,
} from '../src/gradients/membership.ts';
import { openSample, openStories, runtime } from './shared.ts';

describe('area under the curve', () => {
  test.each([
    ['all above', [3, 4], [1, 2], 1],
    ['all below', [1, 2], [3, 4], 0],
    ['all equal', [1, 1], [1, 1, 1], 0.5],
    ['two of three pairs', [2], [1, 3, 0], 2 / 3],
    ['a tie counts half', [1, 2], [1, 0], (0.5 + 1 + 1 + 1) / 4],
  ])('%s', (_, members, others, expected) => {
    expect(areaUnderCurve(members, others)).toBeCloseTo(expected, 12);
  });

  test('exchanging both groups gives the rest to 1; a rising function of the scores changes nothing', () => {
    const scores = fc.array(fc.integer({ min: -5, max: 5 }), { minLength: 1, maxLength: 12 });
    fc.assert(
      fc.property(scores, scores, (a, b) => {
        expect(areaUnderCurve(a, b) + areaUnderCurve(b, a)).toBeCloseTo(1, 12);
        const cube = (x: number) => x ** 3 + x;
        expect(areaUnderCurve(a.map(cube), b.map(cube))).toBe(areaUnderCurve(a, b));
      }),
    );
  });

  test('its interval holds it, is the same again, and is a point where nothing can change', () => {
    const [members, others] = [
      [3, 1, 4, 1, 5, 9, 2, 6],
      [2, 7, 1, 8, 2, 8],
    ];
    const found = bootstrapAuc(members, others, 1);
    expect(found.mean).toBe(areaUnderCurve(members, others));
    expect(found.low).toBeLessThan(found.mean);
    expect(found.high).toBeGreaterThan(found.mean);
    expect(bootstrapAuc(members, others, 1)).toEqual(found);
    expect(bootstrapAuc(members, others, 2)).not.toEqual(found);
    expect(bootstrapAuc([2, 3], [0, 1], 1)).toEqual({ mean: 1, low: 1, high: 1 });
    expect(() => areaUnderCurve([], [1])).toThrow('0 members and 1 other users');
  });
});

/** A point is a sample: half its mean squared distance to the parameter. */
const points: Learner<readonly number[]> = {
  async loss(samples, parameters) {
    const at = parameters.get('x')!.data;
    return mean(samples.map((s) => 0.5 * s.reduce((sum, x, i) => sum + (x - at[i]!) ** 2, 0)));
  },
  async gradients(samples, parameters) {
    const { data, dims } = parameters.get('x')!;
    const slopes = data.map((at, i) => mean(samples.map((s) => at - s[i]!)));
    return {
      loss: await points.loss(samples, parameters),
      gradients: new Map([['x', float32(slopes, dims)]]),
    };
  },
};
const mean = (values: readonly number[]) => values.reduce((sum, x) => sum + x, 0) / values.length;
const at = (...x: number[]): NamedTensors => new Map<string, Float32Tensor>([['x', float32(x, [x.length])]]);

test('scores are the fall of the loss and the cosine with the descent, over rounds', async () => {
  const rounds = [
    { sent: at(0, 0), returned: at(1, 0) },
    { sent: at(1, 0), returned: at(1, 1) },
  ];
  const [along, across] = await membershipScores(points, [[[2, 0]], [[0, -2]]], rounds);
  // Loss of (2, 0): 2, 1/2, then 1/2, 1.
  expect(along!.lossDrop).toBeCloseTo((1.5 - 0.5) / 2, 6);
  expect(along!.cosine).toBeCloseTo((1 + 0) / 2, 6);
  // Loss of (0, -2): 2, 5/2, then 5/2, 5.
  expect(across!.lossDrop).toBeCloseTo((-0.5 - 2.5) / 2, 6);
  expect(across!.cosine).toBeCloseTo((0 - 2 / Math.sqrt(5)) / 2, 6);
  await expect(membershipScores(points, [], [])).rejects.toThrow('no round');
});

test('a round begins where the one before ended', async () => {
  const options = { rounds: 3, epochs: 2, batchSize: 2, learningRate: 0.1, seed: 1 };
  const rounds = await simulatedRounds(points, [[1], [2], [3]], at(0), options);
  expect(rounds).toHaveLength(3);
  expect(rounds[0]!.sent).toEqual(at(0));
  for (const [i, { sent, returned }] of rounds.entries()) {
    expect(sent).not.toEqual(returned);
    if (i > 0) expect(sent).toEqual(rounds[i - 1]!.returned);
  }
});

test('all attacks on users of the sample', async () => {
  const { checkpoint, model, tokenizer } = await openStories();
  const { catalogue, users } = await openSample();
  const samples = subset(users.flatMap(testSamples), 12, 1, 'membership');
  const language = languageModel(checkpoint, runtime);
  const lora: LoraConfig = { rank: 8, alpha: 16, dropout: 0, targetModules: ['q_proj', 'v_proj'] };
  const results = await gradientAttacks({
    model,
    language,
    text: { catalogue, tokenizer, domain: videoGames, maxTokens: 320, eosIds: [2] },
    victims: samples.slice(0, 6),
    others: samples.slice(6),
    targetModules: lora.targetModules as ['q_proj', 'v_proj'],
    seed: 1,
    span: { batches: [1], ranks: [4], groups: 2 },
    matching: { k: 1, steps: 20, learningRate: 0.3, candidates: 8, checks: 4, users: 1, accuracy: 0.7 },
    labels: { shortlist: 4 },
    membership: { lora, simulated: { rounds: 2, epochs: 4, batchSize: 3, learningRate: 3e-3 } },
  });
  const by = (attack: string) => results.filter((one) => one.attack === attack);
  // Prompts of the embedded model hold more distinct tokens than it has dimensions.
  expect(by('span test')).toHaveLength(5);
  for (const { metrics } of by('span test')) expect(metrics['token recall']!.mean).toBe(0);
  const [matching] = by('state matching');
  expect(matching!.metrics['accuracy after']!.mean).toBeGreaterThan(
    matching!.metrics['accuracy before']!.mean,
  );
  expect(by('label matching')[0]!.metrics['target at rank 1']!.mean).toBeGreaterThan(0.5);
  const [membership] = by('membership');
  expect(membership!.metrics['AUC, fall of the loss']!.mean).toBeGreaterThan(0.8);
  for (const { metrics } of results)
    for (const { mean, low, high } of Object.values(metrics)) {
      expect(low).toBeLessThanOrEqual(mean);
      expect(high).toBeGreaterThanOrEqual(mean);
    }
  await language.release();
  await model.layers.release();
});
