// A comparison as text for a terminal, as CSV and as LaTeX.
import { table } from '../table.ts';
import { comparedMetrics } from './compared.ts';
import type { ComparedMethod, Comparison } from './result.ts';

const titles = { 'recall@10': 'R@10', 'recall@20': 'R@20', 'ndcg@10': 'N@10', 'ndcg@20': 'N@20' } as const;
const megabytes = (bytes: number) => bytes / 2 ** 20;
const fixed = (value: number | undefined, digits: number) =>
  value === undefined ? '-' : value.toFixed(digits);
const signedPercent = (share: number) => `${share >= 0 ? '+' : '-'}${Math.abs(100 * share).toFixed(1)}`;

/** Methods beside each other, then each against the baseline, then what does not count. */
export function comparisonText(comparison: Comparison): string {
  const { data, model, seeds, baseline, methods } = comparison;
  const parts = [
    `${data.name}${model ? `, ${model.path}` : ''}; seeds ${seeds.join(', ')}; means over test users, then over seeds${seeds.length > 1 ? ', ± standard deviation over seeds' : ''}`,
    table(
      ['method', ...Object.values(titles), 'users', 'spread', 'worst client', 'seconds', 'MB exchanged'],
      methods.map((method) => [
        method.method,
        ...comparedMetrics.map((name) => withDeviation(method, name)),
        String(method.users),
        fixed(method.spread?.deviation, 4),
        fixed(method.spread?.worst, 4),
        fixed(method.seconds, 0),
        method.bytes === undefined ? '-' : megabytes(method.bytes).toFixed(1),
      ]),
    ),
    'spread, worst client: of R@10 over clients (standard deviation, lowest)',
    ...againstTable(methods, baseline),
    ...agreements(methods),
    ...methods.flatMap(({ method, incomplete }) =>
      incomplete.map(
        ({ seed, missing }) => `${method}, seed ${seed}, is not complete and counts in nothing: ${missing}`,
      ),
    ),
  ];
  return parts.join('\n\n');
}

function withDeviation({ metrics, deviations }: ComparedMethod, name: string): string {
  const deviation = deviations[name];
  return `${fixed(metrics[name], 4)}${deviation === undefined ? '' : ` ± ${deviation.toFixed(4)}`}`;
}

function againstTable(methods: readonly ComparedMethod[], baseline: string): string[] {
  const rows = methods.flatMap(({ method, against }) =>
    against
      ? [
          [
            method,
            ...comparedMetrics.flatMap((name) => [change(against[name]!), against[name]!.p.toFixed(3)]),
          ],
        ]
      : [],
  );
  if (rows.length === 0) return [];
  const header = [`against ${baseline}`, ...Object.values(titles).flatMap((title) => [`${title}, %`, 'p'])];
  return [
    table(header, rows),
    'change in % of the baseline with its 95 % interval, two-sided p: paired bootstrap over users, a user with all its seeds',
  ];
}

function change({ difference, relative }: NonNullable<ComparedMethod['against']>[string]): string {
  if (!relative) return `${difference.mean.toFixed(4)} (absolute)`;
  return `${signedPercent(relative.mean)} (${signedPercent(relative.low)} to ${signedPercent(relative.high)})`;
}

function agreements(methods: readonly ComparedMethod[]): string[] {
  const rows = methods.flatMap(({ method, agreement }) =>
    agreement ? [[method, agreement.itemOverlap.toFixed(2), agreement.popularityCosine.toFixed(2)]] : [],
  );
  if (rows.length === 0) return [];
  return [
    table(['mixing against likeness of data (r)', 'item overlap', 'popularity'], rows),
    'Pearson correlation, over pairs of clients, of what a client takes from another with how alike their data is',
  ];
}

/** One row a method, plain numbers; empty where there is none. */
export function comparisonCsv({ methods }: Comparison): string {
  const header = [
    'method',
    'seeds',
    'users',
    ...comparedMetrics.flatMap((name) => [
      name,
      `${name} sd`,
      `${name} change`,
      `${name} change low`,
      `${name} change high`,
      `${name} p`,
    ]),
    'spread',
    'worst client',
    'seconds',
    'bytes',
  ];
  const rows = methods.map((one) => [
    one.method,
    one.runs.length - one.incomplete.length,
    one.users,
    ...comparedMetrics.flatMap((name) => {
      const { relative, p } = one.against?.[name] ?? {};
      return [one.metrics[name], one.deviations[name], relative?.mean, relative?.low, relative?.high, p];
    }),
    one.spread?.deviation,
    one.spread?.worst,
    one.seconds,
    one.bytes,
  ]);
  return [header, ...rows].map((row) => row.map((cell) => quoted(String(cell ?? ''))).join(',')).join('\n');
}

function quoted(cell: string): string {
  return /[",\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell;
}

/** A booktabs table: metrics, worst client and the change in R@10; in bold what differs with p < 0.05. */
export function comparisonLatex({ methods, baseline }: Comparison): string {
  const rows = methods.map((one) => {
    const found = one.against?.['recall@10'];
    const text = found?.relative ? `${signedPercent(found.relative.mean)}\\,\\%` : '--';
    const cells = [
      escapeLatex(one.method),
      ...comparedMetrics.map((name) => latexNumber(one, name)),
      fixed(one.spread?.worst, 4).replace(/^-$/, '--'),
      found && found.p < 0.05 ? `\\textbf{${text}}` : text,
    ];
    return `${cells.join(' & ')} \\\\`;
  });
  return [
    `\\begin{tabular}{l${'r'.repeat(comparedMetrics.length + 2)}}`,
    '\\toprule',
    `Method & ${Object.values(titles).join(' & ')} & Worst client & R@10 against ${escapeLatex(baseline)} \\\\`,
    '\\midrule',
    ...rows,
    '\\bottomrule',
    '\\end{tabular}',
  ].join('\n');
}

function latexNumber({ metrics, deviations }: ComparedMethod, name: string): string {
  const deviation = deviations[name];
  if (metrics[name] === undefined) return '--';
  return `${metrics[name].toFixed(4)}${deviation === undefined ? '' : ` $\\pm$ ${deviation.toFixed(4)}`}`;
}

function escapeLatex(text: string): string {
  return text.replace(/[\\{}$&#^_%~]/g, (character) =>
    character === '\\'
      ? '\\textbackslash{}'
      : '^~'.includes(character)
        ? `\\${character}{}`
        : `\\${character}`,
  );
}
