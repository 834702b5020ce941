// From what methods did on each test user to a comparison: means, spreads, paired intervals. Pure functions.
import type { RoundRecord } from '@fellrec/federation';
import {
  type Likeness,
  type Metrics,
  meanMetrics,
  type PairedDifference,
  type Partition,
  pairedBootstrap,
} from '@fellrec/recsys';
import { userKey } from '../groups.ts';
import { shownMetrics } from '../table.ts';
import type {
  ClientSpread,
  ComparedClient,
  ComparedGroup,
  ComparedMethod,
  Comparison,
  MixingAgreement,
} from './result.ts';
import type { UserMetrics } from './user-metrics.ts';

/** What a method did with one seed. */
export interface Trial {
  readonly method: string;
  readonly seed: number;
  readonly directory: string;
  readonly data: Comparison['data'];
  /** None where no language model or encoder has a part in it. */
  readonly model?: Comparison['model'];
  /** Undefined where nothing is trained in rounds. */
  readonly run?: TrialRun;
  readonly seconds?: number;
  /** Of all clients; undefined where nothing is trained in rounds. */
  readonly trainSamples?: number;
  /** By client, where something is injected into its ranking: how much that counts. */
  readonly gammas?: Readonly<Record<string, number>>;
  /** What is missing for it to count; undefined if nothing is. */
  readonly missing?: string;
  /** Empty where something is missing. */
  readonly users: UserMetrics;
}

export interface TrialRun {
  readonly strategy: string;
  readonly partition: Pick<Partition, 'clients' | 'likeness'>;
  readonly rounds: readonly TrialRound[];
}

type TrialRound = Pick<RoundRecord, 'clients' | 'mixing' | 'validation' | 'best' | 'bytes'>;

/** The metrics that are compared. */
export const comparedMetrics = Object.keys(shownMetrics) as (keyof typeof shownMetrics)[];

/** Strategies whose weights do not look at clients: by numbers of samples, all alike, or none. */
const blind = ['fedavg', 'fedprox', 'ditto', 'uniform', 'local', 'centralized'];

/** Strategies whose clients have nothing to exchange: one trains alone, or all do. */
const exchangesNothing = ['local', 'centralized'];

/**
 * Trials of one data set and model, by method and seed. @throws if they are not of one data set, model, or partition, if a
 * seed is there twice, if the baseline is not there, or if a method has no test user in common with it.
 */
export function compared(trials: readonly Trial[], baseline: string): Comparison {
  const methods = [...Map.groupBy(trials, ({ method }) => method)];
  assertComparable(trials);
  if (!methods.some(([name]) => name === baseline))
    throw new Error(
      `compare: the baseline "${baseline}" is none of the methods: ${methods.map(([name]) => name).join(', ')}`,
    );
  const base = trials.filter(({ method }) => method === baseline);
  const model = trials.find((one) => one.model)?.model;
  return {
    data: trials[0]!.data,
    ...(model && { model }),
    seeds: [...new Set(trials.map(({ seed }) => seed))].sort((a, b) => a - b),
    baseline,
    methods: methods.map(([name, own]) => describe(name, own, base, trials)),
  };
}

function describe(
  method: string,
  trials: readonly Trial[],
  base: readonly Trial[],
  all: readonly Trial[],
): ComparedMethod {
  const complete = trials.filter(({ missing }) => missing === undefined);
  const bySeed = complete.map(({ users }) => meanMetrics([...users.values()]));
  const runs = complete.flatMap(({ run }) => run ?? []);
  const seconds = complete.flatMap((trial) => trial.seconds ?? []);
  const samples = complete.flatMap(({ trainSamples }) => trainSamples ?? []);
  const clients = complete.flatMap((trial) => clientsOf(trial, partitionOf(trial.seed, all)));
  const spread = spreadOf(clients);
  const agreement = agreementOf(runs);
  const against = base[0]?.method === method ? undefined : differences(method, complete, base);
  const groups = groupNames(all).flatMap((group) => groupOf(group, method, complete, base) ?? []);
  return {
    method,
    runs: trials.map(({ seed, directory }) => ({ seed, directory })),
    incomplete: trials.flatMap(({ seed, missing }) => (missing === undefined ? [] : [{ seed, missing }])),
    users: complete.reduce((n, { users }) => n + users.size, 0),
    ...(new Set(complete.map(({ users }) => users.size)).size === 1 && {
      usersPerSeed: complete[0]!.users.size,
    }),
    metrics: meanMetrics(bySeed),
    deviations: bySeed.length < 2 ? {} : deviationsOf(bySeed),
    clients,
    ...(groups.length > 0 && { groups }),
    ...(spread && { spread }),
    ...(agreement && { agreement }),
    ...(seconds.length > 0 && { seconds: mean(seconds) }),
    ...(samples.length > 0 && { trainSamples: mean(samples) }),
    ...(runs.length > 0 && { bytes: mean(runs.map(bytesOf)) }),
    ...(against && { against }),
  };
}

