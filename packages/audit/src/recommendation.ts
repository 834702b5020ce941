// Which k an audit recommends: the smallest whose cut no attack gets through, and what that costs a client.
import { isMiddle } from '@fellrec/models';
import {
  type AttackResult,
  attackKnowledge,
  type CutCost,
  type Knowledge,
  knowledges,
  type MetricName,
  type Recommendation,
} from './result.ts';

export interface RecommendationOptions {
  readonly attacks: readonly AttackResult[];
  readonly costs: readonly CutCost[];
  readonly layerCount: number;
  readonly metric: MetricName;
  readonly threshold: number;
}

/** @throws if no attack was measured by the metric. */
export function recommendation(options: RecommendationOptions): Recommendation {
  const { attacks, costs, metric, threshold } = options;
  if (!attacks.some(({ recovery }) => recovery[metric]))
    throw new Error(`audit: no attack here is measured by "${metric}"`);
  const k = smallestCut(attacks, options);
  const used = [...new Set(attacks.flatMap(({ attack }) => attackKnowledge[attack]))];
  const without = used.map((knowledge) => ({
    knowledge,
    k: smallestCut(ignorantOf(knowledge, attacks), options),
  }));
  const cost = costs.find((one) => one.k === k);
  return {
    threshold,
    metric,
    k,
    cost,
    without,
    text: [verdict(options, k, cost), ...(k === undefined ? [difference(without, options)] : [])].join(' '),
  };
}

/**
 * The smallest k, 0 .. n - 1, at which all attacks stay under the threshold. A server that computes layers k .. n - 2
 * has the states at depths k .. n - 1, so the worst of these counts; only measured depths can be recommended.
 */
export function smallestCut(
  attacks: readonly AttackResult[],
  { layerCount, metric, threshold }: Pick<RecommendationOptions, 'layerCount' | 'metric' | 'threshold'>,
): number | undefined {
  const seen = attacks.filter(({ depth, recovery }) => depth < layerCount && recovery[metric]);
  const depths = [...new Set(seen.map(({ depth }) => depth))].sort((a, b) => b - a);
  let found: number | undefined = attacks.length === 0 ? 0 : undefined;
  for (const depth of depths) {
    if (seen.some((one) => one.depth === depth && one.recovery[metric]!.mean >= threshold)) break;
    found = depth;
  }
  return found;
}

function verdict(
  { metric, threshold, attacks, layerCount }: RecommendationOptions,
  k: number | undefined,
  cost: CutCost | undefined,
): string {
  const names = [...new Set(attacks.map(({ attack }) => attack))].join(', ');
  if (k === undefined) {
    const seen = attacks.filter(({ depth, recovery }) => depth < layerCount && recovery[metric]);
    const last = Math.max(...seen.map(({ depth }) => depth));
    const worst = seen
      .filter(({ depth }) => depth === last)
      .reduce((a, b) => (b.recovery[metric]!.mean > a.recovery[metric]!.mean ? b : a));
    return `No k meets the threshold: at depth ${last} the attack "${worst.attack}" still recovers ${worst.recovery[metric]!.mean.toFixed(3)} (${metric}, threshold ${threshold}).`;
  }
  const price = cost
    ? ` A client then holds ${percent(cost.parameters)} of the parameters and does ${percent(cost.layers)} of the layers' work; ${cost.bytesPerToken} bytes a token cross in a training step.`
    : '';
  return `k = ${k} is the smallest at which ${names} stay under ${threshold} (${metric}) from there to depth ${layerCount - 1}${reach(k, attacks, { layerCount, metric, threshold })}.${price} It says nothing about attacks that were not run.`;
}

function difference(
  without: readonly { readonly knowledge: Knowledge; readonly k: number | undefined }[],
  options: RecommendationOptions,
): string {
  const helped = without.filter(({ k }) => k !== undefined);
  if (helped.length === 0) return 'No single assumption makes the difference.';
  return helped
    .map(
      ({ knowledge, k }) =>
        `If the server did not know ${knowledges[knowledge]}, k = ${k} would do${reach(k!, ignorantOf(knowledge, options.attacks), options)}.`,
    )
    .join(' ');
}

/** Attacks that do without some knowledge. */
function ignorantOf(knowledge: Knowledge, attacks: readonly AttackResult[]): AttackResult[] {
  return attacks.filter(({ attack }) => !attackKnowledge[attack].includes(knowledge));
}

/** Which interval reaches furthest over the threshold from k on; empty if none does. */
function reach(
  k: number,
  attacks: readonly AttackResult[],
  { layerCount, metric, threshold }: Pick<RecommendationOptions, 'layerCount' | 'metric' | 'threshold'>,
): string {
  const highs = attacks
    .filter(({ depth, recovery }) => depth >= k && depth < layerCount && recovery[metric])
    .map(({ attack, depth, recovery }) => ({ attack, depth, high: recovery[metric]!.high }))
    .filter(({ high }) => high >= threshold);
  if (highs.length === 0) return '';
  const { attack, depth, high } = highs.reduce((a, b) => (b.high > a.high ? b : a));
  return ` on the mean (the 95 % interval of "${attack}" at depth ${depth} reaches ${high.toFixed(3)})`;
}

const percent = (share: number) => `${(100 * share).toFixed(0)} %`;

/** What every k costs. `sizes`: elements of the model's tensors by their names; `hiddenSize`: d. */
export function cutCosts(
  sizes: ReadonlyMap<string, number>,
  layerCount: number,
  hiddenSize: number,
): CutCost[] {
  const total = [...sizes.values()].reduce((sum, size) => sum + size, 0);
  return Array.from({ length: layerCount }, (_, k) => {
    const elsewhere = [...sizes].reduce(
      (sum, [name, size]) => sum + (isMiddle(name, k, layerCount) ? size : 0),
      0,
    );
    return {
      k,
      parameters: 1 - elsewhere / total,
      layers: (k + 1) / layerCount,
      // States and their gradients, at both cuts, float32.
      bytesPerToken: 4 * hiddenSize * 4,
    };
  });
}
