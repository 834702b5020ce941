// The audit's charts: what attacks recover over depth, and what defences leave of it at which quality.
import {
  type AttackName,
  type AttackResult,
  type AuditResult,
  attackNames,
  type DefenceResult,
  type Interval,
  type MetricName,
} from '@fellrec/audit';
import {
  type Figure,
  type LayeredChart,
  type NamedStyle,
  ruleStyles,
  seriesChannels,
  seriesStyles,
  withLegend,
} from './chart.ts';

/** "BEI-style" and "HEI-style" after arXiv 2405.11916. */
export const attackTitles: Readonly<Record<AttackName, string>> = {
  head: 'head (BEI-style)',
  'embedding-cosine': 'embedding, cosine (HEI-style)',
  'embedding-l2': 'embedding, L2 (HEI-style)',
  inverter: 'trained inverter',
  search: 'search for the tokens',
  catalogue: 'search in the catalogue',
};

export const metricTitles: Readonly<Record<MetricName, string>> = {
  tokenAccuracy: 'token accuracy',
  tokenRecall: 'token recall',
  exact: 'whole histories',
  rougeL: 'ROUGE-L',
  items: 'items of the history',
  target: 'targets',
  similarity: 'reconstruction similarity',
};

const metricMeanings: Readonly<Record<MetricName, string>> = {
  tokenAccuracy: "Share of the history's tokens that were recovered at their place",
  tokenRecall: "Share of the history's tokens that were recovered anywhere",
  exact: 'Share of prompts of which every history token was recovered',
  rougeL: 'F1 of the longest common subsequence of words',
  items: "Share of the history's items that were recovered",
  target: 'Share of targets that were recovered',
  similarity: 'Cosine of the sentence embeddings of prompt and reconstruction',
};

/** Charts over depth for the metrics that say most, each if an attack was measured by it. */
export function depthFigures(result: AuditResult): Figure[] {
  const metrics: readonly MetricName[] = ['tokenAccuracy', 'items', 'target', 'similarity'];
  return [...new Set([...metrics, result.recommendation.metric])]
    .filter((metric) => result.attacks.some(({ recovery }) => recovery[metric]))
    .map((metric) => depthFigure(result, metric));
}

function depthFigure({ attacks, floors, model, recommendation }: AuditResult, metric: MetricName): Figure {
  const points = attacks.flatMap(({ attack, depth, recovery }) => {
    const value = recovery[metric];
    return value ? [{ attack, series: attackTitles[attack], depth, ...value }] : [];
  });
  const curves = attackNames.flatMap((attack, i): NamedStyle[] =>
    points.some((point) => point.attack === attack)
      ? [{ name: attackTitles[attack], style: seriesStyles[i]! }]
      : [],
  );
  const levels = floors.flatMap(({ floor, recovery }) => {
    const value = recovery[metric];
    return value ? [{ series: `floor: ${floor}`, mean: value.mean }] : [];
  });
  if (recommendation.metric === metric)
    levels.push({ series: `threshold ${recommendation.threshold}`, mean: recommendation.threshold });
  const rules = levels.map(({ series }, i) => ({ name: series, style: ruleStyles[i % ruleStyles.length]! }));

  const series = [...curves, ...rules];
  const { shape, ...lines } = seriesChannels(series);
  const depth = {
    field: 'depth',
    type: 'quantitative' as const,
    title: `depth (0: embeddings, ${model.layerCount}: after the last layer)`,
    scale: { domain: [0, model.layerCount], nice: false },
    axis: { tickMinStep: 1, grid: false },
  };
  const lowest = Math.min(0, ...points.map(({ low }) => low), ...levels.map(({ mean }) => mean));
  const recovered = {
    field: 'mean',
    type: 'quantitative' as const,
    title: metricTitles[metric],
    scale: { domain: [lowest, 1] },
  };
  const chart: LayeredChart = {
    width: 600,
    height: 280,
    layer: [
      {
        data: { values: levels },
        mark: { type: 'rule', strokeWidth: 1.5 },
        encoding: { y: recovered, ...lines },
      },
      {
        data: { values: points },
        encoding: { x: depth },
        layer: [
          {
            mark: { type: 'area', opacity: 0.15 },
            encoding: { y: { ...recovered, field: 'low' }, y2: { field: 'high' }, color: lines.color },
          },
          {
            mark: { type: 'rule', opacity: 0.7 },
            encoding: { y: { ...recovered, field: 'low' }, y2: { field: 'high' }, color: lines.color },
          },
          { mark: { type: 'line', strokeWidth: 2 }, encoding: { y: recovered, ...lines } },
          {
            mark: { type: 'point', filled: true, opacity: 1, size: 50 },
            encoding: { y: recovered, color: lines.color, shape },
          },
        ],
      },
    ],
  };
  return {
    title: `${capital(metricTitles[metric])} over depth`,
    caption: `${metricMeanings[metric]}, by the depth at which states leave the client. Bars and bands are 95 % intervals over users.`,
    spec: withLegend(chart, series, 600),
  };
}

