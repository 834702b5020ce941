// What lies between a client and the server, and goes wrong on command. It has the server's certificate and speaks HTTP/2
// to both sides, so it knows calls by their names: an answer can be lost after the server did the work.
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import {
  type ClientHttp2Session,
  connect,
  createSecureServer,
  type IncomingHttpHeaders,
  type ServerHttp2Session,
  type ServerHttp2Stream,
} from 'node:http2';
import type { AddressInfo } from 'node:net';
import type { TLSSocket } from 'node:tls';

/** A call of a method, by its number from 1; a later one if the connection breaks during that one for another reason. */
interface Which {
  readonly method: string;
  readonly call: number;
}

type Fault = Which &
  (
    | { readonly does: 'lose'; readonly passed: number }
    | { readonly does: 'hold' }
    | { readonly does: 'stall'; readonly afterBytes: number }
  );

export interface TestProxy {
  readonly address: string;
  /** The server answers, a part of the answer passes (0: nothing, 0.5: half), and the connection breaks. */
  lose(which: Which & { readonly passed: number }): Promise<void>;
  /** The server answers, and nothing of it passes. */
  hold(which: Which): Promise<void>;
  /** So many bytes of the request pass, and no more. */
  stall(which: Which & { readonly afterBytes: number }): Promise<void>;
  /** Calls so far. */
  calls(method: string): number;
  close(): Promise<void>;
}

export interface ProxyOptions {
  /** Of the server. */
  readonly address: string;
  /** Files: the server's own, and its authority's certificate. */
  readonly cert: string;
  readonly key: string;
  readonly ca: string;
}

/** Promises of the faults resolve once they have happened. */
export async function openProxy({ address, ...files }: ProxyOptions): Promise<TestProxy> {
  const [cert, key, ca] = await Promise.all([files.cert, files.key, files.ca].map((file) => readFile(file)));
  const connections = new Map<ServerHttp2Session, Connection>();
  const calls = new Map<string, number>();
  const waiting = new Map<Fault, () => void>();

  function expected(fault: Fault): Promise<void> {
    return new Promise((resolve) => waiting.set(fault, resolve));
  }
  function faultOf(method: string, call: number): Fault | undefined {
    return [...waiting.keys()].find((fault) => fault.method === method && fault.call <= call);
  }
  function happened(fault: Fault): void {
    waiting.get(fault)?.();
    waiting.delete(fault);
  }

  const listener = createSecureServer({ cert, key });
  const sockets = new Map<number, TLSSocket>();
  listener.on('secureConnection', (socket: TLSSocket) => sockets.set(socket.remotePort!, socket));
  listener.on('session', (session) => {
    const port = session.socket.remotePort!;
    const beyond = connect(address, { ca });
    // The session itself would say goodbye.
    connections.set(session, { beyond, cut: () => sockets.get(port)!.destroy() });
    for (const side of [session, beyond]) side.on('error', () => side.destroy());
    beyond.once('close', () => session.destroy());
    session.once('close', () => {
      sockets.delete(port);
      connections.delete(session);
      beyond.destroy();
    });
  });
  listener.on('stream', (stream, headers) => {
    const method = headers[':path']!.split('/').at(-1)!;
    const call = (calls.get(method) ?? 0) + 1;
    calls.set(method, call);
    const connection = connections.get(stream.session as ServerHttp2Session)!;
    pass({ ...connection, stream, headers, fault: faultOf(method, call), happened });
  });
  listener.listen(0, '127.0.0.1');
  await once(listener, 'listening');
  return {
    address: `https://127.0.0.1:${(listener.address() as AddressInfo).port}`,
    lose: (which) => expected({ ...which, does: 'lose' }),
    hold: (which) => expected({ ...which, does: 'hold' }),
    stall: (which) => expected({ ...which, does: 'stall' }),
    calls: (method) => calls.get(method) ?? 0,
    async close() {
      for (const session of connections.keys()) session.destroy();
      listener.close();
      await once(listener, 'close');
    },
  };
}

interface Connection {
  readonly beyond: ClientHttp2Session;
  /** Breaks the client's side, without a word. */
  readonly cut: () => void;
}

interface Passing extends Connection {
  readonly stream: ServerHttp2Stream;
  readonly headers: IncomingHttpHeaders;
  readonly fault: Fault | undefined;
  readonly happened: (fault: Fault) => void;
}

/** One call, there and back. An answer passes when it is complete. */
function pass({ stream, headers, beyond, cut, fault, happened }: Passing): void {
  const request = beyond.request(headers);
  stream.on('error', () => request.close());
  request.on('error', () => stream.close());
  stream.once('close', () => request.close());

  let leftBytes = fault?.does === 'stall' ? fault.afterBytes : Number.POSITIVE_INFINITY;
  stream.on('data', (data: Buffer) => {
    if (leftBytes === 0) return;
    request.write(data.subarray(0, leftBytes));
    leftBytes = Math.max(0, leftBytes - data.length);
    if (leftBytes === 0) happened(fault!);
  });
  stream.once('end', () => leftBytes > 0 && request.end());

  let answered: IncomingHttpHeaders = {};
  const parts: Buffer[] = [];
  request.once('response', (found) => {
    answered = found;
  });
  request.on('data', (data: Buffer) => parts.push(data));
  request.once('end', () => {
    if (stream.destroyed) return;
    const body = Buffer.concat(parts);
    if (fault?.does === 'hold') return happened(fault);
    if (fault?.does !== 'lose') {
      stream.respond(answered);
      stream.end(body);
      return;
    }
    const lose = () => {
      cut();
      happened(fault);
    };
    if (fault.passed === 0) return lose();
    stream.respond(answered);
    stream.write(body.subarray(0, Math.ceil(fault.passed * body.length)), () => setImmediate(lose));
  });
}
