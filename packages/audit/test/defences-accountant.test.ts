import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  composed,
  gaussianDelta,
  gaussianEpsilon,
  gaussianSigma,
  largestMu,
  repeated,
} from '../src/defences/accountant.ts';
import { erfc, scaledErfc } from '../src/defences/erfc.ts';

// All tables by mpmath 1.4.1 at 60 digits, from the doubles that the literals stand for, rounded to doubles:
//   Phi = lambda x: erfc(-x / sqrt(2)) / 2
//   delta = lambda e, s, S: Phi(S / (2*s) - e*s / S) - exp(e) * Phi(-S / (2*s) - e*s / S)
//   scaled erfc = exp(x**2) * erfc(x)
//   sigma: 300 bisections of delta(e, sigma, S) = d in log(sigma) from 1e-8 to 1e16

const erfcTable = [
  [-3, 1.9999779095030015],
  [-0.5, 1.5204998778130465],
  [0, 1],
  [0.001, 0.9988716212090307],
  [0.3, 0.6713732405408726],
  [0.9, 0.20309178757716786],
  [1, 0.15729920705028513],
  [1.1, 0.11979493042591827],
  [2, 0.004677734981047266],
  [3.7, 1.6715105790914599e-7],
  [6, 2.1519736712498913e-17],
  [10, 2.088487583762545e-45],
  [20, 5.395865611607901e-176],
  [26, 5.663192408856143e-296],
] as const;

const scaledErfcTable = [
  [0, 1],
  [0.3, 0.7345993345676551],
  [0.9, 0.456531651323117],
  [1, 0.427583576155807],
  [1.1, 0.4017304606364951],
  [2, 0.25539567631050575],
  [6, 0.09277656780053835],
  [30, 0.01879588886141675],
  [1e6, 5.641895835474742e-7],
] as const;

/** epsilon, sigma, sensitivity, delta. */
const deltaTable = [
  [0, 1, 1, 0.38292492254802624],
  [0, 1000, 1, 0.0003989422637788383],
  [1, 1, 1, 0.12693673750664394],
  [0.01, 8, 0.03, 4.453346494735667e-6],
  [0.1, 50, 2, 8.426163698189746e-5],
  [1, 0.5, 2, 0.9267112812554804],
  [8, 0.7, 2, 0.05006763488280378],
  [50, 0.1, 1, 0.46049330589861376],
  [1000, 0.05, 2, 2.536296514956518e-7],
] as const;

/** epsilon, delta, sensitivity, sigma. */
const sigmaTable = [
  [0, 1e-5, 1, 39894.22803909884],
  [0.01, 1e-5, 1, 243.78543767567803],
  [0.1, 1e-6, 2, 72.60938085239157],
  [0.5, 1e-5, 1, 7.031826675582491],
  [1, 1e-5, 1, 3.730631634815942],
  [1, 1e-5, 20, 74.61263269631884],
  [1, 1e-12, 2, 13.1156441349177],
  [2, 0.01, 0.5, 0.5581271608807928],
  [4, 1e-5, 2, 2.1623236990404786],
  [8, 1e-5, 2, 1.200458144397903],
  [8, 1e-6, 30, 19.58806153074648],
  [16, 1e-5, 2, 0.6883548569927871],
  [50, 1e-8, 1, 0.16902906109367016],
  [100, 0.5, 1, 0.07036032149083715],
  [1000, 1e-5, 1, 0.024581783351654278],
] as const;

function expectRelative(found: number, expected: number, tolerance: number): void {
  expect(Math.abs(found - expected) / Math.abs(expected), `${found}, expected ${expected}`).toBeLessThan(
    tolerance,
  );
}

/** Log-uniform. */
const between = (low: number, high: number) =>
  fc.double({ min: Math.log(low), max: Math.log(high), noNaN: true }).map(Math.exp);
const epsilons = between(0.01, 100);
const deltas = between(1e-12, 0.5);
const mechanisms = fc.record({ sigma: between(0.1, 100), sensitivity: between(0.1, 10) });

describe('erfc', () => {
  it.each(erfcTable)('of %d', (x, expected) => expectRelative(erfc(x), expected, 1e-13));
  it.each(scaledErfcTable)('scaled, of %d', (x, expected) => expectRelative(scaledErfc(x), expected, 1e-14));
});

