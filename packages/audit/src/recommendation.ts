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
  /** The attacks that compute states do so with the client's adapter. */
  readonly adapterKnown: boolean;
  /** The model's head is its embedding table: who knows one knows both. */
  readonly tied: boolean;
}

/** What the server sees of it, as far as the metric measures it: a cut is at a depth below n. */
type Measured = Omit<RecommendationOptions, 'costs'>;

/** @throws if no attack was measured by the metric. */
export function recommendation({ costs, ...options }: RecommendationOptions): Recommendation {
  const { metric, threshold, layerCount } = options;
  const attacks = options.attacks.filter(({ recovery }) => recovery[metric]);
  if (attacks.length === 0) throw new Error(`audit: no attack here is measured by "${metric}"`);
  const measured = { ...options, attacks: attacks.filter(({ depth }) => depth < layerCount) };
  if (measured.attacks.length === 0) {
    const text = `No depth at which states cross a cut was attacked; these are 0 to ${layerCount - 1}.`;
    return { threshold, metric, k: undefined, cost: undefined, without: [], text };
  }
  const k = smallestCut(measured);
  const without = [...new Set(attacks.flatMap((one) => knowledgeOf(one, options)))].map((knowledge) => ({
    knowledge,
    k: smallestCut(ignorantOf(knowledge, measured)),
  }));
  const cost = costs.find((one) => one.k === k);
  return {
    threshold,
    metric,
    k,
    cost,
    without,
    text: [verdict(measured, k, cost), ...(k === undefined ? [difference(without, measured)] : [])].join(' '),
  };
}

/**
 * The smallest measured k, 0 .. n - 1, at which all attacks stay under the threshold. A server that computes layers
 * k .. n - 2 has the states at depths k .. n - 1, so the worst of those measured counts. 0 where no attack is left.
 */
export function smallestCut({
  attacks,
  layerCount,
  metric,
  threshold,
}: Pick<Measured, 'attacks' | 'layerCount' | 'metric' | 'threshold'>): number | undefined {
  const seen = attacks.filter(({ depth, recovery }) => depth < layerCount && recovery[metric]);
  const depths = [...new Set(seen.map(({ depth }) => depth))].sort((a, b) => b - a);
  let found: number | undefined = attacks.length === 0 ? 0 : undefined;
  for (const depth of depths) {
    if (seen.some((one) => one.depth === depth && one.recovery[metric]!.mean >= threshold)) break;
    found = depth;
  }
  return found;
}

function verdict(measured: Measured, k: number | undefined, cost: CutCost | undefined): string {
  const { metric, threshold, attacks, layerCount } = measured;
  const names = [...new Set(attacks.map(({ attack }) => attack))].join(', ');
  if (k === undefined) {
    const last = Math.max(...attacks.map(({ depth }) => depth));
    const worst = attacks
      .filter(({ depth }) => depth === last)
      .reduce((a, b) => (b.recovery[metric]!.mean > a.recovery[metric]!.mean ? b : a));
    return `No k meets the threshold: at depth ${last} the attack "${worst.attack}" still recovers ${worst.recovery[metric]!.mean.toFixed(3)} (${metric}, threshold ${threshold}).`;
  }
  const price = cost
    ? ` A client then holds ${percent(cost.parameters)} of the parameters and does ${percent(cost.layers)} of the layers' work; ${cost.bytesPerToken} bytes a token cross in a training step.`
    : '';
  return `k = ${k} is the smallest at which ${names} stay under ${threshold} (${metric}) from there to depth ${layerCount - 1}${reach(k, measured)}${gaps(k, measured)}.${price} It says nothing about attacks that were not run.`;
}

function difference(without: Recommendation['without'], measured: Measured): string {
  const helped = without.filter(({ k }) => k !== undefined);
  if (helped.length === 0) return 'No single assumption makes the difference.';
  return helped
    .map(({ knowledge, k }) => {
      const left = ignorantOf(knowledge, measured);
      const outcome =
        left.attacks.length === 0
          ? 'none of these attacks would be left'
          : `k = ${k} would do${reach(k!, left)}${gaps(k!, left)}`;
      return `If the server did not know ${knowledges[knowledge]}, ${outcome}.`;
    })
    .join(' ');
}

/** What an attack uses, with the adapter where it computes states. */
function knowledgeOf(
  { attack }: AttackResult,
  { adapterKnown, tied }: Pick<Measured, 'adapterKnown' | 'tied'>,
): readonly Knowledge[] {
  const uses = attackKnowledge[attack].map((one) => (tied && one === 'head' ? 'embedding' : one));
  return adapterKnown && uses.includes('weights') ? [...uses, 'adapter'] : uses;
}

/** With attacks that do without some knowledge only. */
function ignorantOf(knowledge: Knowledge, measured: Measured): Measured {
  const attacks = measured.attacks.filter((one) => !knowledgeOf(one, measured).includes(knowledge));
  return { ...measured, attacks };
}

/** Which interval reaches furthest over the threshold from k on; empty if none does. */
function reach(k: number, { attacks, metric, threshold }: Measured): string {
  const highs = attacks
    .filter(({ depth }) => depth >= k)
    .map(({ attack, depth, recovery }) => ({ attack, depth, high: recovery[metric]!.high }))
    .filter(({ high }) => high >= threshold);
  if (highs.length === 0) return '';
  const { attack, depth, high } = highs.reduce((a, b) => (b.high > a.high ? b : a));
  return ` on the mean (the 95 % interval of "${attack}" at depth ${depth} reaches ${high.toFixed(3)})`;
}

/** Which depths from k on were not measured; empty if all were. */
function gaps(k: number, { attacks, layerCount }: Measured): string {
  const measured = new Set(attacks.map(({ depth }) => depth));
  const missing = Array.from({ length: layerCount - k }, (_, i) => k + i).filter((at) => !measured.has(at));
  if (missing.length === 0) return '';
  return `, depth${missing.length === 1 ? '' : 's'} ${missing.join(', ')} not measured`;
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
