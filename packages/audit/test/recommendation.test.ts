import { describe, expect, test } from 'vitest';
import { cutCosts, recommendation, smallestCut } from '../src/recommendation.ts';
import type { AttackName, AttackResult } from '../src/result.ts';

const layerCount = 4;
/** An attack that recovers so much at depth 0, 1, ... */
const curve = (attack: AttackName, means: readonly number[]): AttackResult[] =>
  means.map((mean, depth) => ({ attack, depth, recovery: { items: { mean, low: mean, high: mean } } }));

const costs = cutCosts(
  new Map([
    ['model.embed_tokens.weight', 40],
    ['model.layers.0.x', 10],
    ['model.layers.1.x', 10],
    ['model.layers.2.x', 10],
    ['model.layers.3.x', 10],
  ]),
  layerCount,
  8,
);
const common = {
  costs,
  layerCount,
  metric: 'items',
  threshold: 0.1,
  adapterKnown: false,
  tied: false,
} as const;

describe('the smallest k', () => {
  test('from which all attacks stay under the threshold', () => {
    const attacks = [
      ...curve('head', [0.9, 0.2, 0.05, 0.01, 0.9]),
      ...curve('inverter', [0.9, 0.6, 0.09, 0.05, 0.9]),
    ];
    expect(smallestCut({ ...common, attacks })).toBe(2);
    const found = recommendation({ attacks, ...common });
    expect(found.cost).toEqual({ k: 2, parameters: 70 / 80, layers: 3 / 4, bytesPerToken: 128 });
    expect(found.text).toContain('k = 2 is the smallest at which head, inverter stay under 0.1');
  });

  test('a rise behind a fall counts: the server computes the layers behind the cut', () => {
    expect(smallestCut({ ...common, attacks: curve('head', [0.9, 0.01, 0.01, 0.3, 0.9]) })).toBeUndefined();
    expect(smallestCut({ ...common, attacks: curve('head', [0.9, 0.01, 0.3, 0.01, 0.9]) })).toBe(3);
  });

  test('after the last layer nothing crosses', () => {
    expect(smallestCut({ ...common, attacks: curve('head', [0.9, 0.01, 0.01, 0.01, 1]) })).toBe(1);
  });

  test('if there is none, which assumption makes the difference', () => {
    const attacks = [...curve('embedding-l2', [0.9, 0.05, 0, 0, 0]), ...curve('search', [1, 1, 1, 1, 1])];
    const found = recommendation({ attacks, ...common });
    expect(found.k).toBeUndefined();
    expect(found.without).toContainEqual({ knowledge: 'weights', k: 1 });
    expect(found.text).toContain(
      'No k meets the threshold: at depth 3 the attack "search" still recovers 1.000',
    );
    expect(found.text).toContain(
      'If the server did not know the weights of the layers below the cut, k = 1 would do.',
    );
  });

  test('an interval that reaches over the threshold is named', () => {
    const attacks = curve('head', [0.9, 0.05, 0.01, 0.01, 0.9]).map((one) =>
      one.depth === 1 ? { ...one, recovery: { items: { mean: 0.05, low: 0, high: 0.2 } } } : one,
    );
    const reached = 'on the mean (the 95 % interval of "head" at depth 1 reaches 0.200).';
    expect(recommendation({ attacks, ...common }).text).toContain(`from there to depth 3 ${reached}`);
    const more = [...attacks, ...curve('search', [1, 1, 1, 1, 1])];
    expect(recommendation({ attacks: more, ...common }).text).toContain(`k = 1 would do ${reached}`);
  });

  test('depths that were not measured are named', () => {
    const attacks = curve('head', [0.9, 0.05, 0.01, 0.01]).filter(({ depth }) => depth === 0 || depth === 2);
    const found = recommendation({ attacks, ...common });
    expect(found.k).toBe(2);
    expect(found.text).toContain('from there to depth 3, depth 3 not measured.');
    const less = recommendation({ attacks: attacks.slice(0, 1), ...common });
    expect(less.text).toContain('none of these attacks would be left');
    const after = curve('search', [0, 0, 0, 0, 0.5]).slice(layerCount);
    expect(recommendation({ attacks: after, ...common })).toMatchObject({ k: undefined, without: [] });
    expect(recommendation({ attacks: after, ...common }).text).toContain('these are 0 to 3');
  });

  test('attacks that the metric does not measure do not count', () => {
    const measured = curve('inverter', [0.01, 0.01, 0.01, 0.01]).map((one) => ({
      ...one,
      recovery: { tokenAccuracy: one.recovery.items! },
    }));
    const attacks = [...measured, ...curve('catalogue', [0.9, 0.9, 0.9, 0.9])];
    const { text } = recommendation({ attacks, ...common, metric: 'tokenAccuracy' });
    expect(text).toContain('k = 0 is the smallest at which inverter stay under');
  });

  test('a head that is the embedding table is known with it', () => {
    const attacks = [...curve('head', [0.9, 0, 0, 0]), ...curve('search', [1, 1, 1, 1])];
    const without = { knowledge: 'embedding', k: 1 };
    expect(recommendation({ attacks, ...common }).without).toContainEqual(without);
    const tied = recommendation({ attacks, ...common, tied: true });
    expect(tied.without.map(({ knowledge }) => knowledge)).not.toContain('head');
    expect(tied.text).toContain(
      'did not know the embedding table of the base model, none of these attacks would',
    );
  });

  test("what is computed with a client's adapter needs it", () => {
    const attacks = [...curve('head', [0.9, 0, 0, 0]), ...curve('search', [1, 1, 1, 1])];
    const without = { knowledge: 'adapter', k: 1 };
    expect(recommendation({ attacks, ...common }).without).not.toContainEqual(without);
    expect(recommendation({ attacks, ...common, adapterKnown: true }).without).toContainEqual(without);
  });

  test('a metric that no attack has is refused', () => {
    expect(() => recommendation({ attacks: curve('head', [1]), ...common, metric: 'rougeL' })).toThrow(
      'no attack here is measured by "rougeL"',
    );
  });
});
