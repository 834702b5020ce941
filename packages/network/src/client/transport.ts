// How a client reaches its server: RPCs over one HTTP/2 connection, with its token or its certificate.
import { X509Certificate } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import type { ClientHttp2Stream, SecureClientSessionOptions } from 'node:http2';
import { createSecureContext } from 'node:tls';
import { Code, ConnectError, type Interceptor, type Transport } from '@connectrpc/connect';
import { createConnectTransport, Http2SessionManager } from '@connectrpc/connect-node';
import { isLoopback } from '../loopback.ts';

export interface ClientTransportOptions {
  /** Such as "https://localhost:7443". "http:" only for a loopback address. */
  readonly server: string;
  /** File of the authority that the server's certificate is of. Without, those that Node knows. */
  readonly ca?: string;
  /** File that holds the client's token. */
  readonly token?: string;
  /** Files of the client's certificate and its key. */
  readonly cert?: string;
  readonly key?: string;
  /** Largest message, either way. */
  readonly maxMessageBytes?: number;
}

/** What the server may send before it is told that something has arrived. HTTP/2's 64 KiB wait for the round trip often. */
const windowBytes = 2 ** 20;
const keepAlive = { pingIntervalMs: 20_000, pingTimeoutMs: 15_000, idleConnectionTimeoutMs: 240_000 };

/**
 * Reads the credentials; connects with the first RPC, and again whenever the connection is lost.
 * @throws if the options contradict each other or a file is of no use.
 */
export async function clientTransport(options: ClientTransportOptions): Promise<Transport> {
  const { maxMessageBytes = 64 * 2 ** 20 } = options;
  const url = serverUrl(options);
  const [ca, token, cert, key] = await Promise.all([
    contents('CA', options.ca),
    contents('token', options.token),
    contents('certificate', options.cert),
    contents('key', options.key),
  ]);
  const tls = { minVersion: 'TLSv1.2' as const, ...(ca && { ca }), ...(cert && { cert, key }) };
  try {
    // Node passes over what is no certificate.
    if (ca !== undefined) new X509Certificate(ca);
    createSecureContext(tls);
  } catch (cause) {
    const files = [options.ca, options.cert, options.key].filter((file) => file !== undefined);
    throw new Error(`client: ${files.join(', ')}: ${(cause as Error).message}`, { cause });
  }
  const nodeOptions: SecureClientSessionOptions = {
    ...(url.protocol === 'https:' && tls),
    settings: { initialWindowSize: windowBytes, enablePush: false },
    maxSessionMemory: 10 + Math.ceil((4 * maxMessageBytes) / 1e6),
  };
  return createConnectTransport({
    baseUrl: url.origin,
    httpVersion: '2',
    useBinaryFormat: true,
    sessionManager: new Connections(url, keepAlive, nodeOptions),
    // Elements of tensors hardly compress.
    acceptCompression: [],
    readMaxBytes: maxMessageBytes,
    writeMaxBytes: maxMessageBytes,
    interceptors: [
      serverProblems(url, options.ca),
      ...(token === undefined ? [] : [bearer(token, options.token!)]),
    ],
  });
}

class Connections extends Http2SessionManager {
  override async request(...[method, path, headers, options]: Parameters<Http2SessionManager['request']>) {
    // Node writes the brackets of an IPv6 address into no authority, which is none then.
    const authority = new URL(this.authority).host;
    const stream: ClientHttp2Stream = await super.request(
      method,
      path,
      { ...headers, ':authority': authority },
      options,
    );
    if (stream.session?.destroyed === false) stream.session.setLocalWindowSize(4 * windowBytes);
    return stream;
  }
}

function serverUrl({ server, ca, cert, key }: ClientTransportOptions): URL {
  const url = URL.parse(server);
  if (!url || !['http:', 'https:'].includes(url.protocol) || url.href !== `${url.origin}/`)
    throw new Error(`client: the server's address is "${server}"; write it as https://localhost:7443`);
  if (url.protocol === 'http:' && !isLoopback(url.hostname))
    throw new Error(
      `client: ${url.origin}: a token or adapters would cross the network in the clear; use https: with a server that is not on this machine`,
    );
  if (url.protocol === 'http:' && (ca ?? cert) !== undefined)
    throw new Error(`client: ${url.origin}: certificates need https:`);
  if ((cert === undefined) !== (key === undefined))
    throw new Error('client: a certificate and its key go together; one of them is missing');
  return url;
}

/** A file's text without what surrounds it. */
async function contents(what: string, file: string | undefined): Promise<string | undefined> {
  if (file === undefined) return undefined;
  const text = await readFile(file, 'utf8').catch((cause) => {
    const why = cause.code === 'ENOENT' ? 'no such file' : cause.message;
    throw new Error(`client: the ${what} cannot be read from ${file}: ${why}`, { cause });
  });
  if (text.trim() === '') throw new Error(`client: the ${what} file ${file} is empty`);
  return text.trim();
}

function bearer(token: string, file: string): Interceptor {
  // Neither this message nor one of the header's own parser may quote it.
  if (!/^[\w.~+/-]{1,512}=*$/.test(token)) throw new Error(`client: ${file} holds no token`);
  return (next) => (request) => {
    request.header.set('authorization', `Bearer ${token}`);
    return next(request);
  };
}

/** Says in plain words what is wrong with a server that TLS does not trust; trying again would not help. */
function serverProblems({ origin }: URL, ca: string | undefined): Interceptor {
  const authorities = ca === undefined ? 'the authorities that Node knows' : `the authority in ${ca}`;
  return (next) => async (request) => {
    try {
      return await next(request);
    } catch (reason) {
      const problem = codes(reason)
        .map((code) => tlsProblems(code, authorities))
        .find(Boolean);
      if (problem === undefined) throw reason;
      throw new ConnectError(`${origin}: ${problem}`, Code.Unauthenticated, undefined, undefined, reason);
    }
  };
}

function tlsProblems(code: string, authorities: string): string | undefined {
  switch (code) {
    case 'UNABLE_TO_VERIFY_LEAF_SIGNATURE':
    case 'UNABLE_TO_GET_ISSUER_CERT':
    case 'UNABLE_TO_GET_ISSUER_CERT_LOCALLY':
    case 'SELF_SIGNED_CERT_IN_CHAIN':
    case 'DEPTH_ZERO_SELF_SIGNED_CERT':
    case 'CERT_SIGNATURE_FAILURE':
      return `the server's certificate is not of ${authorities}`;
    case 'CERT_HAS_EXPIRED':
    case 'CERT_NOT_YET_VALID':
      return "the server's certificate has expired or is not valid yet, or this machine's clock is wrong";
    case 'ERR_TLS_CERT_ALTNAME_INVALID':
      return "the server's certificate is for other hosts than this";
    case 'ERR_SSL_WRONG_VERSION_NUMBER':
    case 'ERR_SSL_PACKET_LENGTH_TOO_LONG':
      return 'the server does not speak TLS';
    default:
      return undefined;
  }
}

/** Node's codes along a chain of causes. */
function codes(reason: unknown): string[] {
  const found: string[] = [];
  for (let error = reason; error instanceof Error; error = error.cause)
    if ('code' in error && typeof error.code === 'string') found.push(error.code);
  return found;
}
