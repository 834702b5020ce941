import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { composed, gaussianEpsilon, gaussianSigma, repeated } from '../src/defences/accountant.ts';
import { clipMatrix, clipRows, type NoiseShape, noisyMatrix, noisyRows } from '../src/defences/noise.ts';

const norm = (numbers: Float32Array) => Math.sqrt(numbers.reduce((sum, x) => sum + x * x, 0));
const rowsOf = (states: Float32Array, width: number) =>
  Array.from({ length: states.length / width }, (_, i) => states.subarray(i * width, (i + 1) * width));
const f32 = (...numbers: number[]) => Float32Array.from(numbers);

const width = 3;
const someStates = fc
  .integer({ min: 1, max: 4 })
  .chain((tokens) =>
    fc.array(fc.float({ noNaN: true, noDefaultInfinity: true }), {
      minLength: tokens * width,
      maxLength: tokens * width,
    }),
  )
  .map((numbers) => Float32Array.from(numbers));
const clips = fc.double({ min: 0.01, max: 100, noNaN: true });
const budget = { epsilon: 4, delta: 1e-5 };
/** As the table of the accountant's test has it for sensitivity 2: clip 1. */
const sigmaOfBudget = 2.1623236990404786;

describe('clipping', () => {
  it('brings 3, 4 to a norm of 1', () => {
    expect(clipRows(f32(3, 4, 0.3, 0.4), { width: 2, clip: 1 })).toEqual(f32(3 / 5, 4 / 5, 0.3, 0.4));
    expect(clipMatrix(f32(1, 3, 1, 5), 3)).toEqual(f32(0.5, 1.5, 0.5, 2.5));
    expect(clipMatrix(f32(1, 3, 1, 5), 7)).toEqual(f32(1, 3, 1, 5));
  });

  // Rounding each number to float32 is what is left: 2^-24 of it, or less than the smallest float32.
  it('never raises a norm, leaves none above the clip, and does nothing a second time', () => {
    fc.assert(
      fc.property(someStates, clips, (states, clip) => {
        const ways = [
          {
            once: clipMatrix(states, clip),
            again: (x: Float32Array) => clipMatrix(x, clip),
            size: states.length,
          },
          {
            once: clipRows(states, { width, clip }),
            again: (x: Float32Array) => clipRows(x, { width, clip }),
            size: width,
          },
        ];
        for (const { once, again, size } of ways) {
          const before = rowsOf(states, size);
          rowsOf(once, size).forEach((row, i) => {
            expect(norm(row)).toBeLessThanOrEqual(Math.min(norm(before[i]!), clip) * (1 + 1e-7) + 1e-44);
            expect(norm(row)).toBeGreaterThanOrEqual(Math.min(norm(before[i]!), clip) * (1 - 1e-7) - 1e-44);
          });
          again(once).forEach((x, i) => {
            expect(Math.abs(x - once[i]!)).toBeLessThanOrEqual(Math.abs(once[i]!) * 2e-7 + 1e-44);
          });
        }
      }),
    );
  });
});

/** Of many releases of states of zeros: E[z_a z_b] for all pairs of the first `size` numbers, row-major. */
function covariance(release: (i: number) => Float32Array, size: number, releases: number): Float64Array {
  const sums = new Float64Array(size * size);
  for (let i = 0; i < releases; i++) {
    const z = release(i);
    for (let a = 0; a < size; a++)
      for (let b = 0; b < size; b++) sums[a * size + b]! += (z[a]! * z[b]!) / releases;
  }
  return sums;
}

/** Within 5 standard errors of an estimate from Gaussians: var(z_a z_b) = c_aa c_bb + c_ab^2. */
function expectCovariance(
  found: Float64Array,
  expected: (a: number, b: number) => number,
  releases: number,
): void {
  const size = Math.sqrt(found.length);
  for (let a = 0; a < size; a++)
    for (let b = 0; b < size; b++) {
      const error = Math.sqrt((expected(a, a) * expected(b, b) + expected(a, b) ** 2) / releases);
      expect(Math.abs(found[a * size + b]! - expected(a, b)) / error, `${a}, ${b}`).toBeLessThan(5);
    }
}

