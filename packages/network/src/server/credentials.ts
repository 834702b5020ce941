// Who a request comes from: the client that its bearer token belongs to, or the one that its certificate names.
import { createHash, timingSafeEqual } from 'node:crypto';
import { open } from 'node:fs/promises';
import type { IncomingMessage } from 'node:http';
import type { Http2ServerRequest } from 'node:http2';
import type { TLSSocket } from 'node:tls';
import {
  Code,
  ConnectError,
  type ContextKey,
  createContextKey,
  type HandlerContext,
} from '@connectrpc/connect';
import { z } from 'zod';
import { clientKey } from './identity.ts';

/** What a client may be called: its name goes into file names and into a certificate, which has room for 64. */
export const clientName = z
  .string()
  .regex(/^[\w.-]{1,64}$/, 'letters, digits, "_", "-" and "." only, 64 at most')
  .regex(/[^.]/, 'more than dots');

const tokensSchema = z.strictObject({
  clients: z.record(clientName, z.string().regex(/^[0-9a-f]{64}$/, 'the SHA-256 of a token in hexadecimal')),
});

/** `tokens.json`: the server knows hashes only, so whoever reads the file cannot be a client. */
export type TokensFile = z.infer<typeof tokensSchema>;

/** SHA-256 of each client's token, by the client's name. */
export type Tokens = ReadonlyMap<string, Buffer>;

const maxTokensFileBytes = 2 ** 20;

/** Reads `tokens.json`. @throws if it cannot be read, is larger than 1 MiB, or holds anything else. */
export async function readTokens(file: string): Promise<Tokens> {
  const wrong = (what: string, cause?: unknown) => new Error(`tokens: ${file} ${what}`, { cause });
  const text = await readAtMost(file, maxTokensFileBytes).catch((cause) => {
    throw wrong(`cannot be read: ${cause.message}`, cause);
  });
  let raw: unknown;
  try {
    raw = JSON.parse(text);
  } catch {
    // The parser's message quotes the file.
    throw wrong('is no JSON');
  }
  const parsed = tokensSchema.safeParse(raw);
  if (!parsed.success) throw wrong(`is no tokens file:\n${z.prettifyError(parsed.error)}`);
  const tokens = Object.entries(parsed.data.clients);
  if (tokens.length === 0) throw wrong('names no client');
  if (new Set(tokens.map(([, hash]) => hash)).size < tokens.length)
    throw wrong('has the same token for two clients');
  return new Map(tokens.map(([client, hash]) => [client, Buffer.from(hash, 'hex')]));
}

async function readAtMost(file: string, maxBytes: number): Promise<string> {
  const handle = await open(file);
  try {
    const buffer = Buffer.alloc(maxBytes + 1);
    const { bytesRead } = await handle.read(buffer, 0, buffer.length, 0);
    if (bytesRead > maxBytes) throw new Error(`it is larger than ${maxBytes} bytes`);
    return buffer.toString('utf8', 0, bytesRead);
  } finally {
    await handle.close();
  }
}

export function hashToken(token: string): Buffer {
  return createHash('sha256').update(token).digest();
}

/** What credentials a server takes; at least one kind. */
export interface CredentialOptions {
  readonly tokens?: Tokens;
  /** Whether certificates count. `listen` has to be given the authority that they are checked against. */
  readonly clientCa?: boolean;
}

type NodeRequest = IncomingMessage | Http2ServerRequest;

/** A client, or why a request is nobody's: a sentence for whoever sent it, in which nothing of the request occurs. */
export type Identity =
  | { readonly client: string; readonly problem?: undefined }
  | { readonly client: ''; readonly problem: string };

export interface Authenticator {
  /** Clients that have a token, in the file's order; whom the authority made certificates for is not known. */
  readonly clients: readonly string[];
  identify(request: NodeRequest): Identity;
  /** The client's name; empty if the request is nobody's. */
  clientOf(request: NodeRequest): string;
}

/** Takes bearer tokens, certificates, or either. A request that has both must have both of one client. */
export function authenticator({ tokens = new Map(), clientCa = false }: CredentialOptions): Authenticator {
  if (tokens.size === 0 && !clientCa)
    throw new Error('credentials: nobody could take part; give tokens, a client CA, or both');
  const ways = [
    tokens.size > 0 && 'a token ("authorization: Bearer ...")',
    clientCa && "a certificate of the server's client CA",
  ].filter((way) => way !== false);
  const nobody = (problem: string): Identity => ({ client: '', problem });
  const identify = (request: NodeRequest): Identity => {
    const certified = clientCa ? certifiedClient(request) : undefined;
    const header = request.headers.authorization;
    if (header === undefined)
      return certified ? { client: certified } : nobody(`credentials are missing: send ${ways.join(' or ')}`);
    if (tokens.size === 0)
      return nobody('this server takes no tokens: send a certificate of its client CA alone');
    // RFC 6750, section 2.1
    const token = /^Bearer +([\w.~+/-]{1,512}=*)$/i.exec(header)?.[1];
    if (token === undefined) return nobody('the authorization header is not "Bearer" and a token');
    const client = clientOfToken(tokens, token);
    if (client === undefined) return nobody("the token is no client's");
    if (certified && certified !== client) return nobody('token and certificate are of different clients');
    return { client };
  };
  return { clients: [...tokens.keys()], identify, clientOf: (request) => identify(request).client };
}

/** Compares with every client's hash in constant time, so that how long it takes says nothing about any of them. */
function clientOfToken(tokens: Tokens, token: string): string | undefined {
  const hash = hashToken(token);
  let found: string | undefined;
  for (const [client, expected] of tokens) if (timingSafeEqual(hash, expected)) found = client;
  return found;
}

/** The name in a certificate that TLS has found to be of the client CA, in time and for clients. */
function certifiedClient(request: NodeRequest): string | undefined {
  const socket = request.socket as Partial<TLSSocket> | undefined;
  if (socket?.authorized !== true) return undefined;
  const name = clientName.safeParse(socket.getPeerCertificate?.().subject?.CN);
  return name.success ? name.data : undefined;
}

/** Why nobody was authenticated; set beside `clientKey`. */
export const problemKey: ContextKey<string> = createContextKey('credentials are missing', {
  description: 'what is wrong with the credentials',
});

/** Request gate: refuses what is nobody's (UNAUTHENTICATED) before any of its body is read. */
export function requireClient({ values }: HandlerContext): void {
  if (values.get(clientKey) === '') throw new ConnectError(values.get(problemKey), Code.Unauthenticated);
}
