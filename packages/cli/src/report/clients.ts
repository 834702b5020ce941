// What the clients' parameters are worth: metrics per client, beside what ranking without learning reaches.
import { bootstrap, type Interval } from '@fellrec/recsys';
import { userKey } from '../groups.ts';
import { shownMetrics } from '../table.ts';
import {
  type Figure,
  figure,
  type LayeredChart,
  ruleStyles,
  seriesChannels,
  seriesStyles,
  withLegend,
} from './chart.ts';
import { html, htmlTable } from './html.ts';
import { maxTableClients } from './limits.ts';
import { count, fixed, missing } from './numbers.ts';
import type { Section } from './page.ts';
import type { ResultFile, RunFiles } from './run-files.ts';

interface ClientMetrics {
  readonly client: string;
  readonly testUsers: number;
  readonly bestRound: number | undefined;
  readonly metrics: Readonly<Record<string, number>>;
  /** Of recall@10 over users; where only the clients know them, there is none. */
  readonly interval?: Interval;
}

/** None of an incomplete run. */
export async function clientSection(run: RunFiles): Promise<Section | undefined> {
  const { result } = run;
  if (!result) return undefined;
  const all = metricsOf(run, result);
  const shown = [...all].sort((a, b) => b.testUsers - a.testUsers).slice(0, maxTableClients);
  // In the run's order again.
  const rows = all.filter((one) => shown.includes(one));
  const drawn = recallFigure(rows, result);
  const { worst, deviation } = result.spread;
  return {
    title: 'Clients',
    body: html`<p>R@10 over clients: standard deviation ${fixed(deviation, 4)}, worst ${worst.client} (${fixed(worst.value, 4)}).</p>
${rows.length < all.length ? html`<p>Of ${count(all.length)} clients, the ${rows.length} with most test users are shown.</p>\n` : undefined}${drawn && (await figure(drawn))}
${htmlTable({
  caption: 'Metrics per client, on its own test users',
  header: ['client', 'test users', 'best round', ...Object.values(shownMetrics), 'R@10, 95 % interval'],
  rows: rows.map(({ client, testUsers, bestRound, metrics, interval }) => [
    client,
    count(testUsers),
    fixed(bestRound, 0),
    ...cells(metrics),
    interval ? `${fixed(interval.low, 4)} to ${fixed(interval.high, 4)}` : missing,
  ]),
})}`,
  };
}

export const cells = (metrics: Readonly<Record<string, number>>) =>
  Object.keys(shownMetrics).map((name) => fixed(metrics[name], 4));

function metricsOf({ partition, users, config }: RunFiles, { clients }: ResultFile): ClientMetrics[] {
  const members = new Map(
    partition.clients.map(({ name, group, users: ids = [] }) => [name, ids.map((id) => userKey(group, id))]),
  );
  return clients.map(({ client, testUsers, bestRound, metrics }) => {
    const recalls = (members.get(client) ?? []).flatMap((id) => users?.get(id)?.['recall@10'] ?? []);
    // Of another number of users than the result's, they are of another evaluation; where all are alike, resampling
    // them says nothing.
    const known = recalls.length === testUsers && new Set(recalls).size > 1;
    return {
      client,
      testUsers,
      bestRound,
      metrics,
      ...(known && { interval: bootstrap(recalls, config.seed) }),
    };
  });
}

/** Undefined where no client has test users. */
function recallFigure(clients: readonly ClientMetrics[], { pooled, floors }: ResultFile): Figure | undefined {
  const points = clients.flatMap(({ client, testUsers, metrics, interval }) => {
    const recall = metrics['recall@10'];
    if (recall === undefined) return [];
    const { low, high } = interval ?? { low: recall, high: recall };
    return [{ client, series: 'client', recall, low, high, users: `n = ${count(testUsers)}` }];
  });
  if (points.length === 0) return undefined;
  const levels = [
    { series: 'all test users', recall: pooled['recall@10'] },
    ...Object.entries(floors).map(([floor, metrics]) => ({
      series: `floor: ${floor}`,
      recall: metrics['recall@10'],
    })),
  ].filter(({ recall }) => recall !== undefined);
  const series = [
    { name: 'client', style: seriesStyles[0]! },
    ...levels.map(({ series }, i) => ({ name: series, style: ruleStyles[i % ruleStyles.length]! })),
  ];
  const { color, strokeDash, shape } = seriesChannels(series);
  const edge = Math.max(...points.map(({ high }) => high), ...levels.map(({ recall }) => recall!));
  const x = {
    field: 'recall',
    type: 'quantitative' as const,
    title: 'R@10',
    scale: { domain: [0, edge > 0 ? edge : 1], nice: true },
  };
  const y = {
    field: 'client',
    type: 'nominal' as const,
    title: null,
    sort: null,
    axis: { labelLimit: 160, grid: true },
  };
  const chart: LayeredChart = {
    width: 420,
    height: Math.max(60, 26 * points.length),
    data: { values: points },
    layer: [
      {
        data: { values: levels },
        mark: { type: 'rule', strokeWidth: 1.5 },
        encoding: { x, color, strokeDash },
      },
      {
        mark: { type: 'rule', strokeWidth: 2, opacity: 0.7 },
        encoding: { x: { ...x, field: 'low' }, x2: { field: 'high' }, y, color },
      },
      {
        mark: { type: 'point', filled: true, opacity: 1, size: 80 },
        encoding: { x, y, color, shape },
      },
      {
        mark: { type: 'text', align: 'left', dx: 8 },
        encoding: { x: { value: 'width' }, y, text: { field: 'users' } },
      },
    ],
  };
  const intervals = clients.some(({ interval }) => interval)
    ? ' Bars are 95 % intervals over test users; where all users have the same value there is none.'
    : '';
  return {
    title: 'R@10 per client',
    caption: `Share of a user's next items among the first ten of all items; n is the number of test users.${intervals} Floors rank without having learned anything.`,
    spec: withLegend(chart, series, 420),
  };
}
