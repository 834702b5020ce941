// Charts as SVG: Vega-Lite specifications drawn when the report is written, so that the page needs no scripts.
import { parse, View } from 'vega';
import { type Config, compile, type TopLevelSpec } from 'vega-lite';
import { Html, html } from './html.ts';

/** How a series looks: by colour, dash and shape at once, so that none of them is needed alone. */
export interface SeriesStyle {
  readonly color: string;
  readonly dash: readonly number[];
  readonly shape: string;
}

/** Contrast of 3 and more to the page in light and dark (WCAG 1.4.11). */
export const seriesStyles: readonly SeriesStyle[] = [
  { color: '#2f7ed8', dash: [1, 0], shape: 'circle' },
  { color: '#d9650d', dash: [8, 3], shape: 'square' },
  { color: '#188f5a', dash: [2, 2], shape: 'triangle-up' },
  { color: '#a35fd6', dash: [8, 3, 2, 3], shape: 'diamond' },
  { color: '#d6404f', dash: [5, 5], shape: 'cross' },
  { color: '#8a7a1f', dash: [1, 3], shape: 'triangle-down' },
];

/** Horizontal rules that curves are compared with, told apart by dash only. */
export const ruleStyles: readonly SeriesStyle[] = [
  [1, 4],
  [4, 4],
  [10, 4],
  [10, 3, 2, 3, 2, 3],
].map((dash) => ({ color: 'currentColor', dash, shape: 'stroke' }));

export interface NamedStyle {
  readonly name: string;
  readonly style: SeriesStyle;
}

/** Channels of marks that are told apart by the field `series`. For their legend see `withLegend`. */
export function seriesChannels(series: readonly NamedStyle[]) {
  const domain = series.map(({ name }) => name);
  const channel = <T>(range: readonly T[]) => ({
    field: 'series',
    type: 'nominal' as const,
    legend: null,
    scale: { domain, range: [...range] },
  });
  return {
    color: channel(series.map(({ style }) => style.color)),
    strokeDash: channel(series.map(({ style }) => [...style.dash])),
    shape: channel(series.map(({ style }) => style.shape)),
  };
}

export type LayeredChart = Extract<TopLevelSpec, { layer: unknown }>;

/** The chart with a legend under it. Vega's own legends have no symbol with both dashes and shape of a series. */
export function withLegend(chart: LayeredChart, series: readonly NamedStyle[], width: number): TopLevelSpec {
  return { vconcat: [chart, legendOf(series, width)] };
}

function legendOf(series: readonly NamedStyle[], width: number) {
  const columns = 2;
  const rowHeight = 20;
  const { color, strokeDash, shape } = seriesChannels(series);
  const pixels = (field: string) => ({ field, type: 'quantitative' as const, scale: null, axis: null });
  const values = series.map(({ name }, i) => {
    const left = (i % columns) * (width / columns);
    const y = rowHeight * (Math.floor(i / columns) + 0.5);
    return { series: name, left, middle: left + 20, right: left + 40, text: left + 48, y };
  });
  const y = pixels('y');
  return {
    width,
    height: rowHeight * Math.ceil(series.length / columns),
    data: { values },
    layer: [
      {
        mark: { type: 'rule' as const, strokeWidth: 2 },
        encoding: { x: pixels('left'), x2: { field: 'right' }, y, color, strokeDash },
      },
      {
        mark: { type: 'point' as const, filled: true, opacity: 1, size: 60 },
        encoding: { x: pixels('middle'), y, color, shape },
      },
      {
        mark: { type: 'text' as const, align: 'left' as const },
        encoding: { x: pixels('text'), y, text: { field: 'series' } },
      },
    ],
  };
}

const ink = 'currentColor';
const config: Config = {
  // The figure has one label; without this every mark would get its own.
  aria: false,
  background: 'transparent',
  font: 'system-ui, sans-serif',
  view: { stroke: null },
  axis: {
    labelColor: ink,
    titleColor: ink,
    domainColor: ink,
    tickColor: ink,
    gridColor: ink,
    gridOpacity: 0.12,
    labelFlush: false,
    labelFontSize: 12,
    titleFontSize: 12,
    titleFontWeight: 'normal',
  },
  text: { color: ink, fontSize: 12 },
  rule: { color: ink },
};

/** The specification as SVG that takes the width it is given and its text's colour from the page. */
async function renderSvg(label: string, spec: TopLevelSpec): Promise<Html> {
  const view = new View(parse(compile(spec, { config }).spec), { renderer: 'none' });
  try {
    const svg = await view.toSVG();
    const [opening, viewBox] = /^<svg\b[^>]*\bviewBox="([^"]*)"[^>]*>/.exec(svg) ?? [];
    if (opening === undefined)
      throw new Error(`report: the chart "${label}" was drawn as ${svg.slice(0, 60)}`);
    return html`<svg viewBox="${viewBox}" role="img" aria-label="${label}">${new Html(svg.slice(opening.length))}`;
  } finally {
    view.finalize();
  }
}

export interface Figure {
  readonly title: string;
  /** What is to be seen, in a sentence or two. */
  readonly caption: string;
  readonly spec: TopLevelSpec;
}

export async function figure({ title, caption, spec }: Figure): Promise<Html> {
  return html`<figure>
<h3>${title}</h3>
<div class="scroll">${await renderSvg(title, spec)}</div>
<figcaption>${caption}</figcaption>
</figure>
`;
}
