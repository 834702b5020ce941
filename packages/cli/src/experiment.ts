// What a configuration describes, opened: data, clients, model and recommender.
import { type Client, dittoClient, dittoFormat, type ParametersFormat } from '@fellrec/federation';
import { type NamedTensors, nodeRuntime, type Runtime } from '@fellrec/graph';
import { assertWhole } from '@fellrec/models';
import {
  type Dataset,
  joinPartitions,
  type Partition,
  partition,
  type Recommender,
  type Sample,
  splitRecommender,
  subset,
  type TrainOptions,
  testSamples,
  trainingSamples,
  type User,
  validationSamples,
} from '@fellrec/recsys';
import { type CatalogueRecommender, type ModelParts, openBackend } from './backends.ts';
import type { Config } from './config.ts';
import { type DataFacts, factsOf, groupConfigs, inGroup, readGroups, sharedUsers } from './groups.ts';
import type { ItemTables } from './item-tables.ts';
import { holds, keptLayers, middleHere } from './split.ts';
import { hasTwo, proximalOf } from './strategy.ts';

/** Clients with one catalogue: users, items, and what recommends these. */
export interface Group {
  /** None where all clients are one group. */
  readonly name?: string;
  readonly dataset: Dataset;
  readonly recommender: Recommender;
}

/** A client's samples. They stay with it: federation sees parameters, losses and counts only. */
export interface ClientData {
  readonly name: string;
  readonly group: Group;
  readonly users: readonly User[];
  readonly train: readonly Sample[];
  readonly validation: readonly Sample[];
  readonly test: readonly Sample[];
  /** Training samples whose oldest history is dropped to fit the context. */
  readonly truncated: number;
  /** Works with the layers that the client keeps, all by default; its parameters are those that it has a part in. */
  readonly recommender: Recommender;
  readonly holds: (name: string) => boolean;
}

export interface Experiment {
  readonly config: Config;
  /** Of all groups together. */
  readonly data: DataFacts;
  readonly groups: readonly Group[];
  readonly partition: Partition;
  /** Of each group in turn. */
  readonly clients: readonly ClientData[];
  readonly modelHash: string;
  /** How a model's parameters lie in a folder. */
  readonly format: ParametersFormat;
  /** Of the whole model. */
  initialParameters(): Promise<NamedTensors>;
  /**
   * Another experiment on the same data and model, disposed of with this one: of another seed, federation or partition
   * (default: that of its configuration).
   */
  sharing(config: Config, partition?: Partition): Experiment;
  dispose(): Promise<void>;
}

/** What an experiment tells while it opens and works. */
export type Report = (stage: string, done: number, total: number) => void;

/** What a run computes with. */
export function runtimeOf({ threads, split }: Config): Runtime {
  // Cut models are several programs that take turns.
  return nodeRuntime({ ...(threads && { threads }), spinning: split.k === undefined });
}

/** Opens everything that training needs; `known` is the partition of a run that goes on. */
export async function openExperiment(
  config: Config,
  report: Report = () => {},
  known?: Partition,
): Promise<Experiment> {
  const datasets = await readGroups(config);
  const backend = await openBackend(config, {
    catalogues: groupConfigs(config).map((group, i) => ({ ...group, catalogue: datasets[i]!.catalogue })),
    runtime: runtimeOf(config),
    report,
  });
  const { checkpoint, format } = backend;
  assertWhole(checkpoint, 'a run in one process');
  function experimentOf(own: Config, given?: Partition): Experiment {
    const shared = groupConfigs(own).map((group, i) => sharedUsers(datasets[i]!, group, own.seed));
    const parted = given ?? partitionOf(own, shared, report);
    const groups = groupConfigs(own).map(
      ({ name }, i): Group => ({
        ...(name !== undefined && { name }),
        dataset: shared[i]!,
        recommender: backend.recommenders[i]!.recommender,
      }),
    );
    return {
      config: own,
      data: factsOf(datasets),
      groups,
      partition: parted,
      clients: groups.flatMap((group, i) =>
        clientData(own, group, parted, { ...backend, ...backend.recommenders[i]! }),
      ),
      modelHash: checkpoint.hash,
      format,
      initialParameters: () => backend.initialParameters(own.seed),
      sharing: experimentOf,
      dispose: () => backend.dispose(),
    };
  }
  return experimentOf(config, known);
}

/** How the users of all groups are cut into clients. */
export function partitionOf(
  config: Config,
  datasets: readonly Dataset[],
  report: Report = () => {},
): Partition {
  return joinPartitions(
    groupConfigs(config).map((group, i) => ({
      ...(group.name !== undefined && { group: group.name }),
      partition: inGroup(group, () =>
        partition(datasets[i]!, partitionOptions(config, group.partition, report)),
      ),
    })),
  );
}

function partitionOptions(
  { federation, seed }: Config,
  p: Config['partition'],
  report: Report,
): Parameters<typeof partition>[1] {
  if (federation.strategy === 'centralized') return { method: 'random', clients: 1, seed };
  switch (p.method) {
    case 'column':
      return { method: 'column', column: p.column, clients: 0, seed };
    case 'random':
      return { method: 'random', clients: p.clients, seed };
    case 'kmeans': {
      const onEpoch = (done: number, total: number) => report('partition', done, total);
      return {
        method: 'kmeans',
        clients: p.clients,
        seed,
        bpr: { dimension: p.dimension, epochs: p.epochs, onEpoch },
      };
    }
  }
}