const releases = 5000;
const tokens = 2;
const zeros = new Float32Array(tokens * width);
const turn = (angle: number) => [Math.cos(angle), -Math.sin(angle), Math.sin(angle), Math.cos(angle)];
/** Their directions are rotations, of two and of three dimensions. */
const rowShape: NoiseShape = { singularValues: [1, 3], directions: turn(0.5) };
const columnShape: NoiseShape = {
  singularValues: [2, 4, 5],
  directions: [2, -1, 2, 2, 2, -1, -1, 2, 2].map((x) => x / 3),
};

/** W diag(s^2) W^T. */
function gram({ singularValues: s, directions: w }: NoiseShape, a: number, b: number): number {
  const size = s.length;
  let sum = 0;
  for (let k = 0; k < size; k++) sum += w![a * size + k]! * s[k]! ** 2 * w![b * size + k]!;
  return sum;
}

describe('noise on rows', () => {
  const options = { ...budget, width, clip: 1, stream: [1, 'noise'], neighbours: 'state' } as const;

  it('has the sigma of the analytic Gaussian mechanism for sensitivity 2 clip, times sqrt(tokens) for a sequence', () => {
    const one = noisyRows(zeros, options).mechanism;
    expect(one.sensitivity).toBe(2);
    expect(one.sigma).toBeCloseTo(sigmaOfBudget, 12);
    const all = noisyRows(zeros, { ...options, neighbours: 'sequence' }).mechanism;
    expect(all.sensitivity).toBeCloseTo(2 * Math.SQRT2, 12);
    expect(all.sigma).toBeCloseTo(sigmaOfBudget * Math.SQRT2, 12);
    // The states of a sequence, each a release of its own, are as private as the sequence.
    const sequence = { ...all, sigma: one.sigma };
    expect(gaussianEpsilon(repeated(one, tokens), 1e-5)).toBeCloseTo(gaussianEpsilon(sequence, 1e-5), 9);
  });

  it('is independent in every number', () => {
    const { sigma } = noisyRows(zeros, options).mechanism;
    const found = covariance(
      (i) => noisyRows(zeros, { ...options, stream: [1, 'rows', i] }).states,
      zeros.length,
      releases,
    );
    expectCovariance(found, (a, b) => (a === b ? sigma ** 2 : 0), releases);
  });

  it('lies on the clipped rows', () => {
    const states = f32(3, 4, 0, 0.1, 0.2, 0.2);
    const noise = noisyRows(zeros, options).states;
    const clipped = clipRows(states, options);
    noisyRows(states, options).states.forEach((x, i) => {
      expect(x).toBeCloseTo(clipped[i]! + noise[i]!, 5);
    });
  });

  it('is set by its stream', () => {
    expect(noisyRows(zeros, options)).toEqual(noisyRows(zeros, options));
    expect(noisyRows(zeros, { ...options, stream: [2, 'noise'] }).states).not.toEqual(
      noisyRows(zeros, options).states,
    );
  });
});

