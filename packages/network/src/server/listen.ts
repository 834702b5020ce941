// The server's edge: one port with RPCs over HTTP/2, and GET /healthz and /metrics over HTTP/1.1 too, for whom a
// certificate or a token is too much to ask: a probe, Prometheus, curl.
import { X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { createServer as createHttp1Server, type IncomingMessage, type ServerResponse } from 'node:http';
import {
  createServer as createHttp2Server,
  createSecureServer,
  type Http2ServerRequest,
  type Http2ServerResponse,
  constants as http2,
  type ServerHttp2Session,
} from 'node:http2';
import { type AddressInfo, createServer, isIPv6, type Server, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  Code,
  ConnectError,
  type ConnectRouter,
  createConnectRouter,
  createContextValues,
  type HandlerContext,
  type Interceptor,
} from '@connectrpc/connect';
import { universalRequestFromNodeRequest, universalResponseToNodeResponse } from '@connectrpc/connect-node';
import type { Logger } from 'pino';
import { isLoopback } from '../loopback.ts';
import { type Authenticator, problemKey, requireClient } from './credentials.ts';
import { clientKey } from './identity.ts';
import { type Call, callKey, failures, logCall, type ServerMetrics } from './metrics.ts';

export interface ListenOptions {
  readonly host: string;
  /** 0: any free one. */
  readonly port: number;
  /** PEM texts. Without, the server speaks in the clear, which only a loopback address may. */
  readonly tls?: {
    readonly cert: string;
    readonly key: string;
    /** The authority of clients' certificates. Without, no certificate is asked for. */
    readonly clientCa?: string;
  };
  readonly routes: (router: ConnectRouter) => void;
  readonly authenticator: Authenticator;
  readonly metrics: ServerMetrics;
  readonly log: Logger;
  /** Largest message, either way. */
  readonly maxMessageBytes: number;
  /** Sees the requests of authenticated clients. */
  readonly interceptor?: Interceptor | undefined;
}

export interface Listening {
  readonly port: number;
  /** Such as "https://localhost:7443". */
  readonly address: string;
  /**
   * Refuses new RPCs (UNAVAILABLE), waits until those in flight are answered, then ends. After `limitMs` their signals
   * are aborted, and shortly after that their connections are cut.
   */
  close(limitMs?: number): Promise<void>;
}

const limits = {
  connections: 256,
  /** At once, on a connection. */
  streams: 32,
  headerBytes: 16 * 1024,
  /** For a TLS handshake, and for the headers of HTTP/1.1. */
  headersMs: 10_000,
  /** For a whole request of HTTP/1.1, of which only headers are wanted. */
  requestMs: 20_000,
  /** Without a byte of an RPC either way. A client waits for a task or for its turn in the middle layers in silence. */
  silentRpcMs: 300_000,
  /** Without anything on a connection. */
  silentConnectionMs: 300_000,
  drainMs: 10_000,
  /** For the answers of services whose signals were aborted, and for peers to hang up. */
  lastWordsMs: 1_000,
  /** Of a stream. HTTP/2's own 64 KiB make a sender wait for the round trip that often. */
  windowBytes: 2 ** 20,
};

type Request = IncomingMessage | Http2ServerRequest;
type Response = ServerResponse | Http2ServerResponse;
type Handler = (request: Request, response: Response) => void;

/** Starts to listen. @throws if the certificate does not fit its key, or the port is taken. */
export async function listen(options: ListenOptions): Promise<Listening> {
  const { host, port, tls, authenticator, metrics, log } = options;
  if (!tls && !isLoopback(host))
    throw new Error(
      `listen: without TLS, tokens and adapters would cross the network in the clear; give a certificate and its key, or listen on 127.0.0.1 instead of "${host}"`,
    );

  let draining = false;
  const ended = new AbortController();
  const inFlight = new Set<Promise<unknown>>();

  // Before anything of a body is read.
  const gate = (context: HandlerContext) => {
    try {
      requireClient(context);
      if (draining) throw new ConnectError('the server is going down', Code.Unavailable);
    } catch (reason) {
      context.values.get(callKey)!.code = ConnectError.from(reason).code;
      throw reason;
    }
  };
  const router = createConnectRouter({
    // Connect alone: its unary answers have a status of HTTP, which calls that no service has seen are counted by.
    grpc: false,
    grpcWeb: false,
    // Elements of tensors hardly compress.
    acceptCompression: [],
    readMaxBytes: options.maxMessageBytes,
    writeMaxBytes: options.maxMessageBytes,
    requestGate: gate,
    interceptors: [failures(log), ...(options.interceptor ? [options.interceptor] : [])],
    shutdownSignal: ended.signal,
  });
  options.routes(router);
  const handlers = new Map(router.handlers.map((handler) => [handler.requestPath, handler]));
  type RpcHandler = ConnectRouter['handlers'][number];

  const rpc = (handler: RpcHandler, request: Http2ServerRequest, response: Http2ServerResponse) => {
    const { client, problem } = authenticator.identify(request);
    const call: Call = { method: handler.method.name, client, receivedBytes: 0, sentBytes: 0 };
    const values = createContextValues().set(clientKey, client).set(callKey, call);
    if (problem !== undefined) values.set(problemKey, problem);
    const since = performance.now();
    const closed = new Promise((resolve) => response.once('close', resolve)).then(() => {
      const seconds = (performance.now() - since) / 1000;
      call.code ??= response.writableEnded ? failureOf(response.statusCode) : Code.Canceled;
      metrics.observe(call, seconds);
      logCall(log, call, seconds);
      inFlight.delete(closed);
    });
    inFlight.add(closed);
    // Once it is answered, a body that nobody reads on would keep the stream open.
    request.stream.once('finish', () => setImmediate(() => request.stream.destroy()));
    request.stream.setTimeout(limits.silentRpcMs, () => request.stream.close(http2.NGHTTP2_CANCEL));

    const answer = async () => {
      const asked = universalRequestFromNodeRequest(request, response, undefined, values);
      const received = counted(asked.body as AsyncIterable<Uint8Array>, (n) => {
        call.receivedBytes += n;
      });
      const answered = await handler({ ...asked, body: received });
      const sent =
        answered.body &&
        counted(answered.body, (n) => {
          call.sentBytes += n;
        });
      await universalResponseToNodeResponse({ ...answered, body: sent }, response);
    };
    answer().catch((reason) => {
      // The client has gone, or what it sent is no request of HTTP.
      call.code ??= ConnectError.from(reason).code;
      request.stream.close(http2.NGHTTP2_CANCEL);
    });
  };

  const handle: Handler = (request, response) => {
    const path = request.url?.split('?', 1)[0] ?? '';
    const handler = handlers.get(path);
    if (handler && 'stream' in request) rpc(handler, request, response as Http2ServerResponse);
    else if (handler) reply(response, 505, 'RPCs need HTTP/2');
    else if (path !== '/healthz' && path !== '/metrics') reply(response, 404, 'not found');
    else if (request.method !== 'GET') reply(response, 405, 'GET only');
    else if (path === '/healthz') reply(response, draining ? 503 : 200, draining ? 'draining' : 'ok');
    else
      metrics.text().then(
        (text) => reply(response, 200, text, metrics.contentType),
        (reason) => {
          log.error({ stack: reason?.stack }, 'metrics failed');
          reply(response, 500, 'metrics failed');
        },
      );
  };

  const sessions = new Set<ServerHttp2Session>();
  const onSession = (session: ServerHttp2Session) => {
    sessions.add(session);
    session.once('close', () => sessions.delete(session));
    // Lets what is in flight go on.
    session.setTimeout(limits.silentConnectionMs, () => session.close());
    session.setLocalWindowSize(4 * limits.windowBytes);
  };
  const server = tls
    ? secureServer(tls, options, handle, onSession)
    : plainServer(options, handle, onSession);
  server.maxConnections = limits.connections;
  const sockets = new Set<Socket>();
  server.on('connection', (socket: Socket) => {
    sockets.add(socket);
    socket.once('close', () => sockets.delete(socket));
  });
  await bind(server, host, port);
  const bound = (server.address() as AddressInfo).port;
  const address = `${tls ? 'https' : 'http'}://${isIPv6(host) ? `[${host}]` : host}:${bound}`;
  log.info({ address }, 'listening');

  const end = async (limitMs: number) => {
    draining = true;
    log.info({ inFlight: inFlight.size }, 'draining');
    // The port stays open, so that probes see that the server is going.
    if (!(await within(limitMs, Promise.all(inFlight)))) {
      ended.abort(new ConnectError('the server is going down', Code.Unavailable));
      await within(limits.lastWordsMs, Promise.all(inFlight));
    }
    const closed = once(server, 'close');
    server.close();
    for (const session of sessions) session.close();
    if (!(await within(limits.lastWordsMs, closed))) for (const socket of sockets) socket.destroy();
    await closed;
    log.info('ended');
  };
  let ending: Promise<void> | undefined;
  return {
    port: bound,
    address,
    close: (limitMs = limits.drainMs) => {
      ending ??= end(limitMs);
      return ending;
    },
  };
}

type OnSession = (session: ServerHttp2Session) => void;

const http1Options = {
  maxHeaderSize: limits.headerBytes,
  headersTimeout: limits.headersMs,
  requestTimeout: limits.requestMs,
  connectionsCheckingInterval: limits.headersMs / 2,
};

const http2Options = ({ maxMessageBytes }: ListenOptions) => ({
  settings: {
    maxConcurrentStreams: limits.streams,
    maxHeaderListSize: limits.headerBytes,
    initialWindowSize: limits.windowBytes,
    enablePush: false,
  },
  // MB of what waits to be sent on a connection, beyond which its new streams are refused: some messages of full size.
  maxSessionMemory: 10 + Math.ceil((4 * maxMessageBytes) / 1e6),
});

function secureServer(
  { cert, key, clientCa }: NonNullable<ListenOptions['tls']>,
  options: ListenOptions,
  handle: Handler,
  onSession: OnSession,
): Server {
  const tlsOptions = {
    cert,
    key,
    minVersion: 'TLSv1.2' as const,
    handshakeTimeout: limits.headersMs,
    // Not rejected without: probes have no certificate. Of whom there is none, no RPC is answered without a token.
    ...(clientCa !== undefined && { ca: clientCa, requestCert: true, rejectUnauthorized: false }),
  };
  try {
    // Node passes over what is no certificate.
    if (clientCa !== undefined) new X509Certificate(clientCa);
    return createSecureServer(
      { ...http2Options(options), ...http1Options, ...tlsOptions, allowHTTP1: true },
      handle,
    ).on('session', onSession);
  } catch (cause) {
    const what = clientCa === undefined ? 'certificate and key' : 'certificate, key and client CA';
    throw new Error(`listen: ${what} are of no use: ${(cause as Error).message}`, { cause });
  }
}

/** HTTP/2 in the clear, and HTTP/1.1 for connections that begin with the G of GET. HTTP/2 begins with "PRI". */
function plainServer(options: ListenOptions, handle: Handler, onSession: OnSession): Server {
  const second = createHttp2Server(http2Options(options), handle).on('session', onSession);
  const first = createHttp1Server(http1Options, handle);
  return createServer((socket) => {
    const destroy = () => socket.destroy();
    socket.setTimeout(limits.headersMs, destroy).on('error', destroy);
    socket.once('readable', () => {
      const begin: Buffer | null = socket.read();
      if (begin === null) return destroy();
      socket.setTimeout(0).off('timeout', destroy);
      socket.unshift(begin);
      (begin[0] === 0x47 ? first : second).emit('connection', socket);
    });
  });
}

async function bind(server: Server, host: string, port: number): Promise<void> {
  try {
    await once(server.listen({ host, port }), 'listening');
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    const what = code === 'EADDRINUSE' ? 'is taken: choose another port' : `cannot be had: ${message}`;
    throw new Error(`listen: port ${port} of ${host} ${what}`, { cause });
  }
}

function reply(
  response: Response,
  status: number,
  text: string,
  contentType = 'text/plain; charset=utf-8',
): void {
  const headers: Record<string, string> = { 'content-type': contentType };
  // Nobody who asks this has more to ask soon, and an idle connection would hold up the end.
  if (!('stream' in response)) headers['connection'] = 'close';
  (response as ServerResponse).writeHead(status, headers).end(`${text.trimEnd()}\n`);
}

/** The code of a unary answer's HTTP status that comes before any service is asked, as Connect maps codes to them. */
function failureOf(status: number): Code | undefined {
  switch (status) {
    case 200:
      return undefined;
    case 400:
      return Code.InvalidArgument;
    case 429:
      return Code.ResourceExhausted;
    case 405:
    case 415:
    case 501:
      return Code.Unimplemented;
    case 499:
      return Code.Canceled;
    default:
      return Code.Internal;
  }
}

/** Counts bytes as they pass. Only `next` is replaced: what else an iterator does when it is stopped stays its own. */
function counted(
  chunks: AsyncIterable<Uint8Array>,
  count: (bytes: number) => void,
): AsyncIterable<Uint8Array> {
  return {
    [Symbol.asyncIterator]() {
      const iterator = chunks[Symbol.asyncIterator]();
      const next = iterator.next.bind(iterator);
      return Object.assign(iterator, {
        next: async () => {
          const result = await next();
          if (!result.done) count(result.value.byteLength);
          return result;
        },
      });
    },
  };
}

/** Whether a promise settles in time. */
async function within(ms: number, promise: Promise<unknown>): Promise<boolean> {
  const timer = new AbortController();
  try {
    return await Promise.race([promise.then(() => true), sleep(ms, false, { signal: timer.signal })]);
  } finally {
    timer.abort();
  }
}
