// The error function near 0, and its complement in the tails, where 1 - erf(x) has no digits left, to full double precision.

/** erf(x) = 1 - erfc(x) for x >= 0; relative error below 1e-13. */
export function erf(x: number): number {
  return x < 1 ? Math.exp(-x * x) * scaledErf(x) : 1 - erfc(x);
}

/** erfc(x) = 2/sqrt(pi) times the integral of exp(-t^2) from x to infinity; relative error below 1e-13. */
export function erfc(x: number): number {
  return x < 0 ? 2 - erfc(-x) : Math.exp(-x * x) * scaledErfc(x);
}

/** exp(x^2) erfc(x) for x >= 0, which falls as 1 / (x sqrt(pi)) where erfc itself is 0; relative error below 1e-14. */
export function scaledErfc(x: number): number {
  return x < 1 ? Math.exp(x * x) - scaledErf(x) : continuedFraction(x) / Math.sqrt(Math.PI);
}

// exp(x^2) erf(x) = 2/sqrt(pi) sum_n 2^n x^(2n+1) / (1 3 5 ... (2n+1)), DLMF 7.6.2: all terms have one sign.
function scaledErf(x: number): number {
  let term = x;
  let sum = 0;
  for (let n = 1; sum + term !== sum; n++) {
    sum += term;
    term *= (2 * x * x) / (2 * n + 1);
  }
  return (2 / Math.sqrt(Math.PI)) * sum;
}

/** Enough at x = 1, where the fraction converges slowest: its error falls as exp(-2 x sqrt(2 depth)). */
const fractionDepth = 250;

// sqrt(pi) exp(x^2) erfc(x) = 1 / (x + (1/2) / (x + (2/2) / (x + (3/2) / (x + ...)))), DLMF 7.9.2.
function continuedFraction(x: number): number {
  let denominator = x;
  for (let n = fractionDepth; n > 0; n--) denominator = x + n / 2 / denominator;
  return 1 / denominator;
}
