// A comparison as text for a terminal, as CSV and as LaTeX.
import { shownMetrics, table } from '../table.ts';
import { comparedMetrics } from './compared.ts';
import { withoutInjection } from './methods.ts';
import type { ComparedClient, ComparedMethod, Comparison } from './result.ts';

const titles = Object.values(shownMetrics);
const mebibytes = (bytes: number) => bytes / 2 ** 20;
const fixed = (value: number | undefined, digits: number) =>
  value === undefined ? '-' : value.toFixed(digits);
const signedPercent = (share: number) => `${share >= 0 ? '+' : '-'}${Math.abs(100 * share).toFixed(1)}`;

/** Methods beside each other, each against the baseline, the balance between clients, then what does not count. */
export function comparisonText(comparison: Comparison): string {
  const { data, model, seeds, baseline, methods } = comparison;
  const parts = [
    `${data.name}${model ? `, ${model.path}` : ''}; seeds ${seeds.join(', ')}; means over test users, then over seeds${seeds.length > 1 ? ', ± standard deviation over seeds' : ''}`,
    table(
      ['method', ...titles, 'worst client', 'users', 'seconds', 'MiB exchanged'],
      methods.map((method) => [
        method.method,
        ...comparedMetrics.map((name) => withDeviation(method, name)),
        fixed(method.spread?.worst, 4),
        userCount(method),
        fixed(method.seconds, 0),
        method.bytes === undefined ? '-' : mebibytes(method.bytes).toFixed(1),
      ]),
    ),
    ...againstTable(methods, baseline),
    ...groupTable(methods, baseline),
    ...balanceTable(methods),
    ...injectionTable(methods),
    ...methods.flatMap(({ method, incomplete }) =>
      incomplete.map(
        ({ seed, missing }) => `${method}, seed ${seed}, is not complete and counts in nothing: ${missing}`,
      ),
    ),
  ];
  return parts.join('\n\n');
}

/** Where every seed has as many: how many of them, and how many seeds. */
function userCount({ users, usersPerSeed = users }: ComparedMethod): string {
  return usersPerSeed < users ? `${usersPerSeed} × ${users / usersPerSeed}` : String(users);
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
  const header = [`against ${baseline}`, ...titles.flatMap((title) => [`${title}, %`, 'p'])];
  return [
    table(header, rows),
    'change in % of the baseline (absolute where a resample of that has no hit) with its 95 % interval, two-sided p: paired bootstrap over users, a user with all its seeds',
  ];
}

function change({ difference, relative }: NonNullable<ComparedMethod['against']>[string]): string {
  if (!relative)
    return `absolute ${difference.mean.toFixed(4)} (${difference.low.toFixed(4)} to ${difference.high.toFixed(4)})`;
  return `${signedPercent(relative.mean)} (${signedPercent(relative.low)} to ${signedPercent(relative.high)})`;
}

/** Of all groups that a method has test users of. */
export function groupNames(methods: readonly ComparedMethod[]): string[] {
  return [...new Set(methods.flatMap(({ groups = [] }) => groups.map(({ group }) => group)))];
}

/** R@10 of each group's users; none where all clients share one catalogue. */
function groupTable(methods: readonly ComparedMethod[], baseline: string): string[] {
  const names = groupNames(methods);
  if (names.length === 0) return [];
  const rows = methods.map(({ method, groups = [] }) => [
    method,
    ...names.flatMap((name) => {
      const found = groups.find(({ group }) => group === name);
      const against = found?.against?.['recall@10'];
      return [
        fixed(found?.metrics['recall@10'], 4),
        against ? change(against) : '',
        against ? against.p.toFixed(3) : '',
      ];
    }),
  ]);
  return [table(['R@10', ...names.flatMap((name) => [name, `against ${baseline}, %`, 'p'])], rows)];
}

/** How far clients are apart, and whom they listen to. */
function balanceTable(methods: readonly ComparedMethod[]): string[] {
  const rows = methods.flatMap(({ method, spread, agreement }) =>
    spread
      ? [
          [
            method,
            spread.deviation.toFixed(4),
            spread.worst.toFixed(4),
            fixed(spread.lossDeviation, 3),
            fixed(spread.worstLoss, 3),
            fixed(agreement?.itemOverlap, 2),
            fixed(agreement?.popularityCosine, 2),
          ],
        ]
      : [],
  );
  if (rows.length === 0) return [];
  return [
    table(
      ['clients', 'R@10 spread', 'lowest', 'loss spread', 'highest', 'weights: items', 'popularity'],
      rows,
    ),
    'spread: standard deviation over clients, of R@10 and of the lowest validation loss; weights: correlation, over pairs of clients, of what one takes from the other with the overlap of their items, and the cosine of their popularity',
  ];
}

/** What a client's own statistics make of its ranking. */
export interface InjectedClient {
  readonly method: string;
  readonly seed: number;
  readonly client: string;
  readonly testUsers: number;
  readonly gamma: number;
  readonly recall: number;
  /** Of the same ranking with nothing injected; undefined where that is not compared. */
  readonly before?: number;
}

/** Of all clients with test users, by method that injects, seed and client. */
export function injectedClients(methods: readonly ComparedMethod[]): InjectedClient[] {
  const recallOf = ({ metrics }: ComparedClient) => metrics['recall@10'];
  return methods.flatMap(({ method, clients }) => {
    const plain = methods.find((one) => one.method === withoutInjection(method))?.clients;
    return clients.flatMap((one) => {
      const { seed, client, testUsers, gamma } = one;
      const recall = recallOf(one);
      if (gamma === undefined || recall === undefined) return [];
      const same = plain?.find((other) => other.seed === seed && other.client === client);
      // A configuration may itself inject something.
      const before = same && same.gamma === undefined ? recallOf(same) : undefined;
      return [{ method, seed, client, testUsers, gamma, recall, ...(before !== undefined && { before }) }];
    });
  });
}

function injectionTable(methods: readonly ComparedMethod[]): string[] {
  const rows = injectedClients(methods).map(({ method, seed, client, testUsers, gamma, recall, before }) => [
    method,
    String(seed),
    client,
    String(testUsers),
    String(gamma),
    fixed(before, 4),
    fixed(recall, 4),
  ]);
  if (rows.length === 0) return [];
  return [
    table(['injection by client', 'seed', 'client', 'users', 'gamma', 'R@10 without', 'with'], rows),
    'each client injects the statistics of its own users, as far as helps its validation samples (gamma; 0: not at all)',
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
      `${name} difference`,
      `${name} difference low`,
      `${name} difference high`,
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
      const { difference, relative, p } = one.against?.[name] ?? {};
      return [
        ...[one.metrics[name], one.deviations[name], difference?.mean, difference?.low, difference?.high],
        ...[relative?.mean, relative?.low, relative?.high, p],
      ];
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
    const text = found ? latexChange(found) : '--';
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
    `Method & ${titles.join(' & ')} & Worst client & R@10 against ${escapeLatex(baseline)} \\\\`,
    '\\midrule',
    ...rows,
    '\\bottomrule',
    '\\end{tabular}',
  ].join('\n');
}

function latexChange({ relative, difference }: NonNullable<ComparedMethod['against']>[string]): string {
  if (relative) return `${signedPercent(relative.mean)}\\,\\%`;
  return `${difference.mean < 0 ? '$-$' : '+'}${Math.abs(difference.mean).toFixed(4)}`;
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
