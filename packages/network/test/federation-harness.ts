// A federation's server with clients beside it, over a transport in memory or over HTTP/2 on a socket.
import { once } from 'node:events';
import http2 from 'node:http2';
import type { AddressInfo, Socket } from 'node:net';
import {
  Code,
  ConnectError,
  type ConnectRouter,
  createClient,
  createRouterTransport,
  type Interceptor,
  type ServiceImpl,
  type Transport,
} from '@connectrpc/connect';
import { connectNodeAdapter, createConnectTransport, Http2SessionManager } from '@connectrpc/connect-node';
import type { Client } from '@fellrec/federation';
import { FederationService } from '#proto/federation_pb';
import { type ConnectOptions, connect } from '../src/client/connection.ts';
import { participate, type Worker } from '../src/client/participate.ts';
import { type FederationServiceOptions, federationService } from '../src/server/federation-service.ts';
import { clientKey } from '../src/server/identity.ts';
import { beforeRun } from '../src/server/run-state.ts';
import { openSessions } from '../src/server/sessions.ts';

export const modelHash = 'ab'.repeat(32);

export type Service = ServiceImpl<typeof FederationService>;

/** Carries calls of a client to a service. */
export interface Carrier {
  /** A transport of the client of this name. */
  transport(client: string, ...interceptors: Interceptor[]): Transport;
  /** Breaks every connection; in memory, where there are none, it throws what a broken one makes a call throw. */
  cut(): void;
  close(): Promise<void>;
}

/** The server takes the client's word for its name. */
export const identify: Interceptor = (next) => (request) => {
  request.contextValues.set(clientKey, request.header.get('x-client') ?? '');
  return next(request);
};
function named(client: string): Interceptor {
  return (next) => (request) => {
    request.header.set('x-client', client);
    return next(request);
  };
}

export async function inMemory(service: Service): Promise<Carrier> {
  const routes = (router: ConnectRouter) => router.service(FederationService, service);
  return {
    transport: (client, ...interceptors) =>
      createRouterTransport(routes, {
        router: { interceptors: [identify] },
        transport: { interceptors: [named(client), ...interceptors] },
      }),
    cut() {
      throw new ConnectError('the line broke', Code.Unavailable);
    },
    async close() {},
  };
}

export async function overHttp2(service: Service): Promise<Carrier> {
  const server = http2.createServer(
    connectNodeAdapter({
      routes: (router) => router.service(FederationService, service),
      interceptors: [identify],
    }),
  );
  const sockets = new Set<Socket>();
  server.on('connection', (socket: Socket) => {
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const baseUrl = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const managers: Http2SessionManager[] = [];
  return {
    transport(client, ...interceptors) {
      const sessionManager = new Http2SessionManager(baseUrl);
      managers.push(sessionManager);
      return createConnectTransport({
        httpVersion: '2',
        baseUrl,
        sessionManager,
        interceptors: [named(client), ...interceptors],
      });
    },
    cut() {
      for (const socket of sockets) socket.destroy();
    },
    async close() {
      for (const manager of managers) manager.abort();
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, 'close');
    },
  };
}

export const carriers = [
  ['in memory', inMemory],
  ['over HTTP/2', overHttp2],
] as const;
export type Carry = (typeof carriers)[number][1];

export type ServerOptions = Pick<FederationServiceOptions, 'expected'> &
  Partial<FederationServiceOptions> & { readonly carry?: Carry; readonly idleSeconds?: number };

export async function startServer({ carry = inMemory, idleSeconds = 60, ...options }: ServerOptions) {
  const sessions = options.sessions ?? openSessions({ maxSessions: 10, idleSeconds });
  const federation = federationService({
    quorum: options.expected.length,
    waitSeconds: 60,
    model: { hash: modelHash },
    settingsJson: '{"seed":1}',
    runState: () => beforeRun,
    maxUploadBytes: 2 ** 20,
    chunkBytes: 16,
    ...options,
    sessions,
  });
  const carrier = await carry(federation.service);
  return {
    sessions,
    federation,
    carrier,
    /** The service as a client of this name may call it. */
    client: (name: string) => createClient(FederationService, carrier.transport(name)),
    async stop(): Promise<void> {
      federation.finish();
      sessions.close();
      await carrier.close();
    },
  };
}
export type TestServer = Awaited<ReturnType<typeof startServer>>;

export const testSamples = { trainSamples: 10, validationSamples: 4, testUsers: 3 };
export const joinFacts = { modelHash, ...testSamples };

/** Works as a client of this process would. */
export function workerOf(client: Client): Worker {
  return {
    train: (parameters, { round, onProgress }) => client.train(parameters, { round, onProgress }),
    evaluate: (parameters, { round }) => client.evaluate(parameters, { round }),
    async test(parameters, { items }) {
      const [x] = (items ?? parameters).get('x')!.data;
      return { metrics: { 'recall@10': x! }, users: testSamples.testUsers, truncated: 1 };
    },
  };
}

export interface Participant {
  readonly transport: Transport;
  readonly worker: Worker;
  readonly trainSamples?: number;
  readonly giveUpSeconds?: number;
  readonly onNote?: (text: string) => void;
}

/** Takes part until the run is over. */
export async function takePart(o: Participant): Promise<void> {
  const { transport, worker, trainSamples = testSamples.trainSamples, giveUpSeconds = 10, onNote } = o;
  const options: ConnectOptions = { transport, facts: { ...joinFacts, trainSamples }, giveUpSeconds };
  const connection = await connect({ ...options, ...(onNote && { onNote }) });
  await participate({ connection, worker, ...(onNote && { onNote }) });
}
