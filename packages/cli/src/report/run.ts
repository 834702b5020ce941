// A run's sections of a report. A part that a run has nothing to say in is left out.
import { shownMetrics } from '../table.ts';
import { cells, clientSection } from './clients.ts';
import { heatMap } from './heat.ts';
import { definitionList, type Html, html, htmlTable } from './html.ts';
import { maxHeatClients, maxTableClients } from './limits.ts';
import { count, duration, fixed, missing } from './numbers.ts';
import type { Section } from './page.ts';
import { lossSection, mixingSection, warmthSection } from './rounds.ts';
import type { ResultFile, RunFiles } from './run-files.ts';

/** `group` names the run's controls: different for each run of a page. */
export async function runSections(run: RunFiles, group: string): Promise<Section[]> {
  const sections = [
    summarySection(run),
    partitionSection(run),
    await lossSection(run),
    await warmthSection(run),
    mixingSection(run, group),
    await clientSection(run),
    configurationSection(run),
  ];
  return sections.filter((section) => section !== undefined);
}

function summarySection(run: RunFiles): Section {
  const { config, partition, rounds, result, missing: lacks } = run;
  const { federation, model, recommender, seed } = config;
  const wanted = federation.rounds;
  const stopped = result && rounds.length < wanted ? ': stopped early' : '';
  return {
    title: 'Summary',
    body: html`${lacks === undefined ? undefined : html`<p class="finding"><strong>Not complete:</strong> ${lacks}.</p>\n`}${definitionList(
      [
        ['method', federation.strategy],
        ['data set', config.dataset?.name ?? 'with the clients'],
        ['recommender', recommender],
        ['model', model.path],
        ['clients', `${count(partition.clients.length)} (${partition.method})`],
        ['rounds', `${rounds.length} of ${wanted}${stopped}`],
        ['seed', String(seed)],
        ['took', duration(result?.seconds ?? rounds.reduce((sum, { seconds }) => sum + seconds.total, 0))],
        ['folder', run.directory],
      ],
    )}
${
  result &&
  htmlTable({
    caption: `${testedUsers(result)}; floors are rankings that have learned nothing`,
    header: ['', 'test users', ...Object.values(shownMetrics)],
    rows: [
      [
        federation.strategy,
        count(result.clients.reduce((sum, { testUsers }) => sum + testUsers, 0)),
        ...cells(result.pooled),
      ],
      ...Object.entries(result.floors).map(([floor, metrics]) => [`floor: ${floor}`, '', ...cells(metrics)]),
    ],
  })
}
${result?.groups && groupTable(result.groups)}`,
  };
}

function testedUsers({ clients }: ResultFile): string {
  const untested = clients.flatMap(({ client, missing }) =>
    missing === undefined ? [] : [`${client} (${missing})`],
  );
  return untested.length === 0
    ? 'Over all test users'
    : `Over the test users of all but ${untested.join(', ')}`;
}

/** Data sets; of several, also what came of each, which ranks its own items only. */
function groupTable(groups: NonNullable<ResultFile['groups']>): Html {
  const facts = ['items', 'users', 'test users'];
  const of = ({ items, users, testUsers }: (typeof groups)[number]) =>
    [items, users, testUsers].map((one) => (one === undefined ? missing : count(one)));
  const nameOf = ({ group, data }: (typeof groups)[number]) => group ?? data ?? missing;
  if (groups.length === 1)
    return htmlTable({
      caption: 'Data set',
      header: ['', ...facts],
      rows: groups.map((one) => [nameOf(one), ...of(one)]),
    });
  const floors = Object.keys(groups[0]!.floors);
  return htmlTable({
    caption: 'Groups, each over its own catalogue',
    header: ['', 'data set', ...facts, ...Object.values(shownMetrics), ...floors.map((one) => `R@10 ${one}`)],
    rows: groups.map((one) => [
      nameOf(one),
      one.data ?? missing,
      ...of(one),
      ...cells(one.metrics),
      ...floors.map((floor) => fixed(one.floors[floor]?.['recall@10'], 4)),
    ]),
  });
}

function partitionSection({ partition, rounds, result }: RunFiles): Section {
  const { clients, popularityCosine } = partition;
  const remote = partition.method === 'remote';
  const hasGroups = clients.some(({ group }) => group !== undefined);
  const groupOf = ({ group = '' }: { readonly group?: string | undefined }) => (hasGroups ? [group] : []);
  const last = rounds.at(-1);
  const rows = clients.map(({ name, users, trainSamples, validationSamples, testUsers }) => {
    const found = result?.clients.find(({ client }) => client === name);
    return [
      users?.length,
      found?.trainSamples ?? trainSamples ?? last?.samples[name],
      validationSamples ?? last?.validation[name]?.samples,
      found?.missing === undefined ? (found?.testUsers ?? testUsers) : testUsers,
      remote ? undefined : found?.truncated,
    ];
  });
  const sum = (column: number) =>
    rows.reduce<number | undefined>((total, row) => {
      const value = row[column];
      return total === undefined || value === undefined ? undefined : total + value;
    }, 0);
  const shown = (value: number | undefined) => (value === undefined ? missing : count(value));
  return {
    title: 'Data and partition',
    body: html`${
      popularityCosine === undefined
        ? undefined
        : html`<p>The item popularity of two clients${hasGroups ? ' of one group' : undefined} has a mean cosine of ${fixed(popularityCosine, 2)}: 1 means that the partition says nothing.</p>
`
    }${
      result?.truncatedTests
        ? html`<p>${count(result.truncatedTests)} test prompts were longer than the context; their oldest history was dropped.</p>
`
        : undefined
    }${htmlTable({
      caption: `Clients (${partition.method}); truncated: training samples whose oldest history did not fit the context`,
      header: [
        'client',
        ...(hasGroups ? ['group'] : []),
        ...['users', 'training samples', 'validation samples', 'test users', 'truncated'],
      ],
      headings: hasGroups ? 2 : 1,
      rows: [
        ...(clients.length > maxTableClients
          ? []
          : rows.map((row, i) => [clients[i]!.name, ...groupOf(clients[i]!), ...row.map(shown)])),
        [`all ${count(clients.length)}`, ...groupOf({}), ...rows[0]!.map((_, column) => shown(sum(column)))],
      ],
    })}${likenessMaps(partition)}`,
  };
}

/** None of one client, of too many to read, and where only the clients could say. */
function likenessMaps({ clients, likeness }: RunFiles['partition']): Html | undefined {
  if (!likeness || clients.length < 2 || clients.length > maxHeatClients) return undefined;
  const names = clients.map(({ name }) => name);
  const map = (caption: string, values: readonly (readonly number[])[]) =>
    heatMap({ caption, names, values, largest: 1 });
  return html`<h3>How alike the clients' data is</h3>
<div class="pair">
${map("Cosine of the items' popularity, 0 to 1", likeness.popularityCosine)}${map('Items of both among items of either, 0 to 1', likeness.itemOverlap)}</div>
`;
}

function configurationSection({ config }: RunFiles): Section {
  return { title: 'Configuration', body: definitionList(settingsOf(config)) };
}

/** `training.learningRate`: `0.0005`; lists in one line. */
function settingsOf(value: unknown, path = ''): [string, string][] {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    return [[path, Array.isArray(value) ? value.map(String).join(', ') : String(value)]];
  return Object.entries(value).flatMap(([key, inner]) => settingsOf(inner, path ? `${path}.${key}` : key));
}
