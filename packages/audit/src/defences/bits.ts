// States with fewer bits a number, as the server reconstructs them. float16 and int8 give the numbers that
// activations have after they crossed a network in these encodings.
import { tokensOf } from './rows.ts';

const largestFloat16 = 65504;

/**
 * States rounded to binary16 (IEEE 754): to nearest, ties to even. What is too large becomes the largest, 65504.
 * @throws if a number is not finite.
 */
export function roundToFloat16(states: Float32Array): Float32Array {
  tokensOf(states, 1);
  return states.map((x) => {
    const rounded = Math.f16round(x);
    return Number.isFinite(rounded) ? rounded : Math.sign(x) * largestFloat16;
  });
}

/** States [tokens, width] as int8 with a float32 scale a token, max |x| / 127. @throws as `quantise`. */
export function roundToInt8(states: Float32Array, width: number): Float32Array {
  return quantise(states, { width, bits: 8 });
}

/**
 * States [tokens, width] as integers of `bits` (2 to 8) bits with a float32 scale a token: with L = 2^(bits - 1) - 1,
 *
 *   scale = max |x| / L,   q = floor(x / scale + 1/2),   found = q scale
 *
 * so that |found - x| <= scale / 2, but for the rounding of a float32. @throws if a number is not finite.
 */
export function quantise(
  states: Float32Array,
  { width, bits }: { readonly width: number; readonly bits: number },
): Float32Array {
  if (!(Number.isInteger(bits) && bits >= 2 && bits <= 8))
    throw new Error(`bits: expected an integer from 2 to 8, found ${bits}`);
  const found = new Float32Array(states.length);
  const tokens = tokensOf(states, width);
  for (let token = 0; token < tokens; token++) {
    const row = states.subarray(token * width, (token + 1) * width);
    const scale = scaleOf(row, 2 ** (bits - 1) - 1);
    if (scale === 0) continue;
    const inverse = 1 / scale;
    row.forEach((x, i) => {
      found[token * width + i] = Math.floor(x * inverse + 0.5) * scale;
    });
  }
  return found;
}

const largestFloat32 = 3.4028234663852886e38;
const smallestNormal = 2 ** -126;

/** A float32 with all its digits whose multiples up to `levels` are finite; 0 for a row of zeros. */
function scaleOf(row: Float32Array, levels: number): number {
  const largest = row.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
  if (largest === 0) return 0;
  const limit = (largestFloat32 / levels) * (1 - 2 ** -23);
  return Math.fround(Math.min(Math.max(largest / levels, smallestNormal), limit));
}
