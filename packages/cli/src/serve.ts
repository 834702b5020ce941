// The server of a run whose clients are elsewhere: it hands out tasks, computes the middle layers, mixes parameters and
// keeps the run's folder. It has no data.
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  type Client,
  createRun,
  type FederationEvent,
  federate,
  openRun,
  type RunStore,
} from '@fellrec/federation';
import { type NamedTensors, nodeRuntime, rowProducts } from '@fellrec/graph';
import { isMiddle } from '@fellrec/models';
import {
  authenticator,
  beforeRun,
  type FederationServer,
  FederationService,
  type FederationServiceOptions,
  federationService,
  type JoinFacts,
  LayersService,
  type Listening,
  type LogLevel,
  layersService,
  listen,
  openRecording,
  openSessions,
  Phase,
  type Recording,
  type RemoteClient,
  type RosterOptions,
  type RunState,
  readTokens,
  runStateAfter,
  type ServerMetrics,
  type ServerReadings,
  serverLog,
  serverMetrics,
  turns,
} from '@fellrec/network';
import { spread } from '@fellrec/recsys';
import { z } from 'zod';
import { type ModelParts, openModel } from './backends.ts';
import { type Config, ConfigError, usesGroups } from './config.ts';
import { type ItemTables, itemTables } from './item-tables.ts';
import { servedMiddles } from './middles.ts';
import { mixingResult } from './mixing.ts';
import { type Progress, silent } from './progress.ts';
import { holds, middleOptions } from './split.ts';
import { readPartition, runDirectory } from './stored-run.ts';
import { strategyOf } from './strategy.ts';
import { type ClientResult, type RunResult, writeResult } from './train.ts';

export interface ServeOptions {
  readonly host: string;
  /** 0: any free one. */
  readonly port: number;
  /** PEM files. */
  readonly tls?: { readonly cert: string; readonly key: string } | undefined;
  /** Authority of the clients' certificates, a PEM file. */
  readonly clientCa?: string | undefined;
  /** tokens.json. */
  readonly tokens?: string | undefined;
  /** Names of the clients (default: those that have tokens). */
  readonly clients?: readonly string[] | undefined;
  /** Clients that a round needs (default: all). */
  readonly quorum?: number | undefined;
  /** After which a round goes on with a quorum. */
  readonly deadlineSeconds: number;
  /** How long the start waits for all clients; then a quorum is enough. */
  readonly waitSeconds: number;
  /** The first middle layer that this server computes for clients, unless its part of the model begins later. */
  readonly firstLayer: number;
  /** Held for clients by the middle layers, at most. */
  readonly maxBytes: number;
  readonly maxTokens: number;
  readonly logLevel: LogLevel;
  /** Folder for what clients send, to audit one's own server with; nothing is kept if absent. */
  readonly record?: string | undefined;
  /** Goes on with the run where it was stopped; one that had not begun begins. */
  readonly resume?: boolean | undefined;
  readonly force?: boolean | undefined;
  readonly progress?: Progress;
  /** Aborted to stop: what is in flight is answered, complete rounds stay, and the run can go on later. */
  readonly signal?: AbortSignal;
  readonly onListening?: (address: string) => void;
}

/** The server was told to stop before the run was over. */
class Stopped extends Error {}

const cacheSeconds = 300;
/** A client says nothing while it computes a step of its own. */
const idleSeconds = 600;
const maxMessageBytes = 64 * 2 ** 20;
const maxUploadBytes = 4 * 2 ** 30;