/** What the attack that recovers most by a metric recovers; undefined if none was measured by it. */
function strongest(attacks: readonly AttackResult[], metric: MetricName): Interval | undefined {
  return attacks.flatMap(({ recovery }) => recovery[metric] ?? []).sort((a, b) => b.mean - a.mean)[0];
}

/** A defence's name, with its depth where the audit has several. */
function defenceTitle({ defence, depth }: DefenceResult, all: readonly DefenceResult[]): string {
  return all.some((other) => other.depth !== depth) ? `${defence}, depth ${depth}` : defence;
}

/** What the strongest attack recovers against R@10, a point per defence; undefined without defences. */
export function defenceFigure({ defences, recommendation: { metric } }: AuditResult): Figure | undefined {
  const points = defences.flatMap((defence) => {
    const found = strongest(defence.attacks, metric);
    if (!found) return [];
    const { mean: recall, low: recallLow, high: recallHigh } = defence.quality.recallAt10;
    return [
      {
        label: defenceTitle(defence, defences),
        depth: defence.depth,
        ...found,
        recall,
        recallLow,
        recallHigh,
      },
    ];
  });
  if (points.length === 0) return undefined;
  const depths = [...new Set(points.map(({ depth }) => depth))].sort((a, b) => a - b);
  const series = depths.map((depth, i) => ({
    name: `depth ${depth}`,
    style: seriesStyles[i % seriesStyles.length]!,
  }));
  const { color, shape } = seriesChannels(series);
  const edge = Math.max(...points.map(({ recallHigh }) => recallHigh));
  const places = apart(
    points.map(({ mean }) => mean),
    0.06,
  );
  const values = points.map((point, i) => ({
    ...point,
    series: `depth ${point.depth}`,
    edge,
    place: places[i],
  }));
  const recall = {
    type: 'quantitative' as const,
    title: 'R@10',
    scale: { zero: false, nice: false },
    axis: { tickCount: 5 },
  };
  const recovered = {
    type: 'quantitative' as const,
    title: `${metricTitles[metric]}, strongest attack`,
    scale: { domain: [Math.min(0, ...points.map(({ low }) => low)), Math.max(1, ...places)], nice: false },
    axis: { values: [0, 0.2, 0.4, 0.6, 0.8, 1] },
  };
  const x = { ...recall, field: 'recall' };
  const y = { ...recovered, field: 'mean' };
  const chart: LayeredChart = {
    width: 440,
    height: Math.max(280, 20 * points.length),
    data: { values },
    layer: [
      {
        mark: { type: 'rule', opacity: 0.25, strokeDash: [2, 2] },
        encoding: { x, x2: { field: 'edge' }, y, y2: { field: 'place' } },
      },
      {
        mark: { type: 'rule', opacity: 0.7 },
        encoding: {
          x: { ...recall, field: 'recallLow' },
          x2: { field: 'recallHigh' },
          y,
          color,
        },
      },
      {
        mark: { type: 'rule', opacity: 0.7 },
        encoding: {
          x,
          y: { ...recovered, field: 'low' },
          y2: { field: 'high' },
          color,
        },
      },
      {
        mark: { type: 'point', filled: true, opacity: 1, size: 80 },
        encoding: { x, y, color, shape },
      },
      {
        mark: { type: 'text', align: 'left', dx: 6 },
        encoding: {
          x: { ...recall, field: 'edge' },
          y: { ...recovered, field: 'place' },
          text: { field: 'label' },
        },
      },
    ],
  };
  return {
    title: 'Defences: recovery against R@10',
    caption: `${metricMeanings[metric]} by the attack that recovers most, against R@10 through the same cut: down is more private, right recommends better. Bars are 95 % intervals over users; the dotted lines lead to the names.`,
    spec: depths.length > 1 ? withLegend(chart, series, 440) : chart,
  };
}

/** Places for labels, near the given ones and at least `gap` apart, in their order; of equals the first is highest. */
export function apart(values: readonly number[], gap: number): number[] {
  const places = [...values];
  let free = Number.NEGATIVE_INFINITY;
  for (const i of values.map((_, i) => i).sort((a, b) => values[a]! - values[b]! || b - a)) {
    places[i] = Math.max(values[i]!, free);
    free = places[i]! + gap;
  }
  return places;
}

const capital = (text: string) => text.charAt(0).toUpperCase() + text.slice(1);
