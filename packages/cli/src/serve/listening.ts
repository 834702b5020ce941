// What listens for the run's clients: the sessions, the federation's tasks and the middle layers.
import { readFile } from 'node:fs/promises';
import { isMiddle } from '@fellrec/models';
import {
  type authenticator,
  type FederationServer,
  FederationService,
  type FederationServiceOptions,
  federationService,
  type JoinFacts,
  LayersService,
  type Listening,
  layersService,
  listen,
  openSessions,
  type Recording,
  type RosterOptions,
  type ServerMetrics,
  type ServerReadings,
  serverLog,
  turns,
} from '@fellrec/network';
import type { ModelParts } from '../backends.ts';
import type { Config } from '../config.ts';
import { servedMiddles } from '../middles.ts';
import { holds, middleOptions } from '../split.ts';
import type { ServeOptions } from './options.ts';

const cacheSeconds = 300;
/**
 * A client says nothing while it computes a step of its own. Of one that is gone for good the memory is free then: before
 * others, who wait for it, give up after the 600 s of `join --give-up`.
 */
export const idleSeconds = 300;
const maxMessageBytes = 64 * 2 ** 20;
const maxUploadBytes = 4 * 2 ** 30;

export interface OpenServer {
  readonly listening: Listening;
  readonly federation: FederationServer;
  readings(): ServerReadings;
  /** Clients that have a session. */
  present(): readonly string[];
  /** Once no client has a session any more. */
  left(): Promise<void>;
  close(): Promise<void>;
}

export type OpenOptions = ServeOptions &
  Pick<RosterOptions, 'expected' | 'quorum' | 'known' | 'unfit'> &
  Pick<FederationServiceOptions, 'onFailed' | 'runState'> & {
    readonly config: Config;
    readonly model: ModelParts;
    readonly identities: ReturnType<typeof authenticator>;
    readonly metrics: ServerMetrics;
    readonly recording: Recording | undefined;
  };

export async function open({
  config,
  model,
  identities,
  metrics,
  recording,
  ...o
}: OpenOptions): Promise<OpenServer> {
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
    open(session, taskId) {
      if (taskId !== undefined) federation.assertTask(session.client, taskId);
      return middles.open(session.facts.layersKept, taskId);
    },
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
    unfit: o.unfit,
    waitSeconds: o.waitSeconds,
    model: { hash: model.checkpoint.hash, layers: { count, first } },
    settingsJson: JSON.stringify(settingsOf(config)),
    runState: o.runState,
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
    interceptor: recording?.interceptor,
  });
  return {
    listening,
    federation,
    readings: () => ({
      clientsJoined: sessions.clients().length,
      queueLength: shared.queueLength(),
      heldBytes: layers.heldBytes(),
    }),
    present: () => sessions.clients(),
    left: () => sessions.empty(),
    async close() {
      const closed = listening.close();
      federation.release();
      await closed;
      sessions.close();
    },
  };
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
