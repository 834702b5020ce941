// The end of a run: clients test what they trained, and what they found is the run's result.
import type { RunStore } from '@fellrec/federation';
import type { NamedTensors } from '@fellrec/graph';
import type { RemoteClient, TestResult } from '@fellrec/network';
import { spread } from '@fellrec/recsys';
import type { Config } from '../config.ts';
import type { ItemTables } from '../item-tables.ts';
import { mixingResult } from '../mixing.ts';
import { shownMetrics } from '../table.ts';
import { type ClientResult, type GroupResult, type RunResult, secondsOf } from '../train.ts';

interface Tested {
  readonly client: RemoteClient;
  readonly bestRound: number | undefined;
  readonly metrics: Readonly<Record<string, number>>;
  readonly users: number;
  readonly truncated: number;
  /** Why there are no metrics, where it did not answer. */
  readonly missing?: string | undefined;
}

interface TestOptions {
  readonly clients: readonly RemoteClient[];
  readonly store: RunStore;
  readonly tables: ItemTables;
  /** What a client without a best round tests. */
  readonly initial: NamedTensors;
  /** After which a client that has not answered, or failed, has no metrics (default: all must answer). */
  readonly deadlineSeconds?: number;
  /** With why there are no metrics, where there are none. */
  readonly onTested: (client: string, missing: string | undefined) => void;
}

/** Whether a client has a part in what becomes of a tensor. */
export function hasPart({ holds }: RemoteClient, tensor: string): boolean {
  return holds?.(tensor) ?? true;
}

/** Each client's best parameters on its own test users. */
export async function test({
  clients,
  store,
  tables,
  initial,
  deadlineSeconds,
  onTested,
}: TestOptions): Promise<Tested[]> {
  return Promise.all(
    clients.map(async (client): Promise<Tested> => {
      const best = await store.best(client.name);
      const parameters = best?.parameters ?? new Map([...initial].filter(([name]) => hasPart(client, name)));
      const items = best && (await tables.of(client.name, best.round + 1));
      const context = {
        round: best?.round ?? 0,
        ...(items && { items }),
        // More than 31 bits of milliseconds would be no time at all.
        ...(deadlineSeconds !== undefined && {
          signal: AbortSignal.timeout(Math.min(1000 * deadlineSeconds, 2 ** 31 - 1)),
        }),
      };
      let missing: string | undefined;
      const found = await tested(client, parameters, context).catch((error: Error) => {
        if (deadlineSeconds === undefined) throw error;
        missing = error.message;
        return { metrics: {}, users: 0, truncated: 0 };
      });
      onTested(client.name, missing);
      return { client, bestRound: best?.round, ...found, missing };
    }),
  );
}

/** @throws if a metric that a result has is not there */
async function tested(
  client: RemoteClient,
  parameters: NamedTensors,
  context: Parameters<RemoteClient['test']>[1],
): Promise<TestResult> {
  const found = await client.test(parameters, context);
  const missing = Object.keys(shownMetrics).filter((name) => found.metrics[name] === undefined);
  if (found.users > 0 && missing.length > 0)
    throw new Error(
      `serve: ${client.name} tested without ${missing.join(', ')}; is it of another version? Go on with --resume once it has this one`,
    );
  return found;
}

/** `started`: when the test began. */
export async function resultOf(
  config: Config,
  store: RunStore,
  tested: readonly Tested[],
  started: number,
): Promise<RunResult> {
  const history = await store.history();
  const clients = tested.map(({ client, bestRound, metrics, users, missing, truncated: _ }): ClientResult => {
    const losses = history.flatMap(({ losses }) => losses[client.name] ?? []);
    return {
      client: client.name,
      trainSamples: client.samples,
      testUsers: users,
      ...(losses.length > 0 && { firstLoss: losses[0]!, lastLoss: losses.at(-1)! }),
      ...(bestRound !== undefined && { bestRound: bestRound + 1 }),
      truncated: 0,
      ...(missing !== undefined && { missing }),
      metrics,
    };
  });
  const measured = clients.filter(({ testUsers }) => testUsers > 0);
  const silent = tested.flatMap(({ client, missing }) => (missing ? [`${client.name} (${missing})`] : []));
  if (measured.length === 0)
    throw new Error(
      silent.length > 0
        ? `serve: nobody tested: ${silent.join(', ')}; the rounds are safe, go on with --resume`
        : 'serve: no client has a test user; there is nothing to evaluate',
    );
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
    ranking: config.ranking,
    pooled: overUsers(measured).metrics,
    spread: spread('recall@10', new Map(measured.map(({ client, metrics }) => [client, metrics]))),
    floors: {},
    ...(groups.length > 0 && { groups }),
    mixing: history.map(mixingResult),
    truncatedTests: tested.reduce((n, { truncated }) => n + truncated, 0),
    seconds: secondsOf(history) + (performance.now() - started) / 1000,
  };
}

/** As over all of their users. */
function overUsers(clients: readonly ClientResult[]): Pick<GroupResult, 'testUsers' | 'metrics'> {
  const users = clients.reduce((sum, { testUsers }) => sum + testUsers, 0);
  const mean = (metric: string) =>
    clients.reduce((sum, { testUsers, metrics }) => sum + (testUsers / users) * metrics[metric]!, 0);
  const names = Object.keys(clients[0]!.metrics).filter((name) =>
    clients.every(({ metrics }) => metrics[name] !== undefined),
  );
  return { testUsers: users, metrics: Object.fromEntries(names.map((name) => [name, mean(name)])) };
}
