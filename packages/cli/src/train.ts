// A run of a configuration: its rounds, then what each client's best adapter does for its test users.
import { join } from 'node:path';
import {
  createRun,
  federate,
  openRun,
  type RoundRecord,
  type RunStore,
  writeWhole,
} from '@fellrec/federation';
import { rowProducts } from '@fellrec/graph';
import {
  type Floor,
  floorMetrics,
  floors,
  type Metrics,
  meanMetrics,
  type Spread,
  spread,
} from '@fellrec/recsys';
import { type UserMetrics, writeUserMetrics } from './compare/user-metrics.ts';
import { type Config, ConfigError } from './config.ts';
import {
  type ClientData,
  type Experiment,
  type Group,
  initialParameters,
  inProcessClients,
  openExperiment,
  rankerOf,
  runtimeOf,
  startOf,
  storeFormat,
} from './experiment.ts';
import { groupConfigs, userKey } from './groups.ts';
import { itemTables } from './item-tables.ts';
import { type MixingResult, mixingResult } from './mixing.ts';
import { type Progress, silent } from './progress.ts';
import { type Asked, withRankingOptions } from './ranking.ts';
import { assertTrained, openStored, readPartition, readRun, reopenRun, runDirectory } from './stored-run.ts';
import { federationStart, recommendingWith, strategyOf } from './strategy.ts';

export interface ClientResult {
  readonly client: string;
  /** Undefined where only the client knows. */
  readonly users?: number;
  readonly trainSamples: number;
  readonly testUsers: number;
  /** Training loss of the first and the last round; undefined for a client that took no part. */
  readonly firstLoss?: number;
  readonly lastLoss?: number;
  /** Round (from 1) of the adapter that was evaluated. */
  readonly bestRound?: number;
  /** Samples whose oldest history was dropped to fit the context. */
  readonly truncated: number;
  /** How much what is injected into the ranking counts, where something is. */
  readonly gamma?: number;
  /** Why there are no metrics of a client elsewhere that has test users; the result is without these. */
  readonly missing?: string;
  /** Empty without test users. */
  readonly metrics: Metrics;
}

/** Users with one catalogue. What only clients elsewhere know is not there. */
export interface GroupResult {
  /** None where all clients are one group. */
  readonly group?: string;
  /** Of the data set. */
  readonly data?: string;
  readonly items?: number;
  readonly users?: number;
  readonly testUsers: number;
  /** Mean over its test users. */
  readonly metrics: Metrics;
  readonly floors: Readonly<Partial<Record<Floor, Metrics>>>;
}

export interface RunResult {
  readonly name: string;
  readonly strategy: string;
  readonly directory: string;
  readonly rounds: number;
  readonly clients: readonly ClientResult[];
  /** How it was ranked. */
  readonly ranking: Config['ranking'];
  /** Mean over all test users. */
  readonly pooled: Metrics;
  /** Of recall@10 over clients with test users. */
  readonly spread: Spread;
  /** Of the data in this process; none where it is with the clients. */
  readonly floors: Readonly<Partial<Record<Floor, Metrics>>>;
  /** One behind the other; none where clients elsewhere say no group. */
  readonly groups?: readonly GroupResult[];
  readonly popularityCosine?: number;
  /** By round, from 1: what mixing came to. */
  readonly mixing: readonly MixingResult[];
  /** Test users whose oldest history was dropped to fit the context. */
  readonly truncatedTests: number;
  /** Of all rounds, also those of earlier calls, and of the test; of the test alone where a run is evaluated again. */
  readonly seconds: number;
}

export interface TrainOptions {
  readonly resume?: boolean;
  readonly force?: boolean;
  readonly progress?: Progress;
  /** Opened before, with this configuration's data, model and partition: strategies compared share it. */
  readonly experiment?: Experiment;
}

