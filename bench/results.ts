// The tables of docs/results.md that compare methods, from runs' files: what is missing is trained first, and a run that
// was stopped goes on.
//   npx node --conditions=source bench/results.ts [--data data] [--models models] [--runs runs] [--cache FOLDER] [--only NAME]
//     [--threads COUNT]
// It writes what stands between `<!-- NAME -->` and `<!-- /NAME -->` there. After each seed the page is up to date.
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import {
  type ComparedMethod,
  type Comparison,
  type Config,
  compare,
  comparedMetrics,
  loadConfig,
  type Method,
  progressOn,
} from '@fellrec/cli';
import { compared } from '../packages/cli/src/compare/compared.ts';
import { withoutSamples } from '../packages/cli/src/compare/samples.ts';
import { groupNames, injectedClients } from '../packages/cli/src/compare/tables.ts';
import { readTrials } from '../packages/cli/src/compare/trials.ts';
import { type MixingResult, mixingResult } from '../packages/cli/src/mixing.ts';
import { readRunFiles } from '../packages/cli/src/report/run-files.ts';
import { line, place } from './page.ts';

/** A data folder's name, or one for each of the configuration's groups in their order. */
type DataFolders = string | readonly string[];

interface Study {
  /** Of its place in the page, and of its runs if these are not another study's. */
  readonly name: string;
  readonly runs?: string;
  /** What the others are compared with, if not FedAvg. */
  readonly baseline?: Method;
  readonly config: string;
  readonly data: DataFolders;
  /** Folder of its model; none if the configuration's own is embedded. */
  readonly model?: string;
  readonly methods: readonly Method[];
  readonly seeds: readonly number[];
  /** Fewer training samples, in as many more epochs: the configuration's own number is the last. */
  readonly samples?: readonly number[];
}

const { values } = parseArgs({
  options: {
    data: { type: 'string', default: 'data' },
    models: { type: 'string', default: 'models' },
    runs: { type: 'string', default: 'runs' },
    cache: { type: 'string', default: '.cache/fellrec' },
    only: { type: 'string' },
    threads: { type: 'string' },
  },
});
const root = fileURLToPath(new URL('..', import.meta.url));

const floors: readonly Method[] = ['zero-shot', 'cooccurrence', 'sasrec', 'popularity', 'random'];

const silos = ['games-12core', 'office-7core', 'ml-100k-loo'];
const mixtures: readonly Method[] = [
  'fellrec',
  'fellrec-relative',
  'fellrec-relative-smoothed',
  'chosen',
  'fedavg',
  'local',
];

