// FELLRec (arXiv 2402.09959): every client mixes the others' parameters by their similarity to its own, and a client
// that still struggles listens to them less (curriculum heating).
import type { SimilarityOn } from '../parameters/round-parameters.ts';
import { type SimilarityForm, similarities, smoothCosines } from '../similarity-forms.ts';
import type { ClientReport, RoundStatistics, Strategy } from './strategy.ts';

export interface Heating {
  /** Speed: larger warms everyone faster. */
  readonly alpha: number;
  /** Time: larger keeps clients apart for more rounds. */
  readonly beta: number;
  /** tau of the softmax over the clients' losses; smaller tells them apart more sharply. */
  readonly temperature: number;
  /** The paper has t/beta. The reference implementation's `t+1/beta` looks like a slip for (t+1)/beta. */
  readonly exponent: 't/beta' | '(t+1)/beta' | 't+1/beta';
}

export interface FellrecOptions {
  /** 'none': all clients are equally similar, and only heating tells them apart. */
  readonly similarityOn: SimilarityOn | 'none';
  /** How cosines become similarities (default: shifted, without smoothing). */
  readonly similarity?: SimilarityForm | undefined;
  /** false: everyone is warm from the start. */
  readonly heating: false | Heating;
  /** Each client mixes in this many others, those most similar to it (default: all). */
  readonly neighbours?: number | undefined;
  /**
   * 'clients': all count alike, as in the paper (default). 'samples': also in proportion to their training samples, as
   * under FedAvg, which this is where all are equally similar and warm.
   */
  readonly weighting?: 'clients' | 'samples' | undefined;
}

/** @throws if `sharpness` or `smoothing` is out of its range. */
export function fellrec({
  similarityOn,
  similarity: form = { form: 'shifted' },
  heating,
  neighbours,
  weighting = 'clients',
}: FellrecOptions): Strategy {
  const { sharpness, smoothing = 0 } = form;
  if (sharpness !== undefined && !(sharpness > 0 && Number.isFinite(sharpness)))
    throw new Error(`fellrec: the sharpness is ${sharpness}; it must be a number above 0`);
  if (!(smoothing >= 0 && smoothing < 1))
    throw new Error(`fellrec: the smoothing is ${smoothing}; it can be 0 or more, and less than 1`);
  return {
    name: 'fellrec',
    ...(similarityOn !== 'none' && { similarityOn }),
    ...(smoothing > 0 && { remembers: true }),
    mix(reports, { round, cosines, previous }) {
      if (!cosines && similarityOn !== 'none')
        throw new Error('fellrec: the cosines between the clients are missing');
      const smoothed =
        cosines && smoothing > 0 ? smoothedOf(reports, cosines, previous, smoothing) : undefined;
      const similarity = cosines
        ? similarities(smoothed ?? cosines, form)
        : reports.map(() => reports.map(() => 1));
      const sizes = reports.map(({ samples }) => (weighting === 'samples' ? samples : 1));
      const losses = reports.map(({ loss }) => loss);
      const heated = heating ? warmths(losses, round, heating) : undefined;
      return {
        matrix: matrixOf(similarity, sizes, heated?.warmth, neighbours),
        ...(smoothed && { smoothed }),
        similarity,
        ...heated,
      };
    },
  };
}

function smoothedOf(
  reports: readonly ClientReport[],
  cosines: readonly (readonly number[])[],
  previous: RoundStatistics['previous'],
  smoothing: number,
): number[][] {
  const known = previous?.mixing.smoothed;
  return smoothCosines({
    cosines,
    clients: reports.map(({ client }) => client),
    before: known && { clients: previous.clients, smoothed: known },
    smoothing,
  });
}

/** p = softmax(L / tau) over the clients; w_c = tanh(alpha / p_c^x), x the exponent in round t. */
function warmths(
  losses: readonly number[],
  round: number,
  { alpha, beta, temperature, exponent }: Heating,
): { softmax: number[]; warmth: number[] } {
  const largest = Math.max(...losses);
  const exponentials = losses.map((loss) => Math.exp((loss - largest) / temperature));
  const total = exponentials.reduce((sum, e) => sum + e, 0);
  const softmax = exponentials.map((e) => e / total);
  const x = { 't/beta': round / beta, '(t+1)/beta': (round + 1) / beta, 't+1/beta': round + 1 / beta }[
    exponent
  ];
  return { softmax, warmth: softmax.map((p) => Math.tanh(alpha / p ** x)) };
}

/** Row c: n_c for itself, n_j w_c d_cj for the others or its nearest `neighbours`, divided by the sum. */
function matrixOf(
  similarity: readonly (readonly number[])[],
  sizes: readonly number[],
  warmth: readonly number[] | undefined,
  neighbours = similarity.length - 1,
): number[][] {
  return similarity.map((row, c) => {
    const kept = neighbours < row.length - 1 ? nearest(row, c, neighbours) : undefined;
    const weights = row.map((d, j) => {
      const n = sizes[j]!;
      if (c === j) return n;
      return kept && !kept.has(j) ? 0 : n * (warmth?.[c] ?? 1) * d;
    });
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return weights.map((weight) => weight / total);
  });
}

/** The `count` other clients of the largest similarity; of equal ones the first. */
function nearest(row: readonly number[], own: number, count: number): ReadonlySet<number> {
  const others = [...row.keys()].filter((j) => j !== own);
  return new Set(others.sort((i, j) => row[j]! - row[i]! || i - j).slice(0, count));
}
