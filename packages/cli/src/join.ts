// A client of a run on a server: it has the data, its layers of the model and its credentials, and does what it is asked.
import { resolve } from 'node:path';
import type { NamedTensors } from '@fellrec/graph';
import { describePart } from '@fellrec/models';
import {
  type ActivationsEncoding,
  type Connection,
  clientTransport,
  connect,
  LayersService,
  participate,
  remoteMiddle,
  type TestResult,
  type Worker,
} from '@fellrec/network';
import {
  type Dataset,
  meanMetrics,
  type Recommender,
  readDataset,
  testSamples,
  trainingSamples,
  validationSamples,
} from '@fellrec/recsys';
import { type AnyCheckpoint, type Backend, openAny, openBackend } from './backends.ts';
import {
  applySetting,
  assertForRemote,
  type Config,
  ConfigError,
  parseConfig,
  remoteData,
} from './config.ts';
import { label } from './config-schema.ts';
import { runtimeOf, trainOptions } from './experiment.ts';
import { type GroupConfig, groupConfigs } from './groups.ts';
import { assertReplaceable, writeJoined } from './joined.ts';
import { type Progress, silent } from './progress.ts';
import { withRankingOptions } from './ranking.ts';

export interface JoinOptions {
  /** Such as https://localhost:7443. */
  readonly server: string;
  /** Data folder. */
  readonly data: string;
  /** Model folder. */
  readonly model: string;
  /** Whose users these are. */
  readonly group?: string | undefined;
  /** How its items are spoken of: settings of `domain` and `recformer.attributes`. */
  readonly set?: readonly string[] | undefined;
  /** k: the first layers that stay here, with the last one; all that the model folder has if absent. */
  readonly k?: number | undefined;
  readonly activations: ActivationsEncoding;
  /** PEM files, or a file with a token. */
  readonly ca?: string | undefined;
  readonly token?: string | undefined;
  readonly cert?: string | undefined;
  readonly key?: string | undefined;
  /** Where the client's best parameters are written when the run is over, and what recommending with them needs. */
  readonly output?: string | undefined;
  readonly cache: string;
  readonly threads?: number | undefined;
  readonly microBatch?: number | undefined;
  /** How long the server may be out of reach. */
  readonly giveUpSeconds: number;
  readonly progress?: Progress;
}

export interface JoinResult {
  readonly client: string;
  /** Of the best parameters on the client's test users. */
  readonly metrics: Readonly<Record<string, number>>;
  readonly testUsers: number;
  /** Bytes of activations and gradients. */
  readonly traffic: { readonly up: number; readonly down: number };
  readonly output?: string;
}

/** Takes part in a run until it is over. */
export async function join(options: JoinOptions): Promise<JoinResult> {
  const progress = options.progress ?? silent;
  assertOwn(options);
  if (options.output !== undefined) await assertReplaceable(options.output);
  const checkpoint = await openAny(options.model, options.cache);
  const o = { ...options, k: layersKept(checkpoint, options.k) };
  const dataset = await readDataset(o.data);
  const samples = {
    train: dataset.users.flatMap((user) => trainingSamples(user)),
    validation: dataset.users.flatMap(validationSamples),
    test: dataset.users.flatMap(testSamples),
  };
  const { server, ca, token, cert, key } = o;
  const transport = await clientTransport({
    server,
    ...(ca !== undefined && { ca }),
    ...(token !== undefined && { token }),
    ...(cert !== undefined && { cert }),
    ...(key !== undefined && { key }),
  });
  const connection = await connect({
    transport,
    facts: {
      modelHash: checkpoint.hash,
      ...(o.k !== undefined && { layersKept: o.k }),
      trainSamples: samples.train.length,
      validationSamples: samples.validation.length,
      testUsers: samples.test.length,
      ...(o.group !== undefined && { group: o.group }),
    },
    giveUpSeconds: o.giveUpSeconds,
    onNote: (text) => progress.line(text),
  });
  try {
    return await takePart(o, { connection, dataset, samples, progress });
  } catch (error) {
    await connection.fail(error);
    throw error;
  }
}

/** @throws ConfigError on settings that are not the client's, or a group that is no label */
function assertOwn({ set = [], group }: JoinOptions): void {
  const foreign = set.filter((one) => !/^(domain\.|recformer\.attributes=)/.test(one));
  if (foreign.length > 0)
    throw new ConfigError(
      `join: --set ${foreign.join(' ')}: a client has its own domain.* and recformer.attributes; everything else is the server's`,
    );
  if (group !== undefined && !label.safeParse(group).success)
    throw new ConfigError('join: --group: 1 to 64 letters, digits, "-" and "_", without "-" at the start');
}

interface Joined {
  readonly connection: Connection;
  readonly dataset: Dataset;
  readonly samples: Samples;
  readonly progress: Progress;
}