const studies: readonly Study[] = [
  {
    name: 'sample-bigrec',
    config: 'packages/cli/quickstart/config.yaml',
    data: 'sample',
    methods: ['fellrec', 'fedavg', 'local', ...floors],
    seeds: [1, 2, 3],
  },
  {
    name: 'games-minilm',
    config: 'configs/results-games-minilm.yaml',
    data: 'games',
    model: 'all-minilm-l6-v2',
    methods: [
      'fellrec',
      'fedavg',
      'fedprox',
      'ditto',
      'local',
      'centralized',
      'fellrec-no-heating',
      'fellrec-no-similarity',
      'zero-shot',
      'cooccurrence',
      'popularity',
      'random',
    ],
    seeds: [1, 2, 3],
  },
  {
    name: 'games-smollm2',
    config: 'configs/results-games-smollm2.yaml',
    data: 'games',
    model: 'smollm2-135m-instruct',
    methods: ['fellrec', 'fedavg', 'local', 'zero-shot', 'popularity'],
    seeds: [1, 2],
  },
  {
    name: 'ml-100k-minilm',
    config: 'configs/results-ml-100k-minilm.yaml',
    data: 'ml-100k',
    model: 'all-minilm-l6-v2',
    methods: [
      'fellrec',
      'fellrec-samples',
      'fedavg',
      'uniform',
      'fedprox',
      'ditto',
      'local',
      'centralized',
      ...floors,
    ],
    seeds: [1, 2, 3],
  },
  {
    name: 'silos-minilm',
    config: 'configs/results-silos-minilm.yaml',
    data: silos,
    model: 'all-minilm-l6-v2',
    methods: [
      ...mixtures,
      'fellrec-relative-no-heating',
      'fedamp',
      'fedfomo',
      'clustered',
      'groups',
      'zero-shot',
      'cooccurrence',
      'popularity',
    ],
    seeds: [1, 2, 3],
  },
  {
    name: 'games-12core-minilm',
    config: 'configs/results-games-12core-minilm.yaml',
    data: 'games-12core',
    model: 'all-minilm-l6-v2',
    methods: [...mixtures, 'zero-shot', 'cooccurrence', 'popularity'],
    seeds: [1, 2],
  },
  {
    name: 'silos-smollm2',
    config: 'configs/results-silos-smollm2.yaml',
    data: silos,
    model: 'smollm2-135m-instruct',
    methods: ['fedavg', 'fellrec-relative', 'popularity'],
    seeds: [1],
  },
  {
    name: 'modes-smollm2',
    config: 'configs/results-modes-smollm2.yaml',
    data: 'games',
    model: 'smollm2-135m-instruct',
    methods: modes('centralized'),
    baseline: 'centralized',
    seeds: [1],
  },
  {
    name: 'modes-smollm2-cooccurrence',
    runs: 'modes-smollm2',
    config: 'configs/results-modes-smollm2.yaml',
    data: 'games',
    model: 'smollm2-135m-instruct',
    methods: ['cooccurrence', 'centralized+rerank', 'centralized+rerank+cooccurrence'],
    baseline: 'cooccurrence',
    seeds: [1],
  },
  {
    name: 'samples-smollm2',
    runs: 'modes-smollm2',
    config: 'configs/results-modes-smollm2.yaml',
    data: 'games',
    model: 'smollm2-135m-instruct',
    methods: ['centralized'],
    baseline: 'centralized',
    seeds: [1],
    samples: [256, 1024, 4096],
  },
  {
    name: 'modes-silos-smollm2',
    runs: 'silos-smollm2',
    config: 'configs/results-silos-smollm2.yaml',
    data: silos,
    model: 'smollm2-135m-instruct',
    methods: modes('fedavg'),
    seeds: [1],
  },
];

/** One adapter, ranked in every way, and what needs none. */
function modes(method: 'centralized' | 'fedavg'): readonly Method[] {
  return [
    method,
    `${method}+constrained`,
    `${method}+rerank`,
    `${method}+popularity`,
    `${method}+cooccurrence`,
    `${method}+constrained+cooccurrence`,
    `${method}+rerank+cooccurrence`,
    'cooccurrence',
    'popularity',
  ];
}

const chosen = studies.filter(({ name }) => values.only === undefined || name === values.only);
if (chosen.length === 0)
  throw new Error(
    `results: no study "${values.only}"; there are ${studies.map(({ name }) => name).join(', ')}`,
  );
for (const study of chosen) {
  const { name, config: file, data, model, seeds } = study;
  const places = [
    `name=${study.runs ?? name}`,
    `runs=${resolve(values.runs)}`,
    `cache=${resolve(values.cache)}`,
    ...(values.threads === undefined ? [] : [`threads=${values.threads}`]),
    ...(model === undefined ? [] : [`model.path=${resolve(values.models, model)}`]),
  ];
  const config = withData(await loadConfig(join(root, file), places), data);
  for (const [i] of seeds.entries())
    place(name, await markdown(await found(config, study, seeds.slice(0, i + 1))));
}