function groupNames(trials: readonly Trial[]): string[] {
  return [
    ...new Set(trials.flatMap(({ run }) => run?.partition.clients.flatMap(({ group }) => group ?? []) ?? [])),
  ];
}

/** What is said of a method, of a group's users alone; undefined where none of them was tested. */
function groupOf(
  group: string,
  method: string,
  complete: readonly Trial[],
  base: readonly Trial[],
): ComparedGroup | undefined {
  const own = (trials: readonly Trial[]) =>
    trials.map((trial) => ({ ...trial, users: within(group, trial.users) }));
  const [trials, partners] = [own(complete), own(base)];
  const tested = trials.filter(({ users }) => users.size > 0);
  if (tested.length === 0) return undefined;
  const against = base[0]?.method === method ? undefined : differences(method, tested, partners);
  return {
    group,
    users: tested.reduce((n, { users }) => n + users.size, 0),
    metrics: meanMetrics(tested.map(({ users }) => meanMetrics([...users.values()]))),
    ...(against && { against }),
  };
}

function within(group: string, users: UserMetrics): UserMetrics {
  const prefix = userKey(group, '');
  return new Map([...users].filter(([user]) => user.startsWith(prefix)));
}

/** On the users and seeds that both methods were tested on; a user with several seeds is drawn with all of them. */
function differences(
  method: string,
  trials: readonly Trial[],
  base: readonly Trial[],
): Record<string, PairedDifference> | undefined {
  const pairs = new Map<string, { own: Metrics[]; other: Metrics[] }>();
  const done = base.filter(({ missing }) => missing === undefined);
  let seeds = 0;
  for (const { seed, users } of trials) {
    const partner = done.find((one) => one.seed === seed);
    if (!partner) continue;
    seeds++;
    for (const [user, metrics] of users) {
      const other = partner.users.get(user);
      if (!other) continue;
      const pair = pairs.get(user) ?? { own: [], other: [] };
      pair.own.push(metrics);
      pair.other.push(other);
      pairs.set(user, pair);
    }
  }
  if (seeds === 0) return undefined;
  if (pairs.size === 0)
    throw new Error(
      `compare: ${method} and ${base[0]!.method} have no test user in common; evaluate them on the same ones`,
    );
  const users = [...pairs.values()];
  const values = (side: 'own' | 'other') =>
    comparedMetrics.map((name) => users.map((pair) => mean(pair[side].map((one) => one[name]!))));
  const weights = users.map(({ own }) => own.length);
  const found = pairedBootstrap(values('own'), values('other'), 1, weights);
  return Object.fromEntries(comparedMetrics.map((name, i) => [name, found[i]!]));
}

function assertComparable(trials: readonly Trial[]): void {
  const [first] = trials as [Trial];
  const opened = trials.find(({ model }) => model);
  for (const trial of trials) {
    assertSame('data', [trial, trial.data.name, trial.data.hash], [first, first.data.name, first.data.hash]);
    if (trial.model && opened?.model)
      assertSame(
        'model',
        [trial, trial.model.path, trial.model.hash],
        [opened, opened.model.path, opened.model.hash],
      );
  }
  for (const [name, own] of Map.groupBy(trials, ({ method, seed }) => `${method}, seed ${seed}`))
    if (own.length > 1)
      throw new Error(
        `compare: ${own.map(({ directory }) => directory).join(' and ')} are both ${name}; give one of them`,
      );
  for (const [seed, own] of Map.groupBy(trials, ({ seed }) => seed)) {
    const [one, ...others] = own.filter(({ run }) => run && run.strategy !== 'centralized');
    for (const other of others)
      if (!isSamePartition(one!.run!.partition, other.run!.partition))
        throw new Error(
          `compare: ${one!.directory} and ${other.directory} (seed ${seed}) cut the users into different clients; train both with the same partition`,
        );
  }
}

type Made = readonly [trial: Trial, name: string, hash: string];

/** By what it holds: it may lie elsewhere by now. */
function assertSame(what: string, [trial, name, hash]: Made, [first, other, expected]: Made): void {
  if (hash !== expected)
    throw new Error(
      `compare: ${trial.directory} was made with other ${what} than ${first.directory}: ${name} (${hash.slice(0, 12)}), not ${other} (${expected.slice(0, 12)})`,
    );
}

function isSamePartition(a: TrialRun['partition'], b: TrialRun['partition']): boolean {
  return JSON.stringify(a.clients) === JSON.stringify(b.clients);
}

/** Who belongs together with a seed, whatever the method: what its federated runs say. */
function partitionOf(seed: number, trials: readonly Trial[]): TrialRun['partition'] | undefined {
  return trials.find((one) => one.seed === seed && one.run && one.run.strategy !== 'centralized')?.run
    ?.partition;
}