export async function serve(config: Config, o: ServeOptions): Promise<RunResult> {
  const strategy = strategyOf(config);
  if (strategy.showsOthers)
    throw new ConfigError(
      `serve: under ${strategy.name} every client gets all others' adapters as they are, which remote ones must not; take another strategy, or clients in this process`,
    );
  const started = performance.now();
  const progress = o.progress ?? silent;
  const tokens = o.tokens === undefined ? undefined : await readTokens(o.tokens);
  const identities = authenticator({ ...(tokens && { tokens }), clientCa: o.clientCa !== undefined });
  const directory = runDirectory(config);
  const begun = await begunBy(directory, o);
  if (o.resume && !begun) progress.line(`no run has begun in ${directory}: a new one starts`);
  const expected = begun ? [...begun.keys()] : (o.clients ?? identities.clients);
  assertOptions(o, expected);
  const quorum = o.quorum ?? expected.length;
  // It shares the cores with what else runs here, and has several programs itself.
  const runtime = nodeRuntime({ ...(config.threads && { threads: config.threads }), spinning: false });
  const model = await openModel(config, runtime);
  const record = recordOf(config, model);
  let store: RunStore | undefined;
  let recording: Recording | undefined;
  let server: OpenServer | undefined;
  const metrics = serverMetrics(() => server?.readings());
  let state: RunState = { ...beforeRun, rounds: config.federation.rounds };
  const { stopped, work } = stopping(o.signal);
  try {
    // Before it listens: a run that cannot go on has no use for clients.
    if (begun) store = await openRun(directory, model.format, record);
    if (o.record !== undefined) recording = await openRecorder(o.record, progress);
    server = await open(
      config,
      model,
      {
        ...o,
        expected,
        quorum,
        known: begun,
        recording,
        onFailed: (client, reason) => progress.line(`${client} failed and left: ${reason}`),
      },
      identities,
      metrics,
      () => state,
    );
    o.onListening?.(server.listening.address);
    const clients = await Promise.race([server.federation.joined(), stopped]);
    const nowhere = clients.filter(({ facts }) => facts.group === undefined).map(({ name }) => name);
    if (usesGroups(config) && nowhere.length > 0)
      throw new Error(
        `serve: ${nowhere.join(', ')} said no group, and averages are inside groups; join with --group`,
      );
    store ??= await createRun(
      directory,
      { config: record, clients: membersOf(clients), force: o.force ?? false },
      model.format,
    );
    const products = rowProducts(runtime);
    try {
      const all = await model.initialParameters(config.seed);
      const held = clients.map(({ facts }) => holds(config, facts.layersKept, model.layers.model.layerCount));
      const initial = new Map([...all].filter(([name]) => held.some((holds) => holds(name))));
      const tables = itemTables(config, store, initial);
      const resume = await store.state();
      const events = federate({
        clients: clients.map((client) => atWork(client, tables, work)),
        strategy,
        initial,
        rounds: config.federation.rounds,
        patience: config.federation.patience,
        participation: { quorum: Math.min(quorum, clients.length), deadlineSeconds: o.deadlineSeconds },
        ...(resume && { resume }),
        products,
        spill: { directory: store.directory },
      });
      try {
        for (;;) {
          const next = await Promise.race([events.next(), stopped]);
          if (next.done) break;
          await store.record(next.value);
          state = runStateAfter(state, next.value);
          watch(metrics, next.value);
          progress.event(next.value);
        }
      } finally {
        // Of a round that does not end, nothing may go on, its deadline least of all.
        await events.return();
      }
      state = { ...state, phase: Phase.TESTING, delivered: 0 };
      const onTested = () => {
        state = { ...state, delivered: state.delivered + 1 };
        progress.report('tested clients', state.delivered, clients.length);
      };
      const tested = test(clients, store, tables, initial, held, o, quorum < expected.length, onTested);
      const result = await resultOf(config, store, await Promise.race([tested, stopped]), started);
      await writeResult(result);
      state = { ...state, phase: Phase.FINISHED };
      server.federation.finish();
      await Promise.race([server.left(), stopped]);
      return result;
    } finally {
      await products.dispose();
    }
  } finally {
    await store?.close();
    await server?.close();
    await recording?.close();
    await model.layers.release();
  }
}

function assertOptions(o: ServeOptions, expected: readonly string[]): void {
  const twice = expected.filter((name, i) => expected.indexOf(name) !== i);
  const problems = [
    o.tokens === undefined &&
      o.clientCa === undefined &&
      'nobody could prove who they are; pass --tokens or --client-ca ("fellrec keys" makes both)',
    expected.length === 0 && 'no client is expected; name them with --names',
    twice.length > 0 && `${twice.join(', ')} is named twice`,
    o.quorum !== undefined &&
      (o.quorum < 1 || o.quorum > expected.length) &&
      `--quorum ${o.quorum} of ${expected.length} clients; 1 to ${expected.length} are possible`,
  ].filter((problem) => typeof problem === 'string');
  if (problems.length > 0) throw new ConfigError(`serve: ${problems.join('\n')}`);
}

interface OpenServer {
  readonly listening: Listening;
  readonly federation: FederationServer;
  readings(): ServerReadings;
  /** Once no client has a session any more. */
  left(): Promise<void>;
  close(): Promise<void>;
}

