// Results as tables for a terminal.
import type { Metrics } from '@fellrec/recsys';
import type { RunResult } from './train.ts';

/** Columns aligned by their widest cell: the first to the left, the others to the right. */
export function table(header: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = header.map((title, c) => Math.max(title.length, ...rows.map((row) => row[c]!.length)));
  const render = (row: readonly string[]) =>
    row
      .map((cell, c) => (c === 0 ? cell.padEnd(widths[c]!) : cell.padStart(widths[c]!)))
      .join('  ')
      .trimEnd();
  return [render(header), widths.map((width) => '-'.repeat(width)).join('  '), ...rows.map(render)].join(
    '\n',
  );
}

/** The metrics that are shown, and what they are called in a table's head. */
export const shownMetrics = {
  'recall@10': 'R@10',
  'recall@20': 'R@20',
  'ndcg@10': 'N@10',
  'ndcg@20': 'N@20',
} as const;
const titles = Object.values(shownMetrics);
const cells = (metrics: Metrics) => Object.keys(shownMetrics).map((name) => number(metrics[name], 4));
const number = (x: number | undefined, digits = 3) => (x === undefined ? '-' : x.toFixed(digits));

/** Per client: users, samples, losses, metrics; then all users, and the spread. */
export function clientTable({ clients, pooled, spread }: RunResult): string {
  // How much what is injected counts, where something is.
  const injects = clients.some(({ gamma }) => gamma !== undefined);
  const gammaOf = (gamma: number | undefined) => (injects ? [gamma === undefined ? '' : String(gamma)] : []);
  const rows = clients.map((c) => [
    c.client,
    c.users === undefined ? '-' : String(c.users),
    String(c.trainSamples),
    String(c.testUsers),
    number(c.firstLoss),
    number(c.lastLoss),
    ...cells(c.metrics),
    ...gammaOf(c.gamma),
  ]);
  const sum = (of: (c: RunResult['clients'][number]) => number | undefined) =>
    clients.some((c) => of(c) === undefined) ? '-' : String(clients.reduce((n, c) => n + of(c)!, 0));
  rows.push([
    'all users',
    sum((c) => c.users),
    sum((c) => c.trainSamples),
    sum((c) => c.testUsers),
    '',
    '',
    ...cells(pooled),
    ...gammaOf(undefined),
  ]);
  const header = [
    ...['client', 'users', 'train', 'test', 'first loss', 'last loss', ...titles],
    ...(injects ? ['gamma'] : []),
  ];
  const worst = `R@10 over clients: standard deviation ${spread.deviation.toFixed(4)}, worst ${spread.worst.client} (${spread.worst.value.toFixed(4)})`;
  return `${table(header, rows)}\n${worst}`;
}

/** Per group: its catalogue and users, metrics, and the floors over its own catalogue; empty where all are one. */
export function groupTable({ groups = [] }: RunResult): string {
  if (groups.length < 2) return '';
  const rows = groups.map(({ group, items, users, testUsers, metrics, floors }) => [
    group!,
    ...[items, users, testUsers].map((count) => (count === undefined ? '-' : String(count))),
    ...cells(metrics),
    ...Object.values(floors).map((floor) => number(floor['recall@10'], 4)),
  ]);
  const floors = Object.keys(groups[0]!.floors).map((floor) => `R@10 ${floor}`);
  return table(['group', 'items', 'users', 'test', ...titles, ...floors], rows);
}

/** Strategies beside each other, over all users, above the floors. */
export function comparisonTable(results: readonly RunResult[]): string {
  const [first] = results;
  const rows = results.map((r) => [
    r.strategy,
    ...cells(r.pooled),
    r.spread.worst.value.toFixed(4),
    r.seconds.toFixed(0),
  ]);
  for (const [floor, metrics] of Object.entries(first!.floors)) rows.push([floor, ...cells(metrics), '', '']);
  return table(['method', ...titles, 'R@10 worst client', 'seconds'], rows);
}
