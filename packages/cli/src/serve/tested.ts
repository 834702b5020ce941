// The end of a run: clients test what they trained, and what they found is the run's result.
import type { RunStore } from '@fellrec/federation';
import type { NamedTensors } from '@fellrec/graph';
import type { RemoteClient } from '@fellrec/network';
import { spread } from '@fellrec/recsys';
import type { Config } from '../config.ts';
import type { ItemTables } from '../item-tables.ts';
import { mixingResult } from '../mixing.ts';
import type { ClientResult, GroupResult, RunResult } from '../train.ts';
import type { ServeOptions } from './options.ts';

interface Tested {
  readonly client: RemoteClient;
  readonly bestRound: number | undefined;
  readonly metrics: Readonly<Record<string, number>>;
  readonly users: number;
  readonly truncated: number;
}

/** Each client's best parameters on its own test users; one that does not answer in time has no metrics. */
export async function test(
  clients: readonly RemoteClient[],
  store: RunStore,
  tables: ItemTables,
  initial: NamedTensors,
  held: readonly ((name: string) => boolean)[],
  { deadlineSeconds }: ServeOptions,
  mayMiss: boolean,
  onTested: () => void,
): Promise<Tested[]> {
  return Promise.all(
    clients.map(async (client, c): Promise<Tested> => {
      const best = await store.best(client.name);
      const parameters = best?.parameters ?? new Map([...initial].filter(([name]) => held[c]!(name)));
      const items = best && (await tables.of(client.name, best.round + 1));
      const context = {
        round: best?.round ?? 0,
        ...(items && { items }),
        ...(mayMiss && { signal: AbortSignal.timeout(1000 * deadlineSeconds) }),
      };
      const found = await client.test(parameters, context).catch((error: unknown) => {
        if (!mayMiss) throw error;
        return { metrics: {}, users: 0, truncated: 0 };
      });
      onTested();
      return { client, bestRound: best?.round, ...found };
    }),
  );
}

export async function resultOf(
  config: Config,
  store: RunStore,
  tested: readonly Tested[],
  started: number,
): Promise<RunResult> {
  const history = await store.history();
  const clients = tested.map(({ client, bestRound, metrics, users, truncated: _ }): ClientResult => {
    const losses = history.flatMap(({ losses }) => losses[client.name] ?? []);
    return {
      client: client.name,
      trainSamples: client.samples,
      testUsers: users,
      ...(losses.length > 0 && { firstLoss: losses[0]!, lastLoss: losses.at(-1)! }),
      ...(bestRound !== undefined && { bestRound: bestRound + 1 }),
      truncated: 0,
      metrics,
    };
  });
  const measured = clients.filter(({ testUsers }) => testUsers > 0);
  if (measured.length === 0)
    throw new Error('serve: no client has a test user; there is nothing to evaluate');
  const groupOf = new Map(tested.map(({ client }) => [client.name, client.facts.group]));
  const groups = [...Map.groupBy(measured, ({ client }) => groupOf.get(client))].flatMap(([group, own]) =>
    group === undefined ? [] : [{ group, ...overUsers(own), floors: {} }],
  );
  return {
    name: config.name,
    strategy: config.federation.strategy,
    directory: store.directory,
    rounds: history.length,
    clients,
    pooled: overUsers(measured).metrics,
    spread: spread('recall@10', new Map(measured.map(({ client, metrics }) => [client, metrics]))),
    floors: {},
    ...(groups.length > 0 && { groups }),
    mixing: history.map(mixingResult),
    truncatedTests: tested.reduce((n, { truncated }) => n + truncated, 0),
    seconds: (performance.now() - started) / 1000,
  };
}

/** As over all of their users. */
function overUsers(clients: readonly ClientResult[]): Pick<GroupResult, 'testUsers' | 'metrics'> {
  const users = clients.reduce((sum, { testUsers }) => sum + testUsers, 0);
  const mean = (metric: string) =>
    clients.reduce((sum, { testUsers, metrics }) => sum + (testUsers / users) * metrics[metric]!, 0);
  const names = Object.keys(clients[0]!.metrics);
  return { testUsers: users, metrics: Object.fromEntries(names.map((name) => [name, mean(name)])) };
}
