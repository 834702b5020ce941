// The server of a run whose clients are elsewhere: it hands out tasks, computes the middle layers, mixes parameters and
// keeps the run's folder. It has no data.
import {
  assertCreatable,
  type Client,
  createRun,
  type FederationEvent,
  federate,
  type RunStore,
} from '@fellrec/federation';
import { nodeRuntime, rowProducts } from '@fellrec/graph';
import {
  authenticator,
  beforeRun,
  openRecording,
  Phase,
  type Recording,
  type RemoteClient,
  type RunState,
  readTokens,
  runStateAfter,
  type ServerMetrics,
  serverMetrics,
  until,
} from '@fellrec/network';
import { type ModelParts, openModel } from '../backends.ts';
import { type Config, ConfigError, usesFedamp, usesGroups } from '../config.ts';
import { type ItemTables, itemTables } from '../item-tables.ts';
import { type Progress, silent } from '../progress.ts';
import { reopenRun, runDirectory } from '../stored-run.ts';
import { strategyOf } from '../strategy.ts';
import { type RunResult, writeResult } from '../train.ts';
import { idleSeconds, type OpenServer, open } from './listening.ts';
import { begunBy, membersOf } from './members.ts';
import { assertOptions, type ServeOptions } from './options.ts';
import { hasPart, resultOf, test } from './tested.ts';

export async function serve(config: Config, o: ServeOptions): Promise<RunResult> {
  const strategy = strategyOf(config);
  if (strategy.showsOthers)
    throw new ConfigError(
      `serve: under ${strategy.name} every client gets all others' adapters as they are, which remote ones must not; take another strategy, or clients in this process`,
    );
  const progress = o.progress ?? silent;
  const tokens = o.tokens === undefined ? undefined : await readTokens(o.tokens);
  const identities = authenticator({ ...(tokens && { tokens }), clientCa: o.clientCa !== undefined });
  const directory = runDirectory(config);
  const begun = await begunBy(directory, o);
  if (o.resume && !begun) progress.line(`no run has begun in ${directory}: a new one starts`);
  const expected = begun ? [...begun.keys()] : (o.clients ?? identities.clients);
  assertOptions(o, expected, identities.clients);
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
    // Before it listens: a run that cannot begin or go on has no use for clients.
    if (begun) store = await reopenRun(directory, record, model.format);
    else await assertCreatable(directory, { force: o.force ?? false });
    if (o.record !== undefined) recording = await openRecorder(o.record, progress);
    server = await open({
      ...o,
      config,
      model,
      identities,
      metrics,
      expected,
      quorum,
      known: begun,
      recording,
      unfit: ({ group }) =>
        usesGroups(config) && group === undefined
          ? 'averages are inside groups, and this client said none; join with --group'
          : undefined,
      runState: () => state,
      onFailed: (client, reason) => progress.line(`${client} failed and left: ${reason}`),
    });
    o.onListening?.(server.listening.address);
    const clients = await Promise.race([server.federation.joined(), stopped]);
    assertFit(config, clients);
    store ??= await createRun(
      directory,
      { config: record, clients: membersOf(clients), force: o.force ?? false },
      model.format,
    );
    const products = rowProducts(runtime);
    try {
      const all = await model.initialParameters(config.seed);
      const initial = new Map([...all].filter(([name]) => clients.some((client) => hasPart(client, name))));
      const tables = itemTables(config, store, initial);
      const resume = await store.state();
      const training = clients.filter(({ samples }) => samples > 0).length;
      const events = federate({
        clients: clients.map((client) => atWork(client, tables, work)),
        strategy,
        initial,
        rounds: config.federation.rounds,
        patience: config.federation.patience,
        participation: { quorum: Math.min(quorum, training), deadlineSeconds: o.deadlineSeconds },
        ...(resume && { resume }),
        products,
        spill: { directory: store.directory },
      });
      try {
        for await (const event of until(work, events)) {
          await store.record(event);
          state = runStateAfter(state, event);
          watch(metrics, event);
          progress.event(event);
        }
      } finally {
        // Of a round that does not end, nothing may go on, its deadline least of all.
        await events.return();
      }
      state = { ...state, phase: Phase.TESTING, delivered: 0 };
      const onTested = (client: string, missing: string | undefined) => {
        if (missing !== undefined) progress.line(`  the result is without ${client}: ${missing}`);
        state = { ...state, delivered: state.delivered + 1 };
        progress.report('tested clients', state.delivered, clients.length);
      };
      const started = performance.now();
      const tested = test({
        clients,
        store,
        tables,
        initial,
        ...(quorum < expected.length && { deadlineSeconds: o.deadlineSeconds }),
        onTested,
      });
      const result = await resultOf(config, store, await Promise.race([tested, stopped]), started);
      await writeResult(result);
      state = { ...state, phase: Phase.FINISHED };
      server.federation.finish();
      await Promise.race([farewell(server, progress), stopped.catch(() => {})]);
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

/** @throws if clients keep what does not go together */
function assertFit(config: Config, clients: readonly RemoteClient[]): void {
  const kept = new Set(clients.map(({ facts }) => facts.layersKept));
  if (usesFedamp(config.federation) && config.split.adapters === 'client-layers' && kept.size > 1)
    throw new Error(
      "serve: under fedamp a layer that only two clients hold can be mixed of the other's alone, which remote clients must not see; let all join with the same --k",
    );
}

/** What config.json says: data is the clients' affair. */
function recordOf({ data: _, ...settings }: Config, { checkpoint }: ModelParts) {
  return { ...settings, modelHash: checkpoint.hash, clients: 'remote' };
}

async function openRecorder(folder: string, progress: Progress): Promise<Recording> {
  const recording = await openRecording({ folder, onNote: progress.line });
  progress.line(
    `recording all that clients send, states and adapters included, to ${folder}: keep it as their data, for an audit of this server only`,
  );
  return recording;
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
    ...(client.crosses && { crosses: client.crosses }),
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

/** Clients hear within seconds that the run is over, if they are there. */
async function farewell(server: OpenServer, progress: Progress): Promise<void> {
  const waiting = setTimeout(() => {
    progress.line(
      `the result is written; waiting for ${server.present().join(', ')} to hear that the run is over, ${idleSeconds} s at most (Ctrl-C: no longer)`,
    );
  }, 10_000);
  await server.left().finally(() => clearTimeout(waiting));
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
    const reason = new Error('serve: stopped; complete rounds are safe, go on with --resume');
    work.abort(reason);
    reject(reason);
  };
  if (signal?.aborted) stop();
  signal?.addEventListener('abort', stop, { once: true });
  stopped.catch(() => {});
  return { stopped, work: work.signal };
}
