import { type NamedTensors, zeros } from '@fellrec/graph';
import { describe, expect, test } from 'vitest';
import type { TrainOptions } from '../src/recommender.ts';
import { fit } from '../src/training.ts';

const vector = (...values: number[]): NamedTensors =>
  new Map([['x', { dtype: 'float32', dims: [values.length], data: Float32Array.from(values) }]]);
const target = [1, -2];

/** Minimises |x - target|^2 / 2 for many small steps. */
const minimised = (proximal?: TrainOptions['proximal']) =>
  fit(
    {
      name: 'toy',
      count: 1,
      examples: () => [0],
      gradients: async (_, parameters) => {
        const { data } = parameters.get('x')!;
        const gradient = data.map((value, i) => value - target[i]!);
        return {
          loss: 0.5,
          gradients: vector(...gradient),
          tokens: { real: 1, computed: 1, padding: 0 },
        };
      },
    },
    new Map([['x', zeros([2])]]),
    {
      epochs: 3000,
      batchSize: 1,
      microBatch: 1,
      learningRate: 0.01,
      warmupSteps: 0,
      weightDecay: 0,
      clipNorm: 1e9,
      stream: [1],
      ...(proximal && { proximal }),
    },
  );

describe('the proximal term weight/2 |x - centre|^2', () => {
  test('moves the optimum to (target + weight centre) / (1 + weight)', async () => {
    for (const weight of [0, 0.5, 4]) {
      const { parameters } = await minimised({ weight, centre: vector(3, 3) });
      for (const [i, value] of parameters.get('x')!.data.entries())
        expect(value).toBeCloseTo((target[i]! + weight * 3) / (1 + weight), 3);
    }
  });

  test('is around the start by default', async () => {
    const { parameters } = await minimised({ weight: 1 });
    expect([...parameters.get('x')!.data]).toEqual([expect.closeTo(0.5, 3), expect.closeTo(-1, 3)]);
  });

  test('is no part of the loss that is reported', async () => {
    expect((await minimised({ weight: 9 })).loss).toBe(0.5);
  });
});