function clientsOf(
  { seed, users, run, gammas }: Trial,
  partition: TrialRun['partition'] | undefined,
): ComparedClient[] {
  const last = run?.rounds.at(-1);
  return (partition?.clients ?? []).map(({ name, group, users: ids }) => {
    const own = ids.map((id) => users.get(userKey(group, id))).filter((metrics) => metrics !== undefined);
    // One that has no validation samples goes by the others', and the one client of `centralized` is none of these.
    const judges = run?.strategy !== 'centralized' && (last?.validation[name]?.samples ?? 0) > 0;
    const loss = judges ? last?.best[name]?.loss : undefined;
    const gamma = gammas?.[name];
    return {
      seed,
      client: name,
      testUsers: own.length,
      metrics: meanMetrics(own),
      ...(loss !== undefined && { loss }),
      ...(gamma !== undefined && { gamma }),
    };
  });
}

/** Over clients with test users, then over seeds. */
function spreadOf(clients: readonly ComparedClient[]): ClientSpread | undefined {
  const seeds = [...Map.groupBy(clients, ({ seed }) => seed).values()];
  const recalls = seeds
    .map((own) => own.flatMap(({ metrics }) => metrics['recall@10'] ?? []))
    .filter(({ length }) => length > 0);
  if (recalls.length === 0) return undefined;
  const losses = seeds.map((own) => own.flatMap(({ loss }) => loss ?? [])).filter(({ length }) => length > 0);
  return {
    deviation: mean(recalls.map(populationDeviation)),
    worst: mean(recalls.map((values) => Math.min(...values))),
    ...(losses.length > 0 && {
      lossDeviation: mean(losses.map(populationDeviation)),
      worstLoss: mean(losses.map((values) => Math.max(...values))),
    }),
  };
}

/** Of runs that compare clients. Undefined without likeness, and where all weights or all likenesses are the same. */
function agreementOf(runs: readonly TrialRun[]): MixingAgreement | undefined {
  const measure = (of: (likeness: Likeness) => readonly (readonly number[])[]) => {
    const found = runs.flatMap(({ strategy, partition, rounds }) => {
      if (blind.includes(strategy)) return [];
      const weights = meanWeights(
        partition.clients.map(({ name }) => name),
        rounds,
      );
      const likeness = partition.likeness && of(partition.likeness);
      return likeness ? (pearson(offDiagonal(weights), offDiagonal(likeness)) ?? []) : [];
    });
    return found.length > 0 ? mean(found) : undefined;
  };
  const itemOverlap = measure((likeness) => likeness.itemOverlap);
  const popularityCosine = measure((likeness) => likeness.popularityCosine);
  return itemOverlap === undefined || popularityCosine === undefined
    ? undefined
    : { itemOverlap, popularityCosine };
}

/** A client's mixing weights of the others as shares of what it takes from others, mean over rounds, [client][client]. */
function meanWeights(names: readonly string[], rounds: readonly TrialRound[]): number[][] {
  const sum = names.map(() => names.map(() => 0));
  for (const { clients, mixing } of rounds)
    for (const [row, weights] of mixing.matrix.entries()) {
      const taken = 1 - weights[row]!;
      for (const [column, weight] of weights.entries())
        if (row !== column && taken > 0)
          sum[names.indexOf(clients[row]!)]![names.indexOf(clients[column]!)]! +=
            weight / taken / rounds.length;
    }
  return sum;
}

function offDiagonal(matrix: readonly (readonly number[])[]): number[] {
  return matrix.flatMap((row, i) => row.filter((_, j) => i !== j));
}

/** Undefined where one of both does not vary. */
function pearson(a: readonly number[], b: readonly number[]): number | undefined {
  const [ma, mb] = [mean(a), mean(b)];
  const [aa, bb] = [total(a.map((x) => (x - ma) ** 2)), total(b.map((y) => (y - mb) ** 2))];
  // Shares of one matrix that ought to be equal differ by rounding.
  if (!(aa > 1e-12 && bb > 1e-12)) return undefined;
  return total(a.map((x, i) => (x - ma) * (b[i]! - mb))) / Math.sqrt(aa * bb);
}

function bytesOf({ strategy, rounds }: TrialRun): number {
  if (exchangesNothing.includes(strategy)) return 0;
  return total(rounds.map(({ bytes }) => bytes.up + bytes.down));
}

function deviationsOf(bySeed: readonly Metrics[]): Metrics {
  return Object.fromEntries(
    Object.keys(bySeed[0]!).map((name) => {
      const values = bySeed.map((one) => one[name]!);
      const m = mean(values);
      return [name, Math.sqrt(total(values.map((x) => (x - m) ** 2)) / (values.length - 1))];
    }),
  );
}

function populationDeviation(values: readonly number[]): number {
  const m = mean(values);
  return Math.sqrt(mean(values.map((x) => (x - m) ** 2)));
}

const total = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0);
const mean = (values: readonly number[]) => total(values) / values.length;
