// A run round by round: losses, warmth, and who took what from whom.
import { type MixingResult, mixingResult } from '../mixing.ts';
import { type Figure, figure } from './chart.ts';
import { curves } from './curves.ts';
import { choices, heatMap } from './heat.ts';
import { type Html, html, htmlTable } from './html.ts';
import { maxCells, maxHeatClients, maxTableClients } from './limits.ts';
import { count, fixed } from './numbers.ts';
import type { Section } from './page.ts';
import type { RoundFile, RunFiles } from './run-files.ts';

type ByRound = readonly (number | undefined)[];

export async function lossSection({ partition, rounds }: RunFiles): Promise<Section | undefined> {
  const last = rounds.at(-1);
  if (!last) return undefined;
  const clients = partition.clients.map(({ name }) => name);
  const of = (value: (round: RoundFile, client: string) => number | undefined) =>
    new Map(clients.map((client) => [client, rounds.map((round) => value(round, client))]));
  const training = of(({ losses }, client) => losses[client]);
  // One without validation samples goes by the others': it has no loss of its own.
  const validation = of(({ validation }, client) => {
    const own = validation[client];
    return own && own.samples > 0 ? own.loss : undefined;
  });
  const best = new Map(Object.entries(last.best).map(([client, { round }]) => [client, round]));
  const together = rounds.map(({ validationLoss }) => validationLoss);
  const figures = [
    curves({
      title: 'Training loss',
      caption: "Mean over a client's training samples of a round, before mixing.",
      unit: 'training loss',
      clients: training,
    }),
    curves({
      title: 'Validation loss',
      caption:
        "On each client's validation samples, after mixing. Rings mark each client's best round, whose parameters are the ones that are evaluated.",
      unit: 'validation loss',
      clients: validation,
      best,
      together: { name: 'all validation samples', values: together },
    }),
  ];
  return {
    title: 'Losses',
    body: html`<p>The lowest validation loss over all clients is ${fixed(last.bestOverall.loss, 4)}, of round ${last.bestOverall.round + 1} of ${rounds.length}.</p>
${await drawn(figures)}
${roundTable('Training losses', training)}
${roundTable('Validation losses; ★ marks the best round', validation, best, together)}
`,
  };
}

export async function warmthSection({ partition, rounds }: RunFiles): Promise<Section | undefined> {
  if (!rounds.some(({ mixing }) => mixing.warmth)) return undefined;
  const warmth = new Map(
    partition.clients.map(({ name }) => [
      name,
      rounds.map(({ clients, mixing }) => mixing.warmth?.[clients.indexOf(name)]),
    ]),
  );
  return {
    title: 'Warmth',
    body: html`${await drawn([
      curves({
        title: 'Warmth over rounds',
        caption: `How much a client listens to the others: 0 to none, 1 as much as its similarity to them says. Clients with higher losses warm up later.${rounds.some(({ mixing }) => mixing.chosen) ? ' Here it is that of the candidate which has it, whichever a client took.' : ''}`,
        unit: 'warmth',
        clients: warmth,
        domain: [0, 1],
      }),
    ])}
${roundTable('Warmth', warmth)}
`,
  };
}

/** None with one client. `group` is different for each run on the page. */
export function mixingSection({ partition, rounds }: RunFiles, group: string): Section | undefined {
  const last = rounds.at(-1);
  if (!last || partition.clients.length === 1) return undefined;
  const title = 'Similarity and mixing';
  const results = rounds.map(mixingResult);
  const effective = new Map(
    partition.clients.map(({ name }) => [
      name,
      results.map(({ clients }) => clients[name]?.effectiveClients),
    ]),
  );
  const mean = html`<p>${ownWeights(rounds)}</p>
${mixingTable(results, last.clients.length)}${roundTable('Clients in effect, of each client', effective)}`;
  const clients = partition.clients.length;
  if (clients > maxHeatClients)
    return {
      title,
      body: html`${mean}<p>Matrices of ${count(clients)} clients are too large to be read here; those of each round are in rounds/0000/round.json and so on.</p>\n`,
    };
  const cells = rounds.reduce(
    (sum, { clients: present, mixing }) =>
      sum + present.length ** 2 * (1 + Number(!!mixing.similarity) + Number(!!mixing.cosines)),
    0,
  );
  const every = Math.ceil(cells / maxCells);
  const shown = rounds.filter((record, i) => i % every === 0 || record === last);
  const largest = Math.max(...rounds.map(({ mixing }) => Math.max(...mixing.matrix.flat())));
  const panel = (record: RoundFile) => ({
    label: `${record.round + 1}${record.round === last.bestOverall.round ? ' (best)' : ''}`,
    body: matrices(record, largest),
  });
  return {
    title,
    body: html`${mean}${every > 1 ? html`<p>Of ${rounds.length} rounds, every ${ordinal(every)} and the last are shown.</p>\n` : undefined}
${choices('Round', group, shown.map(panel), shown.length - 1)}`,
  };
}