async function found(config: Config, study: Study, seeds: readonly number[]): Promise<Comparison> {
  const { methods, baseline = 'fedavg', samples } = study;
  const compareWith = (own: Config) =>
    compare(own, { methods, seeds, baseline, progress: progressOn(process.stderr) });
  if (!samples) return compareWith(config);
  const most = samples.at(-1)!;
  const directories: string[] = [];
  for (const count of samples) {
    const own = await compareWith({
      ...config,
      name: count === most ? config.name : `${config.name}-${count}`,
      data: { ...config.data, trainSamples: count },
      training: { ...config.training, epochs: (config.training.epochs * most) / count },
    });
    directories.push(...own.methods.flatMap(({ runs }) => runs.map(({ directory }) => directory)));
  }
  const trials = await readTrials(directories);
  return compared(trials, trials.findLast(({ method }) => withoutSamples(method) === baseline)!.method);
}

function withData(config: Config, data: DataFolders): Config {
  const folder = (name: string) => resolve(values.data, name);
  if (typeof data === 'string') return { ...config, data: { ...config.data, path: folder(data) } };
  return { ...config, groups: config.groups!.map((group, i) => ({ ...group, path: folder(data[i]!) })) };
}

async function markdown({ methods, seeds, baseline }: Comparison): Promise<string> {
  const header = [
    '',
    'R@10',
    'R@20',
    'N@10',
    'N@20',
    `R@10 against ${baseline}`,
    'p',
    'spread',
    'worst client',
    'MiB',
    's',
  ];
  return [
    line(header),
    line(header.map(() => '---')),
    ...methods.map((one) => line(row(one))),
    '',
    `Seeds ${seeds.join(', ')}; ${Math.max(...methods.map(({ users }) => users)).toLocaleString('en')} test users over all seeds. Means over users, then over seeds, ± standard deviation over seeds (which draw samples, clients and start); change with its 95 % interval and p by a paired bootstrap over users; spread and worst client of R@10 over clients; seconds of a run's rounds, or of a ranking with its test. ${sentences(methods, baseline)}`,
    ...groupLines(methods),
    ...(await mixingLines(methods)),
    ...injectionLines(methods),
  ].join('\n');
}

/** R@10 of each group's users, over their own catalogue. */
function groupLines(methods: readonly ComparedMethod[]): string[] {
  const names = groupNames(methods);
  if (names.length === 0) return [];
  const header = ['R@10', ...names.flatMap((name) => [name, 'change', 'p'])];
  return [
    '',
    line(header),
    line(header.map(() => '---')),
    ...methods.map(({ method, groups = [] }) =>
      line([
        `\`${method}\``,
        ...names.flatMap((name) => {
          const own = groups.find(({ group }) => group === name);
          const change = own?.against?.['recall@10'];
          return [
            own ? own.metrics['recall@10']!.toFixed(4) : '',
            change ? changeOf(change) : '',
            change ? change.p.toFixed(3) : '',
          ];
        }),
      ]),
    ),
  ];
}

/** How alike the clients' updates were, and from how many of them a mixture is, by round. */
async function mixingLines(methods: readonly ComparedMethod[]): Promise<string[]> {
  const compared: string[][] = [];
  for (const { method, runs } of methods.filter(({ bytes }) => bytes)) {
    const files = await Promise.all(runs.map(({ directory }) => readRunFiles(directory)));
    const byRound = Map.groupBy(
      files.flatMap(({ rounds }) => rounds.map(mixingResult)),
      ({ round }) => round,
    );
    const cells = [...byRound.values()].map((seeds) => {
      const of = (value: (one: MixingResult) => number | undefined, digits: number) => {
        const values = seeds.flatMap((one) => value(one) ?? []);
        return values.length === 0
          ? '-'
          : (values.reduce((sum, one) => sum + one, 0) / values.length).toFixed(digits);
      };
      const cosines = seeds.some(({ cosineMeans }) => cosineMeans)
        ? `${of((one) => one.cosineMeans?.within, 2)}, ${of((one) => one.cosineMeans?.across, 2)}`
        : of(({ cosine }) => cosine, 2);
      return `${cosines}; ${of(({ effectiveClients }) => effectiveClients, 1)}`;
    });
    if (cells.some((cell) => !cell.startsWith('-'))) compared.push([`\`${method}\``, ...cells]);
  }
  if (compared.length === 0) return [];
  const rounds = Math.max(...compared.map(({ length }) => length)) - 1;
  const header = ['by round', ...Array.from({ length: rounds }, (_, i) => `${i + 1}`)];
  return [
    '',
    line(header),
    line(header.map(() => '---')),
    ...compared.map(line),
    '',
    'Mean cosine of two clients (of one group, then of different ones, where there are groups); from how many clients a mixture is in effect. Means over seeds.',
  ];
}

