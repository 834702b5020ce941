// Methods beside each other: means, intervals against a baseline, and what did not count.
import type { ComparedMethod, Comparison, PairedDifference } from '../compare/result.ts';
import { withoutSamples } from '../compare/samples.ts';
import { groupNames, injectedClients } from '../compare/tables.ts';
import { shownMetrics } from '../table.ts';
import { type Figure, figure, type LayeredChart, ruleStyles, seriesStyles } from './chart.ts';
import { html, htmlTable, tableIfAny } from './html.ts';
import { count, fixed, mebibytes, missing } from './numbers.ts';
import type { Section } from './page.ts';

const metric = 'recall@10';

export async function comparisonSection(comparison: Comparison): Promise<Section> {
  const { data, model, seeds, baseline, methods } = comparison;
  const forest = forestFigure(comparison);
  const growth = samplesFigure(comparison);
  const incomplete = methods.flatMap(({ method, incomplete }) =>
    incomplete.map(({ seed, missing }) => html`<li>${method}, seed ${seed}: ${missing}</li>`),
  );
  return {
    title: 'Comparison',
    body: html`<p class="quiet">${data.name}${model && html`, ${model.path}`}; seeds ${seeds.join(', ')}; means over test users, then over seeds${seeds.length > 1 ? ', ± standard deviation over seeds' : ''}</p>
${incomplete.length > 0 ? html`<div class="finding"><strong>Not complete, and counted in nothing:</strong><ul>${incomplete}</ul></div>\n` : undefined}${htmlTable(
  {
    caption:
      'Methods, with the training samples of all clients; spread and worst client are of R@10 over clients (standard deviation, lowest)',
    header: [
      'method',
      ...Object.values(shownMetrics),
      'samples',
      'users',
      'spread',
      'worst client',
      'seconds',
      'exchanged',
    ],
    rows: methods.map((method) => [
      method.method === baseline ? `${method.method} (baseline)` : method.method,
      ...Object.keys(shownMetrics).map((name) => withDeviation(method, name)),
      method.trainSamples === undefined ? missing : count(Math.round(method.trainSamples)),
      count(method.users),
      fixed(method.spread?.deviation, 4),
      fixed(method.spread?.worst, 4),
      method.seconds === undefined ? missing : count(Math.round(method.seconds)),
      method.bytes === undefined ? missing : mebibytes(method.bytes),
    ]),
  },
)}${forest && (await figure(forest))}${growth && (await figure(growth))}
${tableIfAny({
  caption: `Change against ${baseline} on the same users, 95 % interval, two-sided p of no difference (paired bootstrap; not corrected for the number of comparisons)`,
  header: ['method', 'users', ...Object.values(shownMetrics).flatMap((title) => [title, 'p'])],
  rows: methods.flatMap(({ method, against }) =>
    against
      ? [
          [
            method,
            count(against[metric]?.users ?? 0),
            ...Object.keys(shownMetrics).flatMap((name) => [
              change(against[name]),
              fixed(against[name]?.p, 3),
            ]),
          ],
        ]
      : [],
  ),
})}${tableIfAny({
  caption: `R@10 by group, each over its own catalogue, and its change against ${baseline}`,
  header: ['method', ...groupNames(methods).flatMap((name) => [name, 'change', 'p'])],
  rows: methods.flatMap(({ method, groups }) =>
    groups
      ? [
          [
            method,
            ...groupNames(methods).flatMap((name) => {
              const found = groups.find(({ group }) => group === name);
              const against = found?.against?.[metric];
              return [
                fixed(found?.metrics[metric], 4),
                against ? change(against) : '',
                against ? fixed(against.p, 3) : '',
              ];
            }),
          ],
        ]
      : [],
  ),
})}${tableIfAny({
  caption:
    'Do clients take more from those whose data is like theirs? Correlation (r) of mixing weights with likeness, over pairs of clients',
  header: ['method', 'shared items', 'popularity of items'],
  rows: methods.flatMap(({ method, agreement }) =>
    agreement ? [[method, fixed(agreement.itemOverlap, 2), fixed(agreement.popularityCosine, 2)]] : [],
  ),
})}${tableIfAny({
  caption:
    'What statistics of its own users, injected into the ranking, make of a client’s R@10; gamma is how much they count, by its validation samples',
  header: ['method', 'seed', 'client', 'users', 'gamma', 'without', 'with'],
  headings: 3,
  rows: injectedClients(methods).map(({ method, seed, client, testUsers, gamma, recall, before }) => [
    method,
    String(seed),
    client,
    count(testUsers),
    String(gamma),
    fixed(before, 4),
    fixed(recall, 4),
  ]),
})}`,
  };
}

