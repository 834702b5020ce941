// Intervals and p-values over users by the percentile bootstrap (Efron 1979).
import { random } from '@fellrec/graph';

/** A mean over users with its 95 % interval. */
export interface Interval {
  readonly mean: number;
  readonly low: number;
  readonly high: number;
}

const resamples = 1000;

/** Mean with its 95 % interval; the same values and seed give the same. @throws if there are no values. */
export function bootstrap(values: readonly number[], seed: number): Interval {
  const means = resampledMeans([values], seed, resamples).map(([mean]) => mean!);
  return interval(meanOf(values), means);
}

/** How one method differs from another on the same users. */
export interface PairedDifference {
  /** method - baseline. */
  readonly difference: Interval;
  /** The same as a share of the baseline's mean; undefined where that is 0, in a resample too. */
  readonly relative?: Interval;
  /**
   * Of no difference, two-sided: twice the smaller share of resamples with a difference of at most, or at least, 0,
   * both counted with one more resample (Davison and Hinkley 1997), so it is never 0.
   */
  readonly p: number;
  readonly users: number;
}

const pairedResamples = 2000;

/**
 * Paired bootstrap over users: both methods' values of a user are drawn together. Of several metrics at once, `[metric][user]`,
 * on the same draws. @throws if the lists differ in length or are empty.
 */
export function pairedBootstrap(
  method: readonly (readonly number[])[],
  baseline: readonly (readonly number[])[],
  seed: number,
): PairedDifference[] {
  const means = resampledMeans([...method, ...baseline], seed, pairedResamples);
  return method.map((values, m) => {
    const [own, other] = [meanOf(values), meanOf(baseline[m]!)];
    const pairs = means.map((resample) => [resample[m]!, resample[method.length + m]!] as const);
    const differences = pairs.map(([a, b]) => a - b);
    const share = (is: (difference: number) => boolean) =>
      (1 + differences.filter(is).length) / (1 + pairedResamples);
    const p = Math.min(
      1,
      2 *
        Math.min(
          share((d) => d <= 0),
          share((d) => d >= 0),
        ),
    );
    const comparable = other > 0 && pairs.every(([, b]) => b > 0);
    return {
      difference: interval(own - other, differences),
      ...(comparable && {
        relative: interval(
          own / other - 1,
          pairs.map(([a, b]) => a / b - 1),
        ),
      }),
      p,
      users: values.length,
    };
  });
}

/** The means of each list in each resample of users. */
function resampledMeans(lists: readonly (readonly number[])[], seed: number, count: number): number[][] {
  const users = lists[0]?.length ?? 0;
  if (users === 0) throw new Error('bootstrap: no users to average over');
  if (lists.some(({ length }) => length !== users))
    throw new Error(
      `bootstrap: ${lists.map(({ length }) => length).join(' and ')} values; each user needs one of each`,
    );
  const { integer } = random(seed, 'bootstrap');
  return Array.from({ length: count }, () => {
    const sums = lists.map(() => 0);
    for (let i = 0; i < users; i++) {
      const user = integer(users);
      for (const [l, values] of lists.entries()) sums[l]! += values[user]!;
    }
    return sums.map((sum) => sum / users);
  });
}

function interval(mean: number, resampled: readonly number[]): Interval {
  const sorted = resampled.toSorted((a, b) => a - b);
  return { mean, low: quantile(sorted, 0.025), high: quantile(sorted, 0.975) };
}

const meanOf = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** With linear interpolation between order statistics, as numpy's default. */
export function quantile(sorted: readonly number[], q: number): number {
  const at = q * (sorted.length - 1);
  const below = Math.floor(at);
  const [a, b] = [sorted[below]!, sorted[Math.min(below + 1, sorted.length - 1)]!];
  return a + (at - below) * (b - a);
}
