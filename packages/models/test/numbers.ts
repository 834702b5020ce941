// Differences of arrays of numbers.

type Numbers = ArrayLike<number | bigint>;

/** The largest |found - expected|; infinite if lengths differ or something is no number. */
export function largestDifference(found: Numbers, expected: Numbers): number {
  if (found.length !== expected.length) return Number.POSITIVE_INFINITY;
  let largest = 0;
  for (let i = 0; i < found.length; i++) {
    const difference = Math.abs(Number(found[i]) - Number(expected[i]));
    if (!(difference <= largest)) largest = Number.isNaN(difference) ? Number.POSITIVE_INFINITY : difference;
  }
  return largest;
}

/** The largest difference, relative to the largest expected magnitude. */
export function relativeDifference(found: Numbers, expected: Numbers): number {
  return largestDifference(found, expected) / Math.max(...Array.from(expected, (x) => Math.abs(Number(x))));
}

/** The L2 norm. */
export function norm(data: ArrayLike<number>): number {
  return Math.sqrt(Array.from(data).reduce((sum, x) => sum + x * x, 0));
}