function withDeviation({ metrics, deviations }: ComparedMethod, name: string): string {
  const deviation = deviations[name];
  return `${fixed(metrics[name], 4)}${deviation === undefined ? '' : ` ± ${fixed(deviation, 4)}`}`;
}

const signed = (share: number) => `${share < 0 ? '−' : '+'}${Math.abs(100 * share).toFixed(1)} %`;

/** Relative where the baseline is not 0. */
function change(found: PairedDifference | undefined): string {
  if (!found) return missing;
  const { relative, difference } = found;
  if (!relative) return `${fixed(difference.mean, 4)} (absolute)`;
  return `${signed(relative.mean)} [${signed(relative.low)}, ${signed(relative.high)}]`;
}

/** Undefined where no method has a relative difference. */
function forestFigure({ methods, baseline }: Comparison): Figure | undefined {
  const rows = methods.flatMap(({ method, against }) => {
    const found = against?.[metric];
    if (!found?.relative) return [];
    const { mean, low, high } = found.relative;
    return [
      {
        method,
        mean: 100 * mean,
        low: 100 * low,
        high: 100 * high,
        differs: low > 0 || high < 0,
        text: `${change(found)}, p ${fixed(found.p, 3)}`,
      },
    ];
  });
  if (rows.length === 0) return undefined;
  const y = { field: 'method', type: 'nominal' as const, title: null, sort: null, axis: { labelLimit: 160 } };
  const x = {
    type: 'quantitative' as const,
    title: `change of R@10 against ${baseline}, %`,
    scale: { nice: true },
    axis: { tickCount: 6 },
  };
  const { color } = seriesStyles[0]!;
  const chart: LayeredChart = {
    width: 340,
    height: Math.max(60, 30 * rows.length),
    data: { values: rows },
    layer: [
      {
        data: { values: [{ zero: 0 }] },
        mark: { type: 'rule', strokeDash: [...ruleStyles[1]!.dash] },
        encoding: { x: { ...x, field: 'zero' } },
      },
      {
        mark: { type: 'rule', strokeWidth: 2, color },
        encoding: { x: { ...x, field: 'low' }, x2: { field: 'high' }, y },
      },
      ...[true, false].map((differs) => ({
        transform: [{ filter: { field: 'differs', equal: differs } }],
        mark: {
          type: 'point' as const,
          shape: differs ? 'diamond' : 'circle',
          filled: differs,
          size: differs ? 150 : 90,
          strokeWidth: 2,
          opacity: 1,
          color,
        },
        encoding: { x: { ...x, field: 'mean' }, y },
      })),
      {
        mark: { type: 'text', align: 'left', dx: 10 },
        encoding: { x: { value: 'width' }, y, text: { field: 'text' } },
      },
    ],
  };
  return {
    title: `R@10 against ${baseline}`,
    caption:
      'Lines are 95 % intervals over users. A filled diamond has an interval without 0, an open circle one with it: that method and the baseline are not told apart.',
    spec: chart,
  };
}

/** R@10 by the number of training samples; undefined where all runs have as many. */
function samplesFigure({ methods }: Comparison): Figure | undefined {
  const points = methods.flatMap(({ method, trainSamples, metrics, deviations }) => {
    const recall = metrics[metric];
    if (trainSamples === undefined || recall === undefined) return [];
    const deviation = deviations[metric] ?? 0;
    const [low, high] = [recall - deviation, recall + deviation];
    return [{ method: withoutSamples(method), samples: trainSamples, recall, low, high }];
  });
  if (new Set(points.map(({ samples }) => samples)).size < 2) return undefined;
  const { color } = seriesStyles[0]!;
  const x = {
    field: 'samples',
    type: 'quantitative' as const,
    title: 'training samples',
    scale: { type: 'log' as const, nice: true },
    axis: { tickCount: 6 },
  };
  const y = { type: 'quantitative' as const, title: 'R@10', scale: { zero: true, nice: true } };
  const chart: LayeredChart = {
    width: 420,
    height: 240,
    data: { values: points },
    layer: [
      {
        mark: { type: 'line', color },
        encoding: { x, y: { ...y, field: 'recall' }, detail: { field: 'method' } },
      },
      {
        mark: { type: 'rule', strokeWidth: 2, color },
        encoding: { x, y: { ...y, field: 'low' }, y2: { field: 'high' } },
      },
      {
        mark: { type: 'point', filled: true, size: 80, opacity: 1, color },
        encoding: { x, y: { ...y, field: 'recall' } },
      },
      {
        mark: { type: 'text', align: 'left', dx: 8, dy: -8 },
        encoding: { x, y: { ...y, field: 'recall' }, text: { field: 'method' } },
      },
    ],
  };
  return {
    title: 'R@10 by training samples',
    caption: 'Each point is a method with its name; lines are one standard deviation over seeds.',
    spec: chart,
  };
}