describe('matrix noise', () => {
  const options = { ...budget, width, clip: 1, stream: [1, 'noise'] } as const;

  it('without shapes is the analytic Gaussian mechanism for sensitivity 2 clip', () => {
    const { states, mechanism } = noisyMatrix(zeros, options);
    expect(mechanism.sensitivity).toBe(2);
    expect(mechanism.sigma).toBeCloseTo(sigmaOfBudget, 12);
    expect(states).toEqual(noisyRows(zeros, { ...options, neighbours: 'state' }).states);
  });

  it('without shapes, of one token, is noise on rows', () => {
    fc.assert(
      fc.property(
        fc.array(fc.float({ noNaN: true, min: -9, max: 9 }), { minLength: 1, maxLength: 5 }),
        (numbers) => {
          const o = { ...options, width: numbers.length };
          expect(noisyMatrix(f32(...numbers), o)).toEqual(
            noisyRows(f32(...numbers), { ...o, neighbours: 'sequence' }),
          );
        },
      ),
    );
  });

  it('with shapes has the covariance U U^T x V V^T, with sigma_min(U) sigma_min(V) = 2 clip / B', () => {
    const shaped = { ...options, rowShape, columnShape };
    const found = covariance(
      (i) => noisyMatrix(zeros, { ...shaped, stream: [1, 'matrix', i] }).states,
      zeros.length,
      releases,
    );
    const scale = sigmaOfBudget / (1 * 2); // smallest singular values as given
    const at = (a: number) => [Math.floor(a / width), a % width] as const;
    expectCovariance(
      found,
      (a, b) => {
        const [[i, j], [k, l]] = [at(a), at(b)];
        return scale ** 2 * gram(rowShape, i, k) * gram(columnShape, j, l);
      },
      releases,
    );
  });

  it('with shapes is as private as it says: in its worst direction noise has the sigma of the mechanism', () => {
    // A difference u v^T of rank one along the smallest singular values, of norm 2 clip, shows by u^T Z v.
    const shaped = { ...options, rowShape, columnShape };
    const { mechanism } = noisyMatrix(zeros, shaped);
    const [u, v] = [
      [0, 1].map((i) => rowShape.directions![i * 2]!),
      [0, 1, 2].map((j) => columnShape.directions![j * 3]!),
    ];
    let square = 0;
    for (let n = 0; n < releases; n++) {
      const z = noisyMatrix(zeros, { ...shaped, stream: [2, 'matrix', n] }).states;
      square +=
        z.reduce((sum, x, a) => sum + u![Math.floor(a / width)]! * v![a % width]! * x, 0) ** 2 / releases;
    }
    expect(Math.abs(square / mechanism.sigma ** 2 - 1)).toBeLessThan(5 * Math.sqrt(2 / releases));
    expect(gaussianEpsilon(mechanism, 1e-5)).toBeCloseTo(4, 9);
  });

  it('depends on the ratios of singular values only', () => {
    const times = (factor: number) =>
      noisyMatrix(zeros, {
        ...options,
        rowShape: { ...rowShape, singularValues: [factor, 3 * factor] },
        columnShape,
      }).states;
    expect(times(8)).toEqual(times(1));
  });

  it('falls as epsilon grows, number by number', () => {
    fc.assert(
      fc.property(fc.double({ min: 0.1, max: 20, noNaN: true }), fc.integer(), (epsilon, seed) => {
        const o = { ...options, rowShape, columnShape, stream: [seed] as const };
        const noise = noisyMatrix(zeros, { ...o, epsilon }).states;
        noisyMatrix(zeros, { ...o, epsilon: 1.5 * epsilon }).states.forEach((x, i) => {
          expect(Math.abs(x)).toBeLessThan(Math.abs(noise[i]!));
        });
      }),
    );
  });

  it('counts releases together', () => {
    const { mechanism } = noisyMatrix(zeros, options);
    const four = composed([mechanism, mechanism, mechanism, mechanism]);
    const sigma = gaussianSigma({ ...budget, sensitivity: 2 });
    expect(gaussianEpsilon(four, 1e-5)).toBeCloseTo(gaussianEpsilon({ sensitivity: 4, sigma }, 1e-5), 9);
  });
});

describe('refused', () => {
  const options = { ...budget, width, clip: 1, stream: [1] } as const;
  it.each<[string, () => unknown]>([
    ['clip: expected a finite number above 0, found 0', () => clipMatrix(zeros, 0)],
    [
      'states: expected finite numbers, found NaN in token 1',
      () => clipRows(f32(1, Number.NaN), { width: 1, clip: 1 }),
    ],
    [
      'rowShape: expected 2 singular values, found 3',
      () => noisyMatrix(zeros, { ...options, rowShape: { singularValues: [1, 1, 1] } }),
    ],
    [
      'columnShape: expected finite singular values above 0, found 0; epsilon would be infinite',
      () => noisyMatrix(zeros, { ...options, columnShape: { singularValues: [1, 0, 1] } }),
    ],
    [
      'rowShape: expected directions [2, 2], found 3 numbers',
      () => noisyMatrix(zeros, { ...options, rowShape: { singularValues: [1, 1], directions: [1, 0, 0] } }),
    ],
    [
      'rowShape: directions are not orthonormal: rows 1 and 0 have the product 1, not 0',
      () =>
        noisyMatrix(zeros, { ...options, rowShape: { singularValues: [1, 1], directions: [1, 0, 1, 0] } }),
    ],
  ])('%s', (message, call) => expect(call).toThrow(message));
});