async function open(
  config: Config,
  model: ModelParts,
  o: ServeOptions &
    Pick<RosterOptions, 'expected' | 'quorum' | 'known'> &
    Pick<FederationServiceOptions, 'onFailed'> & { readonly recording: Recording | undefined },
  identities: ReturnType<typeof authenticator>,
  metrics: ServerMetrics,
  runState: () => RunState,
): Promise<OpenServer> {
  const { layerCount: count } = model.layers.model;
  const first = Math.max(o.firstLayer, model.checkpoint.part?.k ?? 0);
  const shared = turns(model.layers, { maxTokens: o.maxTokens });
  const middles = servedMiddles(shared, {
    trains: config.split.adapters === 'all-layers',
    ...middleOptions(config),
  });
  const sessions = openSessions({
    maxSessions: o.expected.length,
    idleSeconds,
  });
  const layers = layersService({
    session: (id, client) => sessions.get(id, client),
    open: (session, taskId) => middles.open(session.facts.layersKept, taskId),
    limits: { bytes: o.maxBytes, tokens: o.maxTokens },
    cacheSeconds,
    onCall: (call) => metrics.layers(call),
  });
  sessions.onEnd(({ id }) => {
    // A call of it that still runs ends first; what that fails with is the call's.
    layers.end(id).catch(() => {});
  });
  const federation = federationService({
    sessions,
    expected: o.expected,
    quorum: o.quorum,
    known: o.known,
    waitSeconds: o.waitSeconds,
    model: { hash: model.checkpoint.hash, layers: { count, first } },
    settingsJson: JSON.stringify(settingsOf(config)),
    runState,
    maxUploadBytes,
    onFailed: o.onFailed,
    shareOf: (facts: JoinFacts) => {
      const k = facts.layersKept;
      const held = holds(config, k, count);
      if (k === undefined || config.split.adapters === 'client-layers') return { holds: held };
      return { holds: held, split: { isOwn: (name) => !isMiddle(name, k, count), ofServer: middles } };
    },
  });
  const tls = o.tls && {
    cert: await readPem(o.tls.cert),
    key: await readPem(o.tls.key),
    ...(o.clientCa !== undefined && { clientCa: await readPem(o.clientCa) }),
  };
  const listening = await listen({
    host: o.host,
    port: o.port,
    ...(tls && { tls }),
    routes: (router) =>
      router.service(FederationService, federation.service).service(LayersService, layers.service),
    authenticator: identities,
    metrics,
    log: serverLog(o.logLevel),
    maxMessageBytes,
    interceptor: o.recording?.interceptor,
  });
  return {
    listening,
    federation,
    readings: () => ({
      clientsJoined: sessions.count(),
      queueLength: shared.queueLength(),
      heldBytes: layers.heldBytes(),
    }),
    left: () => sessions.empty(),
    async close() {
      const closed = listening.close();
      federation.release();
      await closed;
      sessions.close();
    },
  };
}

async function openRecorder(folder: string, progress: Progress): Promise<Recording> {
  const recording = await openRecording({ folder, onNote: progress.line });
  progress.line(
    `recording all that clients send, states and adapters included, to ${folder}: keep it as their data, for an audit of this server only`,
  );
  return recording;
}

/** What clients get to know: everything but where things lie here, and whose data it is about. */
function settingsOf({
  data: _,
  runs: __,
  cache: ___,
  threads: ____,
  split,
  model,
  ...settings
}: Config): object {
  const { path: _path, ...ofModel } = model;
  return { ...settings, model: ofModel, split: { adapters: split.adapters, recompute: split.recompute } };
}

function readPem(file: string): Promise<string> {
  return readFile(file, 'utf8').catch((cause) => {
    throw new Error(`serve: cannot read ${file}: ${cause.message}`, { cause });
  });
}

/** What config.json says: data is the clients' affair. */
function recordOf({ data: _, ...settings }: Config, { checkpoint }: ModelParts): object {
  return { ...settings, modelHash: checkpoint.hash, clients: 'remote' };
}

function membersOf(clients: readonly RemoteClient[]): z.infer<typeof membersSchema> {
  return { method: 'remote', clients: clients.map(({ name, facts }) => ({ name, ...facts })) };
}

