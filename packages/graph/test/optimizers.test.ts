// AdamW against the formulas of torch.optim.AdamW and clip_grad_norm_ in float64; the schedule against transformers'.
import { expect, test } from 'vitest';
import { type AdamWOptions, adamW, globalNorm } from '../src/optimizers/adamw.ts';
import { linearSchedule } from '../src/optimizers/schedule.ts';
import { random } from '../src/random.ts';
import { float32, type NamedTensors } from '../src/tensor.ts';

const named = (tensors: Record<string, readonly number[]>): NamedTensors =>
  new Map(Object.entries(tensors).map(([name, data]) => [name, float32(data, [data.length])]));
const numbers = (tensors: NamedTensors) => [...tensors.values()].flatMap(({ data }) => [...data]);

/** All elements of all parameters as one list, step by step as PyTorch's single-tensor AdamW. */
function torchAdamW(
  start: readonly number[],
  gradients: readonly (readonly number[])[],
  rates: readonly number[],
  { betas: [b1, b2] = [0.9, 0.999], epsilon = 1e-8, weightDecay = 0, clipNorm }: AdamWOptions,
): number[] {
  const p = [...start];
  const m = start.map(() => 0);
  const v = start.map(() => 0);
  gradients.forEach((gradient, t) => {
    const norm = Math.hypot(...gradient);
    const clip = clipNorm === undefined ? 1 : Math.min(1, clipNorm / (norm + 1e-6));
    p.forEach((_, i) => {
      const g = gradient[i]! * clip;
      p[i]! *= 1 - rates[t]! * weightDecay;
      m[i] = m[i]! + (g - m[i]!) * (1 - b1); // exp_avg.lerp_
      v[i] = v[i]! * b2 + g * g * (1 - b2);
      const stepSize = rates[t]! / (1 - b1 ** (t + 1));
      const denominator = Math.sqrt(v[i]!) / Math.sqrt(1 - b2 ** (t + 1)) + epsilon;
      p[i]! -= (stepSize * m[i]!) / denominator;
    });
  });
  return p;
}

test('the first step goes by the learning rate against the sign, after decay', () => {
  const { init, update } = adamW({ weightDecay: 0.1 });
  const parameters = named({ a: [1, -2], b: [3] });
  const { parameters: next, state } = update(named({ a: [0.5, -4], b: [100] }), init(parameters), 0.01);
  [0.999 - 0.01, -1.998 + 0.01, 2.997 - 0.01].forEach((expected, i) => {
    expect(numbers(next)[i]).toBeCloseTo(expected, 6);
  });
  expect(state.step).toBe(1);
  expect(numbers(state.first)[1]).toBeCloseTo(-0.4, 6);
  expect(numbers(state.second)[1]).toBeCloseTo(0.016, 6);
});

test.each<[string, AdamWOptions]>([
  ['defaults', {}],
  ['weight decay', { weightDecay: 0.1 }],
  ['clipping', { clipNorm: 1 }],
  ['clipping that does not bind', { clipNorm: 1e3 }],
  ['all settings', { betas: [0.8, 0.95], epsilon: 1e-3, weightDecay: 0.05, clipNorm: 0.5 }],
])('twenty steps as PyTorch: %s', (_, options) => {
  const draw = random(1, 'adamw');
  const list = (scale: number) => Array.from({ length: 5 }, () => Math.fround(scale * draw.normal()));
  const start = list(1);
  const gradients = Array.from({ length: 20 }, (_, step) => list(step % 3 === 0 ? 3 : 0.1));
  const rates = gradients.map((_, step) => 0.05 * linearSchedule(step, 20, 4));
  const split = (all: readonly number[]) => named({ a: all.slice(0, 2), b: all.slice(2) });

  const { init, update } = adamW(options);
  let parameters = split(start);
  let state = init(parameters);
  gradients.forEach((gradient, step) => {
    const found = update(split(gradient), state, rates[step]!);
    expect(found.gradientNorm).toBeCloseTo(Math.hypot(...gradient), 6); // before clipping
    ({ parameters, state } = found);
  });
  expect(state.step).toBe(20);
  torchAdamW(start, gradients, rates, options).forEach((expected, i) => {
    expect(Math.abs(numbers(parameters)[i]! - expected)).toBeLessThan(2e-6);
  });
});

test('the start and the gradients stay as they are; a state is used up', () => {
  const { init, update } = adamW({ weightDecay: 0.1, clipNorm: 0.1 });
  const parameters = named({ a: [1, 2] });
  const gradients = named({ a: [3, 4] });
  const first = update(gradients, init(parameters), 0.1);
  expect([numbers(parameters), numbers(gradients)]).toEqual([
    [1, 2],
    [3, 4],
  ]);
  expect(first.parameters.get('a')!.dims).toEqual([2]);
  const before = numbers(first.parameters);
  const second = update(gradients, first.state, 0.1);
  expect(second.parameters).toBe(first.parameters);
  expect(numbers(first.parameters)).not.toEqual(before);
});

test('a gradient that is missing, or of another size, is named', () => {
  const { init, update } = adamW();
  const state = init(named({ a: [1], b: [2] }));
  expect(() => update(named({ a: [1] }), state, 0.1)).toThrow('adamw: no gradient for "b"');
  expect(() => update(named({ a: [1], b: [1, 2] }), state, 0.1)).toThrow(
    'the gradient for "b" has 2 numbers, the parameter 1',
  );
  expect(numbers(state.parameters)).toEqual([1, 2]);
});

test('the norm is that of all tensors together', () => {
  expect(globalNorm(named({ a: [1, 2], b: [2] }))).toBe(3);
  expect(globalNorm(new Map())).toBe(0);
});

test('the linear schedule warms up, then falls to 0', () => {
  const factors = (steps: number, ...settings: [number, number?]) =>
    Array.from({ length: steps }, (_, step) => linearSchedule(step, ...settings));
  expect(factors(7, 6, 2)).toEqual([0, 0.5, 1, 0.75, 0.5, 0.25, 0]);
  expect(factors(5, 4)).toEqual([1, 0.75, 0.5, 0.25, 0]);
  expect(linearSchedule(9, 4)).toBe(0);
  expect(factors(4, 2, 2)).toEqual([0, 0.5, 0, 0]);
});
