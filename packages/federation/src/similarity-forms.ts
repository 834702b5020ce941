// The similarity d_ij in [0, 1] that a cosine between two clients becomes, and cosines smoothed over rounds.

type Matrix = readonly (readonly number[])[];

export interface SimilarityForm {
  /**
   * 'shifted': the paper's. 'relative': to the largest cosine of the round, for cosines that noise makes small.
   * 'attention': to the largest cosine of the client, sharpened.
   */
  readonly form: 'shifted' | 'relative' | 'attention';
  /** Of 'attention': larger leaves a client fewer others (default: 25). */
  readonly sharpness?: number | undefined;
  /** What is kept of the rounds before, in [0, 1) (default: 0). */
  readonly smoothing?: number | undefined;
}

/** d of cosines between clients. */
export function similarities(cosines: Matrix, { form, sharpness = 25 }: SimilarityForm): number[][] {
  switch (form) {
    case 'shifted':
      return shifted(cosines);
    case 'relative':
      return relative(cosines);
    case 'attention':
      return attention(cosines, sharpness);
  }
}

/** d_ij = (1 + cos_ij) / 2, d_ii = 1 (FELLRec, arXiv 2402.09959). */
export function shifted(cosines: Matrix): number[][] {
  return cosines.map((row, i) => row.map((s, j) => (i === j ? 1 : (s + 1) / 2)));
}

/**
 * d_ij = max(cos_ij, 0) / max_{a != b} cos_ab, d_ii = 1. Where no two clients have a cosine above 0, nobody is similar
 * to another. Noise in updates shrinks all cosines by about the same factor, which the division takes out again.
 */
export function relative(cosines: Matrix): number[][] {
  const largest = cosines.reduce((most, row, i) => Math.max(most, largestOther(row, i)), 0);
  return cosines.map((row, i) =>
    row.map((s, j) => {
      if (i === j) return 1;
      return largest > 0 ? Math.max(s, 0) / largest : 0;
    }),
  );
}

/**
 * d_ij = exp(sharpness (cos_ij - max_{k != i} cos_ik)), d_ii = 1: what a client takes from each of the others is in
 * proportion to the softmax over them of HeurFedAMP (arXiv 2007.03797); its most similar one has the weight of its own.
 */
export function attention(cosines: Matrix, sharpness: number): number[][] {
  return cosines.map((row, i) => {
    const largest = largestOther(row, i);
    return row.map((s, j) => (i === j ? 1 : Math.exp(sharpness * (s - largest))));
  });
}

export interface SmoothingOptions {
  readonly cosines: Matrix;
  /** Names of the rows and columns. */
  readonly clients: readonly string[];
  /** What this returned in the round before, and for whom. */
  readonly before?: { readonly clients: readonly string[]; readonly smoothed: Matrix } | undefined;
  readonly smoothing: number;
}

/** s_t = smoothing s_{t-1} + (1 - smoothing) cos_t for each pair of clients; cos_t for one that was not there before. */
export function smoothCosines({ cosines, clients, before, smoothing }: SmoothingOptions): number[][] {
  const places = clients.map((name) => before?.clients.indexOf(name) ?? -1);
  return cosines.map((row, i) =>
    row.map((s, j) => {
      const known = before?.smoothed[places[i]!]?.[places[j]!];
      return i === j || known === undefined ? s : smoothing * known + (1 - smoothing) * s;
    }),
  );
}

function largestOther(row: readonly number[], own: number): number {
  return row.reduce((most, s, j) => (j === own ? most : Math.max(most, s)), Number.NEGATIVE_INFINITY);
}