/** Trains, or goes on with `resume`, then evaluates each client's best adapter on its own test users. */
export async function train(
  config: Config,
  { resume, force, progress = silent, experiment: given }: TrainOptions = {},
): Promise<RunResult> {
  const strategy = strategyOf(config);
  if (config.federation.strategy === 'centralized' && groupConfigs(config).length > 1)
    throw new ConfigError(
      'centralized: the groups have catalogues of their own, which one client cannot hold; take fedavg',
    );
  const directory = runDirectory(config);
  const known = resume ? await readPartition(directory) : undefined;
  const experiment = given ?? (await openExperiment(config, progress.report, known));
  assertSamples(experiment);
  const store = await openStore(experiment, { directory, resume, force });
  const products = rowProducts(runtimeOf(config));
  try {
    const state = await store.state();
    const initial = await initialParameters(experiment);
    const tables = itemTables(config, store, initial);
    const events = federate({
      clients: inProcessClients(experiment, tables),
      strategy,
      initial: federationStart(config, initial),
      rounds: config.federation.rounds,
      patience: config.federation.patience,
      ...(state && { resume: state }),
      products,
      spill: { directory },
    });
    for await (const event of events) {
      await store.record(event);
      progress.event(event);
    }
    const { result: evaluated, users } = await evaluateRun(experiment, { store, progress });
    const result = { ...evaluated, seconds: secondsOf(await store.history()) + evaluated.seconds };
    await writeUserMetrics(directory, users);
    await writeResult(result);
    return result;
  } finally {
    await store.close();
    await products.dispose();
    if (!given) await experiment.dispose();
  }
}

/** @throws before anything is trained if rounds could not be judged, or the run not be tested. */
function assertSamples({ clients }: Experiment): void {
  const learning = clients.filter(({ train }) => train.length > 0);
  const missing = [
    learning.length === 0 && 'training samples',
    learning.every(({ validation }) => validation.length === 0) &&
      'validation samples beside training samples',
    clients.every(({ test }) => test.length === 0) && 'test samples',
  ].find((one) => one !== false);
  if (missing)
    throw new Error(
      `train: no client has ${missing}: histories are too short for them, or a point in time cuts them off; import the data with another --k-core or --split`,
    );
}

/** What rounds took, of all calls that a run took. */
export function secondsOf(history: readonly RoundRecord[]): number {
  return history.reduce((sum, { seconds }) => sum + seconds.total, 0);
}

export async function writeResult(result: RunResult): Promise<void> {
  await writeWhole(join(result.directory, 'result.json'), `${JSON.stringify(result, undefined, 2)}\n`);
}

/** Evaluates a finished run again, for instance on more test users. */
export async function evaluate(
  directory: string,
  override: (config: Config) => Config,
  progress: Progress = silent,
): Promise<RunResult> {
  const run = await readRun(directory);
  await assertTrained(directory, progress);
  const experiment = await openStored(directory, { ...run, config: override(run.config) }, progress.report);
  try {
    const store = await openRun(directory, storeFormat(experiment));
    try {
      return (await evaluateRun(experiment, { store, progress })).result;
    } finally {
      await store.close();
    }
  } finally {
    await experiment.dispose();
  }
}

/** A client, and what it recommends with. */
export interface TrainedClient extends Asked {
  readonly client: ClientData;
  /** From 0; undefined if it has what it began with. */
  readonly bestRound: number | undefined;
}

/** Of all clients of a run, in their order. */
export async function* trainedClients(
  experiment: Experiment,
  store: RunStore,
): AsyncGenerator<TrainedClient> {
  const { config, clients } = experiment;
  const initial = await initialParameters(experiment);
  const tables = itemTables(config, store, initial);
  for (const client of clients) {
    const best = await store.best(client.name);
    yield {
      client,
      bestRound: best?.round,
      parameters: best ? recommendingWith(config, best.parameters) : startOf(client, initial),
      items: best && (await tables.of(client.name, best.round + 1)),
    };
  }
}