/** clients.json. */
const membersSchema = z.object({
  method: z.literal('remote'),
  clients: z.array(
    z.object({
      name: z.string(),
      modelHash: z.string(),
      layersKept: z.number().optional(),
      trainSamples: z.number(),
      validationSamples: z.number(),
      testUsers: z.number(),
      group: z.string().optional(),
    }),
  ),
});

/**
 * Clients of the run that goes on, and what they said of themselves; undefined if one begins. Stopped before all clients
 * were there, it has not begun.
 * @throws if there is a run that is neither to go on nor to be replaced, or one of clients in its own process
 */
async function begunBy(
  directory: string,
  { resume = false, force = false }: ServeOptions,
): Promise<ReadonlyMap<string, JoinFacts> | undefined> {
  if (resume && force)
    throw new ConfigError('serve: --resume goes on with a run, --force replaces it; pass one of them');
  if (!existsSync(join(directory, 'config.json')) || force) return undefined;
  if (!resume)
    throw new Error(
      `run: ${directory} exists; go on with it (--resume), replace it (--force) or choose another name`,
    );
  const members = membersSchema.safeParse(await readPartition(directory));
  if (!members.success)
    throw new Error(
      `run: clients.json of ${directory} is not of a run with remote clients; go on with "fellrec train --resume", or choose another name:\n${z.prettifyError(members.error)}`,
    );
  return new Map(
    members.data.clients.map(({ name, layersKept, group, ...facts }) => [
      name,
      { layersKept, group, ...facts },
    ]),
  );
}

/** A client whose work ends with a signal, and whose item vectors may be those of an earlier round. */
function atWork(client: RemoteClient, tables: ItemTables, work: AbortSignal): Client {
  const { name, samples, facts } = client;
  const until = (signal = work) => AbortSignal.any([signal, work]);
  return {
    name,
    samples,
    ...(facts.group !== undefined && { group: facts.group }),
    ...(client.holds && { holds: client.holds }),
    async train(parameters, context) {
      const items = await tables.of(name, context.round);
      return client.train(parameters, { ...context, ...(items && { items }), signal: until(context.signal) });
    },
    async evaluate(parameters, context) {
      const items = await tables.of(name, context.round + 1);
      return client.evaluate(parameters, {
        ...context,
        ...(items && { items }),
        signal: until(context.signal),
      });
    },
  };
}

interface Tested {
  readonly client: RemoteClient;
  readonly bestRound: number | undefined;
  readonly metrics: Readonly<Record<string, number>>;
  readonly users: number;
  readonly truncated: number;
}

/** Each client's best parameters on its own test users; one that does not answer in time has no metrics. */
async function test(
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

async function resultOf(
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
  // As over all users.
  const users = measured.reduce((sum, { testUsers }) => sum + testUsers, 0);
  const overUsers = (metric: string) =>
    measured.reduce((sum, { testUsers, metrics }) => sum + (testUsers / users) * metrics[metric]!, 0);
  return {
    name: config.name,
    strategy: config.federation.strategy,
    directory: store.directory,
    rounds: history.length,
    clients,
    pooled: Object.fromEntries(Object.keys(measured[0]!.metrics).map((name) => [name, overUsers(name)])),
    spread: spread('recall@10', new Map(measured.map(({ client, metrics }) => [client, metrics]))),
    floors: {},
    mixing: history.map(mixingResult),
    truncatedTests: tested.reduce((n, { truncated }) => n + truncated, 0),
    seconds: (performance.now() - started) / 1000,
  };
}

function watch(metrics: ServerMetrics, event: FederationEvent): void {
  if (event.type === 'round-started') metrics.round.set(event.round);
  if (event.type === 'round-finished') metrics.rounds.inc();
}

/** Told to stop, `stopped` rejects, and the signal of the clients' work is aborted. */
function stopping(signal: AbortSignal | undefined): {
  readonly stopped: Promise<never>;
  readonly work: AbortSignal;
} {
  const { promise: stopped, reject } = Promise.withResolvers<never>();
  const work = new AbortController();
  const stop = () => {
    work.abort(new Error('the server was stopped'));
    reject(new Stopped('serve: stopped; complete rounds are safe, go on with --resume'));
  };
  if (signal?.aborted) stop();
  signal?.addEventListener('abort', stop, { once: true });
  stopped.catch(() => {});
  return { stopped, work: work.signal };
}
