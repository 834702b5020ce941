// What a configuration describes, opened: data, clients, model and recommender.
import { type Client, dittoClient, dittoFormat, type ParametersFormat } from '@fellrec/federation';
import { type NamedTensors, nodeRuntime, type Runtime } from '@fellrec/graph';
import { assertWhole } from '@fellrec/models';
import {
  type Dataset,
  type Partition,
  partition,
  type Recommender,
  readDataset,
  type Sample,
  splitRecommender,
  subset,
  type TrainOptions,
  testSamples,
  trainingSamples,
  type User,
  validationSamples,
} from '@fellrec/recsys';
import { type Backend, openBackend } from './backends.ts';
import type { Config } from './config.ts';
import type { ItemTables } from './item-tables.ts';
import { holds, keptLayers, middleHere } from './split.ts';
import { hasTwo } from './strategy.ts';

/** A client's samples. They stay with it: federation sees parameters, losses and counts only. */
export interface ClientData {
  readonly name: string;
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
  readonly dataset: Dataset;
  readonly partition: Partition;
  readonly clients: readonly ClientData[];
  /** The whole model's. */
  readonly recommender: Recommender;
  readonly modelHash: string;
  /** How a model's parameters lie in a folder. */
  readonly format: ParametersFormat;
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
  const dataset = await readDataset(config.data.path);
  const backend = await openBackend(config, { dataset, runtime: runtimeOf(config), report });
  const { checkpoint, recommender, format } = backend;
  assertWhole(checkpoint, 'a run in one process');
  function experimentOf(own: Config, given?: Partition): Experiment {
    const parted = given ?? partition(dataset, partitionOptions(own, report));
    return {
      config: own,
      dataset,
      partition: parted,
      clients: clientData(own, dataset, parted, backend),
      recommender,
      modelHash: checkpoint.hash,
      format,
      sharing: experimentOf,
      dispose: () => backend.dispose(),
    };
  }
  return experimentOf(config, known);
}

export function partitionOptions(
  { partition: p, federation, seed }: Config,
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

/** Samples are drawn over all users, then go to the clients of their users. */
function clientData(
  config: Config,
  { users }: Dataset,
  { clients }: Partition,
  backend: Backend,
): ClientData[] {
  const { data, seed } = config;
  const drawn = {
    train: subset(users.flatMap(trainingSamples), data.trainSamples, seed, 'train'),
    validation: subset(users.flatMap(validationSamples), data.validationSamples, seed, 'validation'),
    test: subset(users.flatMap(testSamples), data.testUsers, seed, 'test'),
  };
  const clientOf = new Map(clients.flatMap(({ name, users: ids }) => ids.map((id) => [id, name] as const)));
  const byClient = <T>(list: readonly T[], user: (entry: T) => string) =>
    Map.groupBy(list, (e) => clientOf.get(user(e))!);
  const grouped = {
    users: byClient(users, ({ id }) => id),
    train: byClient(drawn.train, ({ user }) => user),
    validation: byClient(drawn.validation, ({ user }) => user),
    test: byClient(drawn.test, ({ user }) => user),
  };
  return clients.map(({ name }) => {
    const train = grouped.train.get(name) ?? [];
    return {
      name,
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
function keeping(config: Config, { recommender, layers, keeping: open }: Backend, client: string) {
  const { layerCount } = layers.model;
  const k = keptLayers(config, client, layerCount);
  if (k === undefined) return { recommender, holds: () => true };
  const { middle, elsewhere } = middleHere(config, layers, k);
  return { recommender: splitRecommender(open(k, middle), elsewhere), holds: holds(config, k, layerCount) };
}

/** The common start of all clients: what any of them has a part in. */
export async function initialParameters({ recommender, clients, config }: Experiment): Promise<NamedTensors> {
  const all = await recommender.initialParameters(config.seed);
  return new Map([...all].filter(([name]) => clients.some(({ holds }) => holds(name))));
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
  return clients.map(({ name, train, validation, recommender, holds }) => ({
    name,
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
export function trainOptions(
  { training, federation, seed }: Config,
  client: string,
  round: number,
): TrainOptions {
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
    ...(federation.strategy === 'fedprox' && { proximal: { weight: federation.mu } }),
  };
}