/** What each round's mixing came to. */
function mixingTable(results: readonly MixingResult[], clients: number): Html {
  const knowsGroups = results.some(({ cosineMeans }) => cosineMeans);
  const compares = !knowsGroups && results.some(({ cosine }) => cosine !== undefined);
  const chooses = results.some(({ chosen }) => chosen);
  return htmlTable({
    caption: `By round. Clients in effect: 1 / sum of a row's squared weights, mean over clients; 1 keeps its own, ${clients} takes all alike.${knowsGroups ? ' Cosines: means over pairs of clients of one group, and of two.' : ''}`,
    header: [
      'round',
      'clients in effect',
      ...(knowsGroups ? ['cosine within groups', 'cosine across groups'] : []),
      ...(compares ? ['mean cosine'] : []),
      ...(chooses ? ['chosen by clients', 'seconds of choosing'] : []),
    ],
    rows: results.map(({ round, effectiveClients, cosine, cosineMeans, chosen, candidateSeconds }) => [
      String(round),
      fixed(effectiveClients, 2),
      ...(knowsGroups ? [fixed(cosineMeans?.within, 3), fixed(cosineMeans?.across, 3)] : []),
      ...(compares ? [fixed(cosine, 3)] : []),
      ...(chooses
        ? [
            Object.entries(chosen ?? {})
              .map(([name, clients]) => `${name} ${clients}`)
              .join(', '),
            fixed(candidateSeconds, 1),
          ]
        : []),
    ]),
  });
}

function matrices({ clients, absent, mixing }: RoundFile, largest: number): Html {
  return html`<div class="pair">
${
  mixing.cosines &&
  heatMap({
    caption: 'Cosines between clients, -1 to 1; none below 0 is shaded',
    names: clients,
    values: mixing.cosines,
    largest: 1,
  })
}${
  mixing.similarity &&
  heatMap({
    caption: 'Similarity between clients, 0 to 1',
    names: clients,
    values: mixing.similarity,
    largest: 1,
  })
}${heatMap({
  caption: "Mixing: a row's client takes so much of each column's parameters",
  names: clients,
  values: mixing.matrix,
  largest,
})}</div>
${absent.length > 0 ? html`<p>Absent, with the parameters they had: ${absent.join(', ')}.</p>\n` : undefined}`;
}

/** How much clients keep of their own parameters: the diagonal, in the first and the last round. */
function ownWeights(rounds: readonly RoundFile[]): string {
  const own = ({ mixing: { matrix } }: RoundFile) => {
    const weights = matrix.map((row, i) => row[i]!);
    const mean = weights.reduce((sum, weight) => sum + weight, 0) / weights.length;
    return `${fixed(mean, 3)} of their own parameters on average (${fixed(Math.min(...weights), 3)} to ${fixed(Math.max(...weights), 3)})`;
  };
  const [first, last] = [rounds[0]!, rounds.at(-1)!];
  if (first === last) return `Clients keep ${own(first)}.`;
  return `In the first round clients keep ${own(first)}, in the last ${own(last)}.`;
}

/** A row a client and a column a round; of very many clients, what their values lie between. */
function roundTable(
  caption: string,
  clients: ReadonlyMap<string, ByRound>,
  best?: ReadonlyMap<string, number>,
  together?: readonly number[],
): Html {
  const rounds = Math.max(...[...clients.values()].map(({ length }) => length));
  const columns = Array.from({ length: rounds }, (_, i) => i);
  const rows =
    clients.size > maxTableClients
      ? between(clients, columns)
      : [...clients].map(([client, values]) => [
          client,
          ...columns.map((i) => `${fixed(values[i], 4)}${best?.get(client) === i ? ' ★' : ''}`),
        ]);
  return htmlTable({
    caption,
    header: ['client', ...columns.map((i) => `round ${i + 1}`)],
    rows: together ? [...rows, ['all samples', ...together.map((value) => fixed(value, 4))]] : rows,
  });
}

function between(clients: ReadonlyMap<string, ByRound>, columns: readonly number[]): string[][] {
  const sorted = columns.map((i) =>
    [...clients.values()].flatMap((values) => values[i] ?? []).sort((a, b) => a - b),
  );
  const at = (share: number) =>
    sorted.map((values) => fixed(values[Math.round(share * (values.length - 1))], 4));
  return [
    ['lowest', ...at(0)],
    ['lower quarter', ...at(0.25)],
    ['median', ...at(0.5)],
    ['upper quarter', ...at(0.75)],
    ['highest', ...at(1)],
  ];
}

async function drawn(figures: readonly (Figure | undefined)[]): Promise<Html[]> {
  return Promise.all(figures.filter((one) => one !== undefined).map(figure));
}

function ordinal(n: number): string {
  return { 2: 'second', 3: 'third' }[n] ?? `${n}th`;
}
