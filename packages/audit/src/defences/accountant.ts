// What Gaussian noise guarantees, exactly: the analytic Gaussian mechanism (Balle & Wang 2018, arXiv 1805.06530), and
// composition as in Gaussian differential privacy (Dong, Roth & Su 2019, arXiv 1905.02383).
import { erf, erfc, scaledErfc } from './erfc.ts';

/** A release f(x) + sigma N(0, I). */
export interface GaussianMechanism {
  /** Standard deviation of every coordinate's noise. */
  readonly sigma: number;
  /** The largest ||f(x) - f(x')||_2 of neighbours x, x', in the units of sigma. */
  readonly sensitivity: number;
}

/** (epsilon, delta)-differential privacy. */
export interface Budget {
  /** From 0. */
  readonly epsilon: number;
  /** Above 0, below 1. */
  readonly delta: number;
}

/**
 * The smallest delta with which a mechanism is (epsilon, delta)-private. With mu = sensitivity / sigma (theorem 8 of
 * Balle & Wang):
 *
 *   delta = Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu)
 */
export function gaussianDelta(mechanism: GaussianMechanism, epsilon: number): number {
  assertEpsilon(epsilon);
  return deltaOf(muOf(mechanism), epsilon);
}

/** The smallest epsilon with which a mechanism is (epsilon, delta)-private. */
export function gaussianEpsilon(mechanism: GaussianMechanism, delta: number): number {
  assertDelta(delta);
  const mu = muOf(mechanism);
  const holds = (epsilon: number) => deltaOf(mu, epsilon) <= delta;
  if (holds(0)) return 0;
  let enough = 1;
  while (!holds(enough)) enough *= 2;
  return bisect(holds, { held: enough, broken: 0 });
}

/** The smallest noise that makes a release of this sensitivity (epsilon, delta)-private. */
export function gaussianSigma({
  epsilon,
  delta,
  sensitivity,
}: Budget & { readonly sensitivity: number }): number {
  assertPositive('sensitivity', sensitivity);
  return sensitivity / largestMu({ epsilon, delta });
}

/** The largest sensitivity / sigma that is (epsilon, delta)-private; B in DP-Forward (arXiv 2309.06746). */
export function largestMu({ epsilon, delta }: Budget): number {
  assertEpsilon(epsilon);
  assertDelta(delta);
  const holds = (mu: number) => deltaOf(mu, epsilon) <= delta;
  let held = 1;
  while (!holds(held)) held /= 2;
  let broken = 2 * held;
  while (holds(broken)) broken *= 2;
  return bisect(holds, { held, broken });
}

/**
 * One mechanism that is exactly as private as all of these together, each of which may depend on what the earlier
 * ones released: mu^2 = sum of mu_i^2 (section 3 of Dong et al.). They must share a neighbouring relation.
 */
export function composed(mechanisms: readonly GaussianMechanism[]): GaussianMechanism {
  if (mechanisms.length === 0) throw new Error('composed: expected at least one mechanism, found none');
  return { sensitivity: Math.sqrt(mechanisms.reduce((sum, each) => sum + muOf(each) ** 2, 0)), sigma: 1 };
}

/** One mechanism that is exactly as private as `releases` releases by this one: sigma / sqrt(releases). */
export function repeated({ sigma, sensitivity }: GaussianMechanism, releases: number): GaussianMechanism {
  if (!(Number.isInteger(releases) && releases >= 1))
    throw new Error(`releases: expected an integer from 1, found ${releases}`);
  return { sensitivity, sigma: sigma / Math.sqrt(releases) };
}

// With a = mu/2 - epsilon/mu and b = a - mu, e^epsilon = exp((b^2 - a^2) / 2), so that Phi(x) = erfc(-x/sqrt 2) / 2
// and the scaled erfc need no e^epsilon, which overflows, and no difference of two numbers far in a tail. What it gives
// has 12 digits from epsilon = 1 on, and one less with every tenth of it, for the two values draw near each other; at 0,
// where a = -b, it is erf(mu / (2 sqrt 2)).
function deltaOf(mu: number, epsilon: number): number {
  if (epsilon === 0) return erf(mu / (2 * Math.SQRT2));
  const t = (epsilon / mu - mu / 2) / Math.SQRT2; // -a / sqrt 2
  const u = (epsilon / mu + mu / 2) / Math.SQRT2; // -b / sqrt 2
  return t < 0
    ? (erfc(t) - Math.exp(-t * t) * scaledErfc(u)) / 2
    : (Math.exp(-t * t) * (scaledErfc(t) - scaledErfc(u))) / 2;
}

/** The number nearest to where `holds` changes at which it still does: no double lies between it and one that breaks. */
function bisect(
  holds: (x: number) => boolean,
  { held, broken }: { readonly held: number; readonly broken: number },
): number {
  const middle = (held + broken) / 2;
  if (middle === held || middle === broken) return held;
  return bisect(holds, holds(middle) ? { held: middle, broken } : { held, broken: middle });
}

function muOf({ sigma, sensitivity }: GaussianMechanism): number {
  assertPositive('sigma', sigma);
  assertPositive('sensitivity', sensitivity);
  return sensitivity / sigma;
}

function assertEpsilon(epsilon: number): void {
  if (!(epsilon >= 0 && epsilon < Infinity))
    throw new Error(`epsilon: expected a finite number from 0, found ${epsilon}`);
}

function assertDelta(delta: number): void {
  if (!(delta > 0 && delta < 1))
    throw new Error(`delta: expected a number between 0 and 1, found ${delta}; 1e-5 is usual`);
}

function assertPositive(name: string, value: number): void {
  if (!(value > 0 && value < Infinity))
    throw new Error(`${name}: expected a finite number above 0, found ${value}`);
}
