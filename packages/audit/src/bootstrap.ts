// Intervals over users by the percentile bootstrap (Efron 1979).
import { random } from '@fellrec/graph';
import type { Interval } from './result.ts';

const resamples = 1000;

/** Mean with its 95 % interval; the same values and seed give the same. @throws if there are no values. */
export function bootstrap(values: readonly number[], seed: number): Interval {
  if (values.length === 0) throw new Error('audit: no users to average over');
  const { integer } = random(seed, 'bootstrap');
  const count = values.length;
  const means = Array.from({ length: resamples }, () => {
    let sum = 0;
    for (let i = 0; i < count; i++) sum += values[integer(count)]!;
    return sum / count;
  }).sort((a, b) => a - b);
  return {
    mean: values.reduce((sum, value) => sum + value, 0) / count,
    low: quantile(means, 0.025),
    high: quantile(means, 0.975),
  };
}

/** With linear interpolation between order statistics, as numpy's default. */
export function quantile(sorted: readonly number[], q: number): number {
  const at = q * (sorted.length - 1);
  const below = Math.floor(at);
  const [a, b] = [sorted[below]!, sorted[Math.min(below + 1, sorted.length - 1)]!];
  return a + (at - below) * (b - a);
}