async function takePart(
  o: JoinOptions,
  { connection, dataset, samples, progress }: Joined,
): Promise<JoinResult> {
  const { client, settingsJson } = connection.session();
  const config = settingsFor(o, settingsJson);
  progress.line(`joined as ${client}`);
  const [own] = groupConfigs(config) as [GroupConfig];
  const backend = await openBackend(config, {
    catalogues: [{ ...own, catalogue: dataset.catalogue }],
    runtime: runtimeOf(config),
    report: progress.report,
  });
  try {
    const { recommender, middle } = recommenderOf(backend, config, connection, o);
    let tested: TestResult | undefined;
    const worker = workerOf({ client, config, dataset, samples, recommender, progress });
    await participate({
      connection,
      worker: {
        ...worker,
        ...(middle && { begin: (taskId: string) => middle.begin(taskId) }),
        async test(parameters, context) {
          const found = await worker.test(parameters, context);
          if (o.output !== undefined) {
            const joined = { client, config, modelHash: backend.checkpoint.hash, dataset };
            const asked = { parameters, items: context.items };
            await writeJoined(resolve(o.output), joined, asked, backend.format);
          }
          tested = found;
          return found;
        },
      },
      onNote: (text) => progress.line(text),
    });
    if (!tested)
      throw new Error(
        `join: the run ended before ${client} had tested, so the result is without it${o.output === undefined ? '' : `, and nothing was written to ${o.output}`}; the client's best parameters are in the run's folder on the server`,
      );
    const traffic = middle?.traffic ?? { up: 0, down: 0 };
    const { metrics, users: testUsers } = tested;
    const output = o.output === undefined ? {} : { output: resolve(o.output) };
    return { client, metrics, testUsers, traffic, ...output };
  } finally {
    await backend.dispose();
  }
}

/** k, undefined if all layers stay here. @throws if the model's folder lacks one of the layers that stay */
function layersKept(
  { config, directory, part }: AnyCheckpoint,
  asked: number | undefined,
): number | undefined {
  if (!part) return asked;
  const k = asked ?? part.k;
  if (part.side === 'client' && k <= part.k) return k;
  throw new Error(
    `join: a client that keeps ${k} layers and the last one cannot work with ${directory}: it is ${describePart(part, config.layerCount)}`,
  );
}

/** The run's settings, with what is the client's own. @throws if the server sent something else than settings */
function settingsFor(
  { data, model, cache, threads, k, microBatch, set = [] }: JoinOptions,
  json: string,
): Config {
  const sent = objectOf(json);
  const settings = {
    ...sent,
    data: { path: remoteData },
    model: { ...sent.model, path: resolve(model) },
    split: { ...sent.split, ...(k !== undefined && { k }) },
    training: { ...sent.training, ...(microBatch !== undefined && { microBatch }) },
    cache: resolve(cache),
    ...(threads !== undefined && { threads }),
  };
  try {
    // Nothing that the server says may name a folder here.
    assertForRemote(parseConfig(settings, "the server's settings"), "the server's settings");
  } catch (cause) {
    if (!(cause instanceof ConfigError)) throw cause;
    throw new Error(`join: ${cause.message}; is the server of another version?`, { cause });
  }
  for (const setting of set) applySetting(settings, setting);
  const config = parseConfig(settings, "the server's settings with --set");
  return { ...config, data: { ...config.data, path: resolve(data) } };
}

/** @throws if it is no JSON object */
function objectOf(json: string): Record<string, Record<string, unknown>> {
  let sent: unknown;
  try {
    sent = JSON.parse(json);
  } catch (cause) {
    throw new Error(`join: the server's settings are no JSON: ${(cause as Error).message}`, { cause });
  }
  if (typeof sent !== 'object' || sent === null || Array.isArray(sent))
    throw new Error("join: the server's settings are no JSON object; is the server of another version?");
  return sent as Record<string, Record<string, unknown>>;
}

function recommenderOf(backend: Backend, config: Config, connection: Connection, o: JoinOptions) {
  const { recommender, keeping } = backend.recommenders[0]!;
  if (o.k === undefined) return { recommender };
  const middle = remoteMiddle({
    call: (attempt) => connection.call(LayersService, attempt),
    encoding: o.activations,
    trains: config.split.adapters === 'all-layers',
  });
  // Of states that were rounded on their way, vectors are others.
  const cacheDir = o.activations === 'float32' ? config.cache : resolve(config.cache, o.activations);
  return { recommender: keeping(o.k, middle, cacheDir), middle };
}

type Samples = Readonly<Record<'train' | 'validation' | 'test', ReturnType<typeof testSamples>>>;

interface WorkerOptions {
  readonly client: string;
  readonly config: Config;
  readonly dataset: Dataset;
  readonly samples: Samples;
  readonly recommender: Recommender;
  readonly progress: Progress;
}

function workerOf({ client, config, dataset, samples, recommender, progress }: WorkerOptions): Worker {
  const withItems = ({ items }: { readonly items?: NamedTensors }) => (items ? { items } : {});
  return {
    async train(parameters, context) {
      const result = await recommender.train(samples.train, parameters, {
        ...trainOptions(config, client, context.round),
        ...withItems(context),
        onStep(step) {
          context.onProgress(step);
          progress.report(`round ${context.round + 1}`, step.step, step.steps);
        },
      });
      return { ...result, samples: samples.train.length };
    },
    async evaluate(parameters, { items }) {
      const { validation } = samples;
      if (validation.length === 0) return { loss: 0, samples: 0 };
      return { loss: await recommender.loss(validation, parameters, items), samples: validation.length };
    },
    async test(parameters, context) {
      const { test } = samples;
      if (test.length === 0) return { metrics: {}, users: 0, truncated: 0 };
      const { users, catalogue } = dataset;
      const found = await withRankingOptions(
        config,
        { recommender, users, catalogue, validation: samples.validation, report: progress.report },
        { parameters, items: context.items },
        (options) =>
          recommender.evaluate(test, parameters, {
            ...options,
            onProgress: (done, total) => progress.report('test users', done, total),
          }),
      );
      return { metrics: meanMetrics(found.metrics), users: test.length, truncated: found.truncated };
    },
  };
}