/** Samples are drawn over all users of a group, then go to the clients of their users. */
function clientData(
  config: Config,
  group: Group,
  { clients }: Partition,
  backend: ModelParts & CatalogueRecommender,
): ClientData[] {
  const { data, seed, training } = config;
  const { users } = group.dataset;
  const samplesOf = (user: User) => trainingSamples(user, { targets: training.targetsPerUser });
  const purpose = (part: string) => (group.name === undefined ? part : `${part} of ${group.name}`);
  const drawn = {
    train: subset(users.flatMap(samplesOf), data.trainSamples, seed, purpose('train')),
    validation: subset(users.flatMap(validationSamples), data.validationSamples, seed, purpose('validation')),
    test: subset(users.flatMap(testSamples), data.testUsers, seed, purpose('test')),
  };
  const own = clients.filter((client) => client.group === group.name);
  const clientOf = new Map(own.flatMap(({ name, users: ids }) => ids.map((id) => [id, name] as const)));
  const strangers = users.filter(({ id }) => !clientOf.has(id));
  if (strangers.length > 0)
    throw new Error(
      `partition: ${strangers.length} users, such as "${strangers[0]!.id}", belong to no client; is it one of other data?`,
    );
  const byClient = <T>(list: readonly T[], user: (entry: T) => string) =>
    Map.groupBy(list, (e) => clientOf.get(user(e))!);
  const grouped = {
    users: byClient(users, ({ id }) => id),
    train: byClient(drawn.train, ({ user }) => user),
    validation: byClient(drawn.validation, ({ user }) => user),
    test: byClient(drawn.test, ({ user }) => user),
  };
  return own.map(({ name }) => {
    const train = grouped.train.get(name) ?? [];
    return {
      name,
      group,
      users: grouped.users.get(name) ?? [],
      train,
      validation: grouped.validation.get(name) ?? [],
      test: grouped.test.get(name) ?? [],
      truncated: backend.recommender.truncated(train),
      ...keeping(config, backend, name),
    };
  });
}

/** The recommender of a client with the layers that it keeps. */
function keeping(
  config: Config,
  { recommender, layers, keeping: open }: ModelParts & CatalogueRecommender,
  client: string,
) {
  const { layerCount } = layers.model;
  const k = keptLayers(config, client, layerCount);
  if (k === undefined) return { recommender, holds: () => true };
  const { middle, elsewhere } = middleHere(config, layers, k);
  return { recommender: splitRecommender(open(k, middle), elsewhere), holds: holds(config, k, layerCount) };
}

/** The common start of all clients: what any of them has a part in. */
export async function initialParameters(experiment: Experiment): Promise<NamedTensors> {
  const { clients } = experiment;
  const all = await experiment.initialParameters();
  return new Map([...all].filter(([name]) => clients.some(({ holds }) => holds(name))));
}

/** What a client ranks with, and for whom. */
export function rankerOf({ recommender, users, group, validation }: ClientData, report: Report) {
  return { recommender, users, validation, catalogue: group.dataset.catalogue, report };
}

/** What of the common start a client has a part in. */
export function startOf({ holds }: ClientData, initial: NamedTensors): NamedTensors {
  return new Map([...initial].filter(([name]) => holds(name)));
}

/** How what the federation has of a client lies in the run's folder. */
export function storeFormat({ config, format }: Experiment): ParametersFormat {
  return hasTwo(config) ? dittoFormat(format) : format;
}

/** An experiment's clients as federation sees them, in this process. */
export function inProcessClients(experiment: Experiment, tables: ItemTables): Client[] {
  const { config } = experiment;
  const clients = trainingClients(experiment, tables);
  return hasTwo(config) ? clients.map((client) => dittoClient(client, config.federation.lambda)) : clients;
}

function trainingClients({ clients, config }: Experiment, tables: ItemTables): Client[] {
  return clients.map(({ name, group, train, validation, recommender, holds }) => ({
    name,
    ...(group.name !== undefined && { group: group.name }),
    samples: train.length,
    holds,
    async train(parameters, { round, proximal, onProgress }) {
      const items = await tables.of(name, round);
      const result = await recommender.train(train, parameters, {
        ...trainOptions(config, name, round),
        ...(proximal && { proximal }),
        ...(items && { items }),
        ...(onProgress && { onStep: onProgress }),
      });
      return { ...result, samples: train.length };
    },
    async evaluate(parameters, { round }) {
      // A client without validation samples has no say in when to stop.
      if (validation.length === 0) return { loss: 0, samples: 0 };
      const items = await tables.of(name, round + 1);
      return { loss: await recommender.loss(validation, parameters, items), samples: validation.length };
    },
  }));
}

/** How a client trains in a round, wherever it is. */
export function trainOptions(config: Config, client: string, round: number): TrainOptions {
  const { training, seed } = config;
  const proximal = proximalOf(config);
  const { epochs, batchSize, microBatch, learningRate, weightDecay, clipNorm } = training;
  return {
    epochs,
    batchSize,
    microBatch,
    learningRate,
    weightDecay,
    clipNorm,
    warmupSteps: round === 0 ? training.warmupSteps : 0,
    stream: [seed, client, round],
    ...(proximal && { proximal }),
  };
}
