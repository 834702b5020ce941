// What changes from round to round, a curve per client.
import {
  type Figure,
  type LayeredChart,
  type NamedStyle,
  type SeriesStyle,
  seriesChannels,
  seriesStyles,
  withLegend,
} from './chart.ts';
import { maxCurves } from './limits.ts';

export interface Curves {
  readonly title: string;
  readonly caption: string;
  /** What is measured. */
  readonly unit: string;
  /** By client; a value per round, undefined where the client has none. */
  readonly clients: ReadonlyMap<string, readonly (number | undefined)[]>;
  /** By client, which of the rounds is marked (from 0). */
  readonly best?: ReadonlyMap<string, number>;
  /** A further curve, of all clients together. */
  readonly together?: { readonly name: string; readonly values: readonly number[] };
  /** Of the values; fitted to them unless given. */
  readonly domain?: readonly [number, number];
}

const togetherStyle: SeriesStyle = { color: 'currentColor', dash: [10, 3], shape: 'stroke' };

/** Undefined where no client has a value. */
export function curves({
  title,
  caption,
  unit,
  clients,
  best,
  together,
  domain,
}: Curves): Figure | undefined {
  const known = [...clients].filter(([, values]) => values.some((value) => value !== undefined));
  if (known.length === 0) return undefined;
  const rounds = Math.max(...known.map(([, values]) => values.length));
  const many = known.length > maxCurves;
  const medianName = `median of ${known.length} clients (band: lowest to highest)`;
  const drawn: readonly (readonly [string, readonly (number | undefined)[]])[] = many
    ? [[medianName, eachRound(known, rounds).map(({ median }) => median)]]
    : known.map(([client, values], i) => [shortName(client, i), values]);
  const range = many
    ? eachRound(known, rounds).map((values, round) => ({ round: round + 1, ...values }))
    : [];
  const series: NamedStyle[] = [
    ...drawn.map(([name], i) => ({ name, style: styleOf(i) })),
    ...(together ? [{ name: together.name, style: togetherStyle }] : []),
  ];
  // What is undefined breaks a line.
  const points = [...drawn, ...(together ? [[together.name, together.values] as const] : [])].flatMap(
    ([name, values]) => values.map((value, i) => ({ series: name, round: i + 1, value })),
  );
  const marked = many
    ? []
    : known.flatMap(([client, values], i) => {
        const round = best?.get(client);
        const value = round === undefined ? undefined : values[round];
        return value === undefined ? [] : [{ series: shortName(client, i), round: round! + 1, value }];
      });

  const { shape, ...lines } = seriesChannels(series);
  const x = {
    field: 'round',
    type: 'quantitative' as const,
    title: 'round',
    scale: { domain: rounds > 1 ? [1, rounds] : [0.5, 1.5], nice: false },
    axis: { grid: false, format: 'd', ...(rounds > 12 ? { tickMinStep: 1 } : { values: upTo(rounds) }) },
  };
  const y = {
    field: 'value',
    type: 'quantitative' as const,
    title: unit,
    scale: domain ? { domain: [...domain], nice: false } : { zero: false },
  };
  const chart: LayeredChart = {
    width: 600,
    height: 260,
    layer: [
      {
        data: { values: range },
        mark: { type: 'area', opacity: 0.15 },
        encoding: {
          x,
          y: { ...y, field: 'low' },
          y2: { field: 'high' },
          color: { value: seriesStyles[0]!.color },
        },
      },
      {
        data: { values: points },
        encoding: { x },
        layer: [
          { mark: { type: 'line', strokeWidth: 2 }, encoding: { y, ...lines } },
          {
            mark: { type: 'point', filled: true, opacity: 1, size: 50 },
            encoding: { y, color: lines.color, shape },
          },
        ],
      },
      {
        data: { values: marked },
        mark: { type: 'point', shape: 'circle', filled: false, size: 220, strokeWidth: 2, opacity: 1 },
        encoding: { x, y, color: lines.color },
      },
    ],
  };
  return { title, caption, spec: withLegend(chart, series, 600) };
}

/** Different for each of `maxCurves`: a colour that comes again comes with another dash and shape. */
function styleOf(i: number): SeriesStyle {
  const count = seriesStyles.length;
  const again = Math.floor(i / count);
  const at = (n: number) => seriesStyles[n % count]!;
  return { color: at(i).color, dash: at(i + again).dash, shape: at(i + 2 * again).shape };
}

/** Short enough for a legend; different for different clients. */
function shortName(name: string, i: number): string {
  return name.length <= 30 ? name : `${name.slice(0, 24)}… (${i + 1})`;
}

function eachRound(clients: readonly (readonly [string, readonly (number | undefined)[]])[], rounds: number) {
  return upTo(rounds).map((round) => {
    const values = clients.flatMap(([, own]) => own[round - 1] ?? []).sort((a, b) => a - b);
    if (values.length === 0) return { low: undefined, median: undefined, high: undefined };
    const middle = (values.length - 1) / 2;
    const median = (values[Math.floor(middle)]! + values[Math.ceil(middle)]!) / 2;
    return { low: values[0], median, high: values.at(-1) };
  });
}

const upTo = (n: number) => Array.from({ length: n }, (_, i) => i + 1);
