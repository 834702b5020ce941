// Gaussian noise on the states of a sequence. For measuring what noise does to attacks and to a recommender: the
// generator can be predicted, and floating-point noise leaks through its lowest bits (Mironov 2012).
import { random } from '@fellrec/graph';
import { type Budget, type GaussianMechanism, gaussianSigma, largestMu } from './accountant.ts';
import { tokensOf } from './rows.ts';

/** States as they leave, and the mechanism that they left by, for the accountant. */
export interface Release {
  /** [tokens, width]. */
  readonly states: Float32Array;
  readonly mechanism: GaussianMechanism;
}

export interface NoiseOptions extends Budget {
  readonly width: number;
  /** Largest norm that is kept. */
  readonly clip: number;
  /** Seed and name of the noise. No two releases may share it: their difference would have no noise. */
  readonly stream: readonly [number, ...(string | number)[]];
}

/** States [tokens, width], each row scaled down to an L2 norm of at most `clip`. */
export function clipRows(
  states: Float32Array,
  { width, clip }: { readonly width: number; readonly clip: number },
): Float32Array {
  const factors = rowFactors(states, { width, clip });
  return states.map((x, i) => x * factors[Math.floor(i / width)]!);
}

/** States scaled down, as one matrix, to a Frobenius norm of at most `clip`. */
export function clipMatrix(states: Float32Array, clip: number): Float32Array {
  tokensOf(states, 1);
  const factor = factorOf(states, clip);
  return states.map((x) => x * factor);
}

/**
 * States [tokens, width] with rows clipped to `clip`, plus i.i.d. noise of the analytic Gaussian mechanism.
 *
 * `neighbours` says between what nobody can tell: any two values of one `state` (sensitivity 2 clip; all states of a
 * sequence are then many releases), or any two `sequence`s of as many tokens (2 clip sqrt(tokens)). How many tokens
 * there are is not hidden.
 */
export function noisyRows(
  states: Float32Array,
  {
    width,
    clip,
    epsilon,
    delta,
    stream,
    neighbours,
  }: NoiseOptions & { readonly neighbours: 'state' | 'sequence' },
): Release {
  const factors = rowFactors(states, { width, clip });
  const sensitivity = 2 * clip * (neighbours === 'sequence' ? Math.sqrt(factors.length) : 1);
  const sigma = gaussianSigma({ epsilon, delta, sensitivity });
  const { normal } = random(...stream);
  return {
    states: states.map((x, i) => x * factors[Math.floor(i / width)]! + sigma * normal()),
    mechanism: { sigma, sensitivity },
  };
}

/** One side of matrix noise: a square matrix W diag(s), which together with the other side sets the noise's shape. */
export interface NoiseShape {
  /** s [size], above 0. Only ratios count: the scale follows from epsilon. */
  readonly singularValues: ArrayLike<number>;
  /** W [size, size], row-major, orthonormal, column j with singular value j; the unit vectors if absent. */
  readonly directions?: ArrayLike<number>;
}

/**
 * States [tokens, width] clipped to a Frobenius norm of `clip`, plus matrix noise: the analytic matrix Gaussian
 * mechanism of DP-Forward (Du et al. 2023, arXiv 2309.06746). Neighbours are any two sequences of as many tokens, so
 * that the sensitivity is 2 clip. Noise is Z = U N V^T with N i.i.d. standard normal, that is Z ~ MN(0, U U^T, V V^T).
 * It is (epsilon, delta)-private if and only if
 *
 *   sigma_min(U) sigma_min(V) >= 2 clip / B
 *
 * with B the largest mu of the analytic Gaussian mechanism: U^-1 f V^-T has i.i.d. noise and the sensitivity
 * max ||U^-1 D V^-T||_F = 2 clip / (sigma_min(U) sigma_min(V)), which a D of rank one attains. Here it holds with
 * equality. Without shapes U and V are multiples of I, and the noise is the analytic Gaussian mechanism's. No shape
 * has less noise than that in any direction: shapes can only place what noise is added beyond it.
 *
 * @throws if a shape's size is not the states', or its directions are not orthonormal.
 */
