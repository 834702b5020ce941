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
 * Paired bootstrap over users: both methods' values of a user are drawn together. Of several metrics at once,
 * `[metric][user]`, on the same draws. `weights`: how often each user was tested, if not all as often; a user's value is
 * the mean of these. @throws if the lists differ in length or are empty.
 */
export function pairedBootstrap(
  method: readonly (readonly number[])[],
  baseline: readonly (readonly number[])[],
  seed: number,
  weights?: readonly number[],
): PairedDifference[] {
  const means = resampledMeans([...method, ...baseline], seed, pairedResamples, weights);
  return method.map((values, m) => {
    const [own, other] = [meanOf(values, weights), meanOf(baseline[m]!, weights)];
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
function resampledMeans(
  lists: readonly (readonly number[])[],
  seed: number,
  count: number,
  weights?: readonly number[],
): number[][] {
  const users = lists[0]?.length ?? 0;
  if (users === 0) throw new Error('bootstrap: no users to average over');
  const lengths = [...lists, ...(weights ? [weights] : [])].map(({ length }) => length);
  if (lengths.some((length) => length !== users))
    throw new Error(`bootstrap: ${lengths.join(' and ')} values; each user needs one of each`);
  const { integer } = random(seed, 'bootstrap');
  return Array.from({ length: count }, () => {
    const sums = lists.map(() => 0);
    let total = 0;
    for (let i = 0; i < users; i++) {
      const user = integer(users);
      const weight = weights?.[user] ?? 1;
      total += weight;
      for (const [l, values] of lists.entries()) sums[l]! += weight * values[user]!;
    }
    return sums.map((sum) => sum / total);
  });
}

function interval(mean: number, resampled: readonly number[]): Interval {
  const sorted = resampled.toSorted((a, b) => a - b);
  return { mean, low: quantile(sorted, 0.025), high: quantile(sorted, 0.975) };
}

function meanOf(values: readonly number[], weights?: readonly number[]): number {
  let [sum, total] = [0, 0];
  for (const [user, value] of values.entries()) {
    const weight = weights?.[user] ?? 1;
    sum += weight * value;
    total += weight;
  }
  return sum / total;
}

/** With linear interpolation between order statistics, as numpy's default. */
export function quantile(sorted: readonly number[], q: number): number {
  const at = q * (sorted.length - 1);
  const below = Math.floor(at);
  const [a, b] = [sorted[below]!, sorted[Math.min(below + 1, sorted.length - 1)]!];
  return a + (at - below) * (b - a);
}