/** What each client's own statistics make of its R@10. */
function injectionLines(methods: readonly ComparedMethod[]): string[] {
  const found = injectedClients(methods);
  if (found.length === 0) return [];
  const header = ['injection, by client', 'seed', 'client', 'users', 'gamma', 'R@10 without', 'with'];
  return [
    '',
    line(header),
    line(header.map(() => '---')),
    ...found.map(({ method, seed, client, testUsers, gamma, recall, before }) =>
      line([
        `\`${method}\``,
        ...[seed, client, testUsers, gamma].map(String),
        before === undefined ? '' : before.toFixed(4),
        recall.toFixed(4),
      ]),
    ),
  ];
}

function row({ method, metrics, deviations, against, spread, bytes, seconds }: ComparedMethod): string[] {
  const change = against?.['recall@10'];
  return [
    `\`${method}\``,
    ...comparedMetrics.map((name) => {
      const deviation = deviations[name];
      const value = metrics[name];
      if (value === undefined) return '';
      return `${value.toFixed(4)}${deviation === undefined ? '' : ` ± ${deviation.toFixed(4)}`}`;
    }),
    change ? changeOf(change) : '',
    change ? change.p.toFixed(3) : '',
    spread ? spread.deviation.toFixed(4) : '',
    spread ? spread.worst.toFixed(4) : '',
    bytes === undefined ? '' : (bytes / 2 ** 20).toFixed(1),
    seconds === undefined ? '' : seconds.toFixed(0),
  ];
}

/** As a share of the baseline; absolute where a resample of that has no hit. */
function changeOf({ difference, relative }: NonNullable<ComparedMethod['against']>[string]): string {
  if (relative) return `${percent(relative.mean)} (${percent(relative.low)} to ${percent(relative.high)})`;
  const [mean, low, high] = [difference.mean, difference.low, difference.high].map((x) => x.toFixed(4));
  return `absolute ${mean} (${low} to ${high})`;
}

function percent(share: number): string {
  return `${share >= 0 ? '+' : '-'}${Math.abs(100 * share).toFixed(1)} %`;
}

/** What is significant and what is not; and what is not there. */
function sentences(methods: readonly ComparedMethod[], baseline: string): string {
  const compared = methods.flatMap(({ method, against }) =>
    against?.['recall@10'] ? [{ method: `\`${method}\``, ...against['recall@10'] }] : [],
  );
  const named = (list: readonly { readonly method: string }[]) =>
    list.map(({ method }) => method).join(', ') || 'none';
  const above = compared.filter(({ p, difference }) => p < 0.05 && difference.mean > 0);
  const below = compared.filter(({ p, difference }) => p < 0.05 && difference.mean < 0);
  const neither = compared.filter(({ p }) => p >= 0.05);
  const incomplete = methods.flatMap(({ method, incomplete }) =>
    incomplete.map(({ seed }) => `\`${method}\` with seed ${seed}`),
  );
  return [
    `R@10 above \`${baseline}\` with p < 0.05: ${named(above)}; below: ${named(below)}; not told apart: ${named(neither)} (each against the baseline alone, not corrected for their number).`,
    ...(incomplete.length > 0 ? [`Not complete, and counted in nothing: ${incomplete.join(', ')}.`] : []),
  ].join(' ');
}
