// What a configuration describes, opened: data, clients, model and recommender.
import type { Client, Strategy } from '@fellrec/federation';
import { centralized, fedavg, fellrec, local, uniform } from '@fellrec/federation';
import { nodeRuntime, type Runtime } from '@fellrec/graph';
import {
  type Checkpoint,
  languageModel,
  loadTokenizer,
  openCheckpoint,
  type QuantizedBase,
  quantizeBase,
} from '@fellrec/models';
import {
  bigrec,
  calibrationSequences,
  type Dataset,
  type Partition,
  partition,
  type Recommender,
  readDataset,
  type Sample,
  subset,
  testSamples,
  trainingSamples,
  type User,
  validationSamples,
} from '@fellrec/recsys';
import type { Config } from './config.ts';

/** A client's samples. They stay with it: federation sees parameters, losses and counts only. */
export interface ClientData {
  readonly name: string;
  readonly users: readonly User[];
  readonly train: readonly Sample[];
  readonly validation: readonly Sample[];
  readonly test: readonly Sample[];
  /** Training samples whose oldest history is dropped to fit the context. */
  readonly truncated: number;
}

export interface Experiment {
  readonly config: Config;
  readonly dataset: Dataset;
  readonly partition: Partition;
  readonly clients: readonly ClientData[];
  readonly recommender: Recommender;
  readonly modelHash: string;
}

/** What an experiment tells while it opens and works. */
export type Report = (stage: string, done: number, total: number) => void;

/** What a run computes with. */
export function runtimeOf({ threads }: Config): Runtime {
  return nodeRuntime(threads ? { threads } : {});
}

/** Opens everything that training needs; `known` is the partition of a run that goes on. */
export async function openExperiment(
  config: Config,
  report: Report = () => {},
  known?: Partition,
): Promise<Experiment> {
  const dataset = await readDataset(config.data.path);
  const checkpoint = await openCheckpoint(config.model.path, { cacheDir: config.cache });
  const tokenizer = await loadTokenizer(checkpoint.directory);
  const runtime = runtimeOf(config);
  const text = {
    catalogue: dataset.catalogue,
    tokenizer,
    domain: config.domain,
    maxTokens: Math.min(config.model.maxTokens, checkpoint.config.contextLength),
    eosIds: checkpoint.config.eosIds,
  };
  const quantized = await openBase(config, { checkpoint, runtime, text }, report);
  const model = languageModel(checkpoint, runtime, quantized);
  const parted = known ?? partition(dataset, partitionOptions(config, report));
  const recommender = bigrec({
    model,
    tokenizer,
    catalogue: dataset.catalogue,
    domain: config.domain,
    lora: config.lora,
    lossOn: config.training.lossOn,
    maxTokens: config.model.maxTokens,
    beams: config.generation.beams,
    maxNewTokens: config.generation.maxNewTokens,
    generationBatch: config.generation.batch,
    cacheDir: config.cache,
    onProgress: (done, total) => report('title vectors', done, total),
  });
  return {
    config,
    dataset,
    partition: parted,
    clients: clientData(config, dataset, parted, recommender),
    recommender,
    modelHash: checkpoint.hash,
  };
}

/** The quantised base that a configuration asks for, calibrated on drawn items. */
async function openBase(
  { model: { base }, cache }: Config,
  {
    checkpoint,
    runtime,
    text,
  }: {
    readonly checkpoint: Checkpoint;
    readonly runtime: Runtime;
    readonly text: Parameters<typeof calibrationSequences>[0];
  },
  report: Report,
): Promise<QuantizedBase | undefined> {
  if (base === 'float32') return undefined;
  report('quantised base', 0, 1);
  const calibration = calibrationSequences(text);
  const quantized = await quantizeBase(checkpoint, { base, calibration, runtime, cacheDir: cache });
  report('quantised base', 1, 1);
  return quantized;
}

function partitionOptions(
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
  { data, seed }: Config,
  { users }: Dataset,
  { clients }: Partition,
  recommender: Recommender,
): ClientData[] {
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
  return clients.map(({ name }) => ({
    name,
    users: grouped.users.get(name) ?? [],
    train: grouped.train.get(name) ?? [],
    validation: grouped.validation.get(name) ?? [],
    test: grouped.test.get(name) ?? [],
    truncated: recommender.truncated(grouped.train.get(name) ?? []),
  }));
}

/** An experiment's clients as federation sees them, in this process. */
export function inProcessClients({ clients, recommender, config }: Experiment): Client[] {
  const { training, seed } = config;
  return clients.map(({ name, train, validation }) => ({
    name,
    samples: train.length,
    async train(parameters, { round, onProgress }) {
      const result = await recommender.train(train, parameters, {
        epochs: training.epochs,
        batchSize: training.batchSize,
        microBatch: training.microBatch,
        learningRate: training.learningRate,
        warmupSteps: round === 0 ? training.warmupSteps : 0,
        weightDecay: training.weightDecay,
        clipNorm: training.clipNorm,
        stream: [seed, name, round],
        ...(onProgress && { onStep: onProgress }),
      });
      return { ...result, samples: train.length };
    },
    async evaluate(parameters) {
      // A client without validation samples has no say in when to stop.
      if (validation.length === 0) return { loss: 0, samples: 0 };
      return { loss: await recommender.loss(validation, parameters), samples: validation.length };
    },
  }));
}

export function strategyOf({ federation }: Config): Strategy {
  switch (federation.strategy) {
    case 'fellrec':
      return fellrec({
        similarityOn: federation.similarityOn,
        heating: federation.heating,
        neighbours: federation.neighbours,
      });
    case 'fedavg':
      return fedavg();
    case 'uniform':
      return uniform();
    case 'local':
      return local();
    case 'centralized':
      return centralized();
  }
}