describe('a Gaussian mechanism', () => {
  it.each(deltaTable)(
    'at epsilon %d with sigma %d for sensitivity %d',
    (epsilon, sigma, sensitivity, delta) => {
      expectRelative(gaussianDelta({ sigma, sensitivity }, epsilon), delta, 1e-12);
    },
  );

  it('has a delta of 0 where it is too small for a number', () => {
    expect(gaussianDelta({ sigma: 20, sensitivity: 1 }, 3)).toBe(0); // 4.6e-787
    expect(gaussianDelta({ sigma: 1e-3, sensitivity: 1 }, 1)).toBe(1);
  });

  it.each(sigmaTable)('for epsilon %d, delta %d, sensitivity %d', (epsilon, delta, sensitivity, sigma) => {
    expectRelative(gaussianSigma({ epsilon, delta, sensitivity }), sigma, 1e-12);
    expectRelative(largestMu({ epsilon, delta }), sensitivity / sigma, 1e-12);
    const found = gaussianEpsilon({ sigma, sensitivity }, delta);
    if (epsilon > 0) expectRelative(found, epsilon, 1e-10);
    else expect(found).toBeLessThan(1e-9);
  });

  it.each([1e-5, 1e-10, 1e-16, 1e-18])('at epsilon 0 with a delta of %d', (delta) => {
    // delta = erf(x), x = 1 / (2 sqrt(2) sigma), which is 2 x / sqrt(pi) there.
    const sigma = gaussianSigma({ epsilon: 0, delta, sensitivity: 1 });
    expectRelative(sigma, 1 / (delta * Math.sqrt(2 * Math.PI)), delta ** 2 + 1e-13);
  });

  it('spends the epsilon that its noise was made for', () => {
    fc.assert(
      fc.property(epsilons, deltas, between(0.1, 10), (epsilon, delta, sensitivity) => {
        // Where epsilon hardly changes delta, it hardly changes sigma, and sigma says little about it.
        fc.pre(epsilon > delta);
        const sigma = gaussianSigma({ epsilon, delta, sensitivity });
        expectRelative(gaussianDelta({ sigma, sensitivity }, epsilon), delta, 1e-10);
        expectRelative(gaussianEpsilon({ sigma, sensitivity }, delta), epsilon, 1e-9);
      }),
    );
  });

  it('needs less noise for a larger epsilon or delta, and twice the noise for twice the sensitivity', () => {
    fc.assert(
      fc.property(
        epsilons,
        deltas,
        fc.double({ min: 1.01, max: 2, noNaN: true }),
        (epsilon, delta, factor) => {
          const sigma = gaussianSigma({ epsilon, delta, sensitivity: 1 });
          expect(gaussianSigma({ epsilon: epsilon * factor, delta, sensitivity: 1 })).toBeLessThan(sigma);
          expect(gaussianSigma({ epsilon, delta: delta * Math.sqrt(factor), sensitivity: 1 })).toBeLessThan(
            sigma,
          );
          expectRelative(gaussianSigma({ epsilon, delta, sensitivity: 2 }), 2 * sigma, 1e-14);
        },
      ),
    );
  });

  it('has no epsilon where noise alone hides everything', () => {
    expect(gaussianEpsilon({ sigma: 1e6, sensitivity: 1 }, 1e-5)).toBe(0);
  });
});

describe('composition', () => {
  it('of releases of one mechanism is one with sigma / sqrt(releases)', () => {
    expect(repeated({ sigma: 6, sensitivity: 2 }, 9)).toEqual({ sigma: 2, sensitivity: 2 });
    fc.assert(
      fc.property(mechanisms, fc.integer({ min: 1, max: 50 }), epsilons, (mechanism, releases, epsilon) => {
        const all = composed(Array.from({ length: releases }, () => mechanism));
        const one = repeated(mechanism, releases);
        expectRelative(all.sensitivity / all.sigma, one.sensitivity / one.sigma, 1e-13);
        expect(gaussianDelta(one, epsilon)).toBeGreaterThanOrEqual(gaussianDelta(mechanism, epsilon));
      }),
    );
  });

  it('is that of one release of all vectors together: mu adds in squares', () => {
    const [first, second] = [
      { sigma: 2, sensitivity: 6 },
      { sigma: 0.5, sensitivity: 2 },
    ];
    expect(composed([first, second])).toEqual({ sigma: 1, sensitivity: 5 });
    expect(composed([second, first])).toEqual(composed([first, second]));
  });

  it('costs less than the sum of the epsilons', () => {
    // Ten times the sigma of the table for epsilon 1, delta 1e-5: 100 releases spend that together.
    const sigma = 10 * 3.730631634815942;
    expectRelative(gaussianEpsilon(repeated({ sigma, sensitivity: 1 }, 100), 1e-5), 1, 1e-10);
    const sumOfEpsilons = 100 * gaussianEpsilon({ sigma, sensitivity: 1 }, 1e-5 / 100);
    expect(sumOfEpsilons).toBeGreaterThan(2);
  });
});

describe('the accountant refuses', () => {
  const mechanism = { sigma: 1, sensitivity: 1 };
  it.each<[string, () => unknown]>([
    ['epsilon: expected a finite number from 0, found -1', () => gaussianDelta(mechanism, -1)],
    [
      'epsilon: expected a finite number from 0, found NaN',
      () => largestMu({ epsilon: Number.NaN, delta: 0.1 }),
    ],
    ['delta: expected a number between 0 and 1, found 0; 1e-5 is usual', () => gaussianEpsilon(mechanism, 0)],
    ['delta: expected a number between 0 and 1, found 1;', () => largestMu({ epsilon: 1, delta: 1 })],
    ['sigma: expected a finite number above 0, found 0', () => gaussianDelta({ ...mechanism, sigma: 0 }, 1)],
    [
      'sensitivity: expected a finite number above 0, found Infinity',
      () => gaussianSigma({ epsilon: 1, delta: 0.1, sensitivity: Infinity }),
    ],
    ['releases: expected an integer from 1, found 0.5', () => repeated(mechanism, 0.5)],
    ['composed: expected at least one mechanism, found none', () => composed([])],
  ])('%s', (message, call) => expect(call).toThrow(message));
});