async function evaluateRun(
  experiment: Experiment,
  { store, progress }: { store: RunStore; progress: Progress },
): Promise<{ readonly result: RunResult; readonly users: UserMetrics }> {
  const started = performance.now();
  const { config, clients } = experiment;
  const history = await store.history();
  const total = clients.reduce((n, { test }) => n + test.length, 0);
  const users = new Map<string, Metrics>();
  let truncatedTests = 0;
  const results: ClientResult[] = [];
  const perClient = new Map<string, Metrics>();
  for await (const { client, bestRound, ...asked } of trainedClients(experiment, store)) {
    const { name, group, users: own, train: samples, test, truncated } = client;
    const before = users.size;
    const found =
      test.length === 0
        ? undefined
        : await withRankingOptions(config, rankerOf(client, progress.report), asked, async (options) => ({
            ...(await client.recommender.evaluate(test, asked.parameters, {
              ...options,
              onProgress: (done) => progress.report('test users', before + done, total),
            })),
            gamma: options.injection?.gamma,
          }));
    const { metrics: each, truncated: shortened, gamma } = found ?? { metrics: [], truncated: 0 };
    for (const [i, { user }] of test.entries()) users.set(userKey(group.name, user), each[i]!);
    truncatedTests += shortened;
    const metrics = meanMetrics(each);
    if (each.length > 0) perClient.set(name, metrics);
    const losses = history.flatMap((round) => (round.losses[name] === undefined ? [] : [round.losses[name]]));
    results.push({
      client: name,
      users: own.length,
      trainSamples: samples.length,
      testUsers: test.length,
      ...(losses.length > 0 && { firstLoss: losses[0]!, lastLoss: losses.at(-1)! }),
      ...(bestRound !== undefined && { bestRound: bestRound + 1 }),
      truncated,
      ...(gamma !== undefined && { gamma }),
      metrics,
    });
  }
  const groups = experiment.groups.map((group) => groupResult(group, experiment, users));
  if (perClient.size === 0) throw new Error('train: no client has a test user; there is nothing to evaluate');
  const result = {
    name: config.name,
    strategy: config.federation.strategy,
    directory: store.directory,
    rounds: history.length,
    clients: results,
    ranking: config.ranking,
    pooled: meanMetrics([...users.values()]),
    truncatedTests,
    spread: spread('recall@10', perClient),
    floors: floorsOf((kind) => meanMetrics(groups.flatMap(({ floors }) => floors[kind]))),
    groups: groups.map(({ floors: ofUsers, ...group }) => ({
      ...group,
      floors: floorsOf((kind) => meanMetrics(ofUsers[kind])),
    })),
    popularityCosine: experiment.partition.popularityCosine,
    mixing: history.map(mixingResult),
    seconds: (performance.now() - started) / 1000,
  };
  return { result, users };
}

const floorsOf = <T>(of: (floor: Floor) => T) =>
  Object.fromEntries(floors.map((floor) => [floor, of(floor)])) as Record<Floor, T>;

/** What a group's users got, and each of them from the floors. */
function groupResult({ name, dataset }: Group, { clients, config }: Experiment, users: UserMetrics) {
  const test = clients.filter(({ group }) => group.name === name).flatMap((client) => client.test);
  const items = dataset.catalogue.items.length;
  const {
    seed,
    evaluation: { maskHistory },
  } = config;
  return {
    ...(name !== undefined && { group: name }),
    data: dataset.name,
    items,
    users: dataset.users.length,
    testUsers: test.length,
    metrics: meanMetrics(test.map(({ user }) => users.get(userKey(name, user))!)),
    floors: floorsOf((floor) => floorMetrics(floor, test, dataset.users, items, { seed, maskHistory })),
  };
}

async function openStore(
  experiment: Experiment,
  o: { directory: string; resume: boolean | undefined; force: boolean | undefined },
): Promise<RunStore> {
  const { config, partition, data, modelHash } = experiment;
  const format = storeFormat(experiment);
  const record = { ...config, dataset: data, modelHash };
  if (!o.resume)
    return createRun(o.directory, { config: record, clients: partition, force: o.force ?? false }, format);
  return reopenRun(o.directory, record, format);
}