export function noisyMatrix(
  states: Float32Array,
  o: NoiseOptions & { readonly rowShape?: NoiseShape; readonly columnShape?: NoiseShape },
): Release {
  const tokens = tokensOf(states, o.width);
  const rowShape = o.rowShape ?? identity(tokens);
  const columnShape = o.columnShape ?? identity(o.width);
  assertShape('rowShape', rowShape, tokens);
  assertShape('columnShape', columnShape, o.width);
  const factor = factorOf(states, o.clip);
  const sensitivity = 2 * o.clip;
  const sigma = sensitivity / largestMu(o); // sigma_min(U) sigma_min(V)
  const noise = matrixNormal(rowShape, columnShape, random(...o.stream).normal);
  const scale = sigma / (smallest(rowShape.singularValues) * smallest(columnShape.singularValues));
  return {
    states: states.map((x, i) => x * factor + scale * noise[i]!),
    mechanism: { sigma, sensitivity },
  };
}

/** U N V^T [rows, columns], row-major: U = W_U diag(s_U), V = W_V diag(s_V), N of independent draws. */
function matrixNormal(rowShape: NoiseShape, columnShape: NoiseShape, normal: () => number): Float64Array {
  const rows = rowShape.singularValues;
  const columns = columnShape.singularValues;
  const noise = new Float64Array(rows.length * columns.length);
  for (let i = 0; i < rows.length; i++)
    for (let j = 0; j < columns.length; j++)
      noise[i * columns.length + j] = rows[i]! * columns[j]! * normal();
  const turned = columnShape.directions
    ? timesTransposed(noise, columnShape.directions, columns.length)
    : noise;
  return rowShape.directions ? times(rowShape.directions, turned, rows.length) : turned;
}

/** x [rows, size] w^T, w [size, size]. */
function timesTransposed(x: Float64Array, w: ArrayLike<number>, size: number): Float64Array {
  const product = new Float64Array(x.length);
  for (let from = 0; from < x.length; from += size)
    for (let j = 0; j < size; j++) {
      let sum = 0;
      for (let k = 0; k < size; k++) sum += x[from + k]! * w[j * size + k]!;
      product[from + j] = sum;
    }
  return product;
}

/** w [size, size] x [size, columns]. */
function times(w: ArrayLike<number>, x: Float64Array, size: number): Float64Array {
  const columns = x.length / size;
  const product = new Float64Array(x.length);
  for (let i = 0; i < size; i++)
    for (let k = 0; k < size; k++)
      for (let j = 0; j < columns; j++) product[i * columns + j]! += w[i * size + k]! * x[k * columns + j]!;
  return product;
}

function identity(size: number): NoiseShape {
  return { singularValues: new Float64Array(size).fill(1) };
}

function smallest(values: ArrayLike<number>): number {
  return Array.from(values).reduce((least, value) => Math.min(least, value), Infinity);
}

function rowFactors(
  states: Float32Array,
  { width, clip }: { readonly width: number; readonly clip: number },
): Float64Array {
  return Float64Array.from({ length: tokensOf(states, width) }, (_, token) =>
    factorOf(states.subarray(token * width, (token + 1) * width), clip),
  );
}

/** What brings these numbers' L2 norm down to at most `clip`: min(1, clip / norm). */
function factorOf(numbers: Float32Array, clip: number): number {
  if (!(clip > 0 && clip < Infinity))
    throw new Error(`clip: expected a finite number above 0, found ${clip}`);
  const norm = Math.sqrt(numbers.reduce((sum, x) => sum + x * x, 0));
  return norm > clip ? clip / norm : 1;
}

function assertShape(name: string, { singularValues, directions }: NoiseShape, size: number): void {
  if (singularValues.length !== size)
    throw new Error(`${name}: expected ${size} singular values, found ${singularValues.length}`);
  const wrong = Array.from(singularValues).find((value) => !(value > 0 && value < Infinity));
  if (wrong !== undefined)
    throw new Error(
      `${name}: expected finite singular values above 0, found ${wrong}; epsilon would be infinite`,
    );
  if (directions) assertOrthonormal(name, directions, size);
}

function assertOrthonormal(name: string, directions: ArrayLike<number>, size: number): void {
  if (directions.length !== size * size)
    throw new Error(`${name}: expected directions [${size}, ${size}], found ${directions.length} numbers`);
  // Rows, which are orthonormal exactly where columns are.
  for (let i = 0; i < size; i++)
    for (let j = 0; j <= i; j++) {
      let product = 0;
      for (let k = 0; k < size; k++) product += directions[i * size + k]! * directions[j * size + k]!;
      const expected = i === j ? 1 : 0;
      if (!(Math.abs(product - expected) < 1e-9))
        throw new Error(
          `${name}: directions are not orthonormal: rows ${i} and ${j} have the product ${product}, not ${expected}; ` +
            'orthonormalise them in float64',
        );
    }
}
