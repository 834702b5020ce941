// The server's edge over real sockets: who is let in, what anyone may see, what is too large, and how it ends.
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { get as httpGet, type IncomingMessage } from 'node:http';
import { connect } from 'node:http2';
import { get as httpsGet } from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  Code,
  ConnectError,
  type ConnectRouter,
  createClient,
  type HandlerContext,
} from '@connectrpc/connect';
import { pino } from 'pino';
import { afterAll, expect, onTestFinished, test, vi } from 'vitest';
import { FederationService } from '#proto/federation_pb';
import { type ClientTransportOptions, clientTransport } from '../src/client/transport.ts';
import { createKeys, writeKeys } from '../src/keys.ts';
import { authenticator, readTokens } from '../src/server/credentials.ts';
import { clientKey } from '../src/server/identity.ts';
import { type Listening, listen } from '../src/server/listen.ts';
import { serverMetrics } from '../src/server/metrics.ts';

const folder = await mkdtemp(join(tmpdir(), 'fellrec-listen-'));
afterAll(() => rm(folder, { recursive: true, force: true }));
const file = (name: string) => join(folder, name);
const keyFiles = await createKeys({ clients: ['anna', 'bert'], hosts: ['localhost'], days: 1 });
await writeKeys(folder, keyFiles, { force: false });
// Another authority's, of the same names.
const foreign = await createKeys({ clients: ['anna'], hosts: ['localhost'], days: 1 });
await writeKeys(file('foreign'), foreign, { force: false });
const textOf = (name: string) => keyFiles.find((made) => made.name === name)!.text;
const token = (client: string) => textOf(`${client}.token`).trim();

const tls = { cert: textOf('server.crt'), key: textOf('server.key') };
const clientCa = textOf('ca.crt');
const tokens = await readTokens(file('tokens.json'));

interface Started extends Listening {
  readonly logs: string[];
  /** Client of the service. */
  client(credentials?: Partial<ClientTransportOptions>): Promise<ReturnType<typeof clientOf>>;
}
const clientOf = (transport: Awaited<ReturnType<typeof clientTransport>>) =>
  createClient(FederationService, transport);

type GetRound = (
  sessionId: string,
  context: HandlerContext,
) => Promise<{ round: number }> | { round: number };

/** A server whose GetRound is the given one, and whose Upload counts bytes. */
async function start({
  getRound = () => ({ round: 7 }),
  takes = { tokens, clientCa: true },
  secure = true,
  host = 'localhost',
  metrics = serverMetrics(),
}: {
  getRound?: GetRound;
  takes?: Parameters<typeof authenticator>[0];
  secure?: boolean;
  host?: string;
  metrics?: ReturnType<typeof serverMetrics>;
} = {}): Promise<Started> {
  const logs: string[] = [];
  const listening = await listen({
    host,
    port: 0,
    ...(secure && { tls: { ...tls, ...(takes.clientCa && { clientCa }) } }),
    routes: (router: ConnectRouter) =>
      router.service(FederationService, {
        getRound: ({ sessionId }, context) => getRound(sessionId, context),
        async upload(requests) {
          for await (const { part } of requests)
            if (part.case === 'head') throw new ConnectError('no', Code.FailedPrecondition);
          return {};
        },
        async *download({ offset }) {
          yield { data: new Uint8Array(1000) };
          if (offset > 0n) throw new ConnectError('beyond', Code.OutOfRange);
        },
      }),
    authenticator: authenticator(takes),
    metrics,
    log: pino({ level: 'debug', base: null }, { write: (line: string) => logs.push(line) }),
    maxMessageBytes: 100_000,
  });
  onTestFinished(() => listening.close(0));
  const ca = secure ? { ca: file('ca.crt') } : {};
  return {
    ...listening,
    logs,
    client: async (credentials = { token: file('anna.token') }) =>
      clientOf(await clientTransport({ server: listening.address, ...ca, ...credentials })),
  };
}

const failure = async (call: Promise<unknown>) => {
  const reason = await call.then(
    () => undefined,
    (error: unknown) => error,
  );
  return reason instanceof ConnectError ? `${Code[reason.code]}: ${reason.rawMessage}` : `${reason}`;
};

/** Whom the server takes the sender of such credentials for. */
async function identityOf(server: Started, credentials: Partial<ClientTransportOptions>): Promise<string> {
  return failure((await server.client(credentials)).getRound({}));
}
const whoami = (context: HandlerContext): never => {
  throw new ConnectError(context.values.get(clientKey), Code.OutOfRange);
};
const certificate = (name: string) => ({ cert: file(`${name}.crt`), key: file(`${name}.key`) });

/** A promise that a test settles. */
function gate() {
  let open = () => {};
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { open, opened };
}

test('a client is who its token or its certificate says', async () => {
  const server = await start({ getRound: (_, context) => whoami(context) });
  expect(await identityOf(server, { token: file('anna.token') })).toBe('OutOfRange: anna');
  expect(await identityOf(server, certificate('bert'))).toBe('OutOfRange: bert');
  expect(await identityOf(server, { token: file('bert.token'), ...certificate('bert') })).toBe(
    'OutOfRange: bert',
  );
});

test('nobody is let in without credentials that hold', async () => {
  let reached = 0;
  const server = await start({ getRound: () => ({ round: ++reached }) });
  const missing = `Unauthenticated: credentials are missing: send a token ("authorization: Bearer ...") or a certificate of the server's client CA`;
  expect(await identityOf(server, {})).toBe(missing);
  expect(await identityOf(server, certificate('foreign/anna'))).toBe(missing);
  expect(await identityOf(server, certificate('server'))).toBe(missing);
  expect(await identityOf(server, { token: file('foreign/anna.token') })).toBe(
    "Unauthenticated: the token is no client's",
  );
  expect(await identityOf(server, { token: file('foreign/anna.token'), ...certificate('anna') })).toBe(
    "Unauthenticated: the token is no client's",
  );
  expect(await identityOf(server, { token: file('anna.token'), ...certificate('bert') })).toBe(
    'Unauthenticated: token and certificate are of different clients',
  );
  expect(reached).toBe(0);
  // What is nobody's beside a token that holds does no harm.
  expect(await identityOf(server, { token: file('bert.token'), ...certificate('foreign/anna') })).toBe(
    'undefined',
  );
}, 20_000);

test.each([
  [
    'tokens alone',
    { tokens },
    certificate('anna'),
    'credentials are missing: send a token ("authorization: Bearer ...")',
  ],
  [
    'certificates alone',
    { clientCa: true },
    { token: file('anna.token') },
    'this server takes no tokens: send a certificate of its client CA alone',
  ],
])('a server that takes %s', async (_, takes, credentials, problem) => {
  const server = await start({ takes });
  expect(await identityOf(server, credentials)).toBe(`Unauthenticated: ${problem}`);
});

test('a server that nobody could join is none', () => {
  expect(() => authenticator({})).toThrow('nobody could take part');
});

test.each([
  ['Bearer'],
  ['Bearer '],
  [`Basic ${token('anna')}`],
  [`Bearer ${token('anna')} ${token('anna')}`],
  [`Bearer ${token('anna')},`],
  [`bearer${token('anna')}`],
  [`Bearer ${'a'.repeat(600)}`],
  [''],
])('a malformed header is refused, and not quoted: %#', async (authorization) => {
  const server = await start();
  const client = await server.client({});
  const refused = failure(client.getRound({}, { headers: { authorization } }));
  expect(await refused).toBe('Unauthenticated: the authorization header is not "Bearer" and a token');
});

test('the body of what is nobody’s is not read', async () => {
  const server = await start();
  const session = connect(server.address, { ca: clientCa });
  onTestFinished(() => session.destroy());
  const stream = session.request({
    ':method': 'POST',
    ':path': '/fellrec.v1.FederationService/GetRound',
    'content-type': 'application/proto',
  });
  // Never ended: an answer can only come from the headers.
  stream.write(Buffer.alloc(10));
  const status = await new Promise((resolve) =>
    stream.on('response', (headers) => resolve(headers[':status'])),
  );
  expect(status).toBe(401);
});

test('an upload that is refused ends there, however much its client has to send', async () => {
  const metrics = serverMetrics();
  const server = await start({ metrics });
  const anna = await server.client();
  let sent = 0;
  async function* endless() {
    yield { part: { case: 'head' as const, value: {} } };
    for (; sent < 1e9; sent += 50_000)
      yield { part: { case: 'data' as const, value: new Uint8Array(50_000) } };
  }
  expect(await failure(anna.upload(endless()))).toBe('FailedPrecondition: no');
  expect(sent).toBeLessThan(1e7);
  await vi.waitFor(async () =>
    expect(await metrics.text()).toContain('fellrec_rpc_seconds_count{method="Upload"} 1'),
  );
  expect(await anna.getRound({})).toMatchObject({ round: 7 });
});

interface Answer {
  readonly status: number | undefined;
  readonly text: string;
}
const read = async (answer: IncomingMessage): Promise<Answer> => ({
  status: answer.statusCode,
  text: (await answer.setEncoding('utf8').toArray()).join(''),
});
/** Over HTTP/1.1, with nothing but the authority. */
function get1(address: string, path: string): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const get = address.startsWith('https:') ? httpsGet : httpGet;
    get(`${address}${path}`, { ca: clientCa, agent: false }, (answer) => resolve(read(answer))).on(
      'error',
      reject,
    );
  });
}
/** Over HTTP/2. */
async function get2(address: string, path: string, method = 'GET'): Promise<Answer> {
  const session = connect(address, { ca: clientCa });
  try {
    const stream = session.request({ ':path': path, ':method': method });
    const status = new Promise<number>((resolve, reject) => {
      stream.on('response', (headers) => resolve(Number(headers[':status'])));
      session.on('error', reject);
    });
    return { status: await status, text: (await stream.setEncoding('utf8').toArray()).join('') };
  } finally {
    session.close();
  }
}

test.each([
  ['TLS', true],
  ['plain text', false],
])('health and metrics need no credentials, over HTTP/1.1 and HTTP/2, with %s', async (_, secure) => {
  const { address } = await start({ secure, host: secure ? 'localhost' : '127.0.0.1', takes: { tokens } });
  for (const get of [get1, get2]) {
    expect(await get(address, '/healthz')).toEqual({ status: 200, text: 'ok\n' });
    const { status, text } = await get(address, '/metrics');
    expect(status).toBe(200);
    expect(text).toContain('# TYPE fellrec_rpc_seconds histogram');
    expect((await get(address, '/')).status).toBe(404);
  }
  expect((await get2(address, '/healthz', 'POST')).status).toBe(405);
  // RPCs are for HTTP/2.
  expect((await get1(address, '/fellrec.v1.FederationService/GetRound')).status).toBe(505);
});

test('metrics count RPCs and their failures, also those that no service has seen, and tell no clients apart', async () => {
  const metrics = serverMetrics(() => ({ clientsJoined: 2, queueLength: 1, heldBytes: 12 }));
  metrics.rounds.inc(3);
  const server = await start({ metrics });
  const anna = await server.client();
  await anna.getRound({ sessionId: 'secret-session' });
  await failure(anna.getRound({ sessionId: 'x'.repeat(150_000) }));
  await failure(anna.leave({}));
  for await (const _ of anna.download({})) {
  }
  await failure(
    (async () => {
      for await (const _ of anna.download({ offset: 1n })) {
      }
    })(),
  );
  await failure(
    anna.upload(
      (async function* () {
        yield { part: { case: 'head' as const, value: {} } };
      })(),
    ),
  );
  await identityOf(server, {});

  // An RPC is counted when its stream has closed, which a client need not wait for.
  await vi.waitFor(() => expect(server.logs.filter((line) => line.includes('"rpc"'))).toHaveLength(7));
  const { text } = await get1(server.address, '/metrics');
  for (const line of [
    'fellrec_rounds_total 3',
    'fellrec_held_bytes 12',
    'fellrec_rpc_seconds_count{method="GetRound"} 3',
    'fellrec_rpc_seconds_count{method="Download"} 2',
    'fellrec_rpc_errors_total{method="GetRound",code="resource_exhausted"} 1',
    'fellrec_rpc_errors_total{method="GetRound",code="unauthenticated"} 1',
    'fellrec_rpc_errors_total{method="Leave",code="unimplemented"} 1',
    'fellrec_rpc_errors_total{method="Download",code="out_of_range"} 1',
    'fellrec_rpc_errors_total{method="Upload",code="failed_precondition"} 1',
  ])
    expect(text.split('\n')).toContain(line);
  const value = (name: string) =>
    Number(
      text
        .split('\n')
        .find((line) => line.startsWith(name))
        ?.split(' ')[1],
    );
  expect(value('process_resident_memory_bytes')).toBeGreaterThan(1e7);
  // Two downloads of 1000 bytes, and little else.
  expect(value('fellrec_rpc_bytes_total{direction="sent"}')).toBeGreaterThan(2000);
  expect(value('fellrec_rpc_bytes_total{direction="sent"}')).toBeLessThan(4000);
  expect(value('fellrec_rpc_bytes_total{direction="received"}')).toBeGreaterThan(10);
  expect(text).not.toMatch(/anna|bert|secret-session/);
});

test('a line of the log for each RPC, without tokens or what messages hold', async () => {
  const server = await start({
    getRound: (session) => {
      if (session === 'broken') throw new Error('a bug');
      return { round: 1 };
    },
  });
  const anna = await server.client();
  await anna.getRound({ sessionId: 'secret-session' });
  expect(await failure(anna.getRound({ sessionId: 'broken' }))).toBe('Internal: internal error');
  const nobody = await server.client({});
  await failure(nobody.getRound({}, { headers: { authorization: `Bearer ${token('bert')}x` } }));
  await identityOf(server, {});
  await server.close();
  const lines = server.logs.map((line) => JSON.parse(line));
  expect(lines.filter(({ msg }) => msg === 'rpc')).toEqual([
    expect.objectContaining({
      level: 20,
      method: 'GetRound',
      client: 'anna',
      code: 'ok',
      receivedBytes: 16,
      sentBytes: 2,
    }),
    expect.objectContaining({ level: 40, method: 'GetRound', client: 'anna', code: 'internal' }),
    expect.objectContaining({ level: 40, method: 'GetRound', client: '', code: 'unauthenticated' }),
    expect.objectContaining({ level: 40, method: 'GetRound', client: '', code: 'unauthenticated' }),
  ]);
  expect(lines.find(({ msg }) => msg === 'a service failed')).toMatchObject({
    method: 'GetRound',
    stack: expect.stringContaining('a bug'),
  });
  const text = server.logs.join('');
  for (const secret of ['secret-session', token('anna'), token('bert'), 'Bearer'])
    expect(text).not.toContain(secret);
});

test('a client that goes cancels its RPC, which is no failure of the service', async () => {
  const entered = gate();
  const server = await start({
    getRound: async (_, { signal }) => {
      entered.open();
      await sleep(60_000, undefined, { signal });
      return { round: 1 };
    },
  });
  const going = new AbortController();
  const call = failure((await server.client()).getRound({}, { signal: going.signal }));
  await entered.opened;
  going.abort();
  expect(await call).toMatch(/^Canceled: /);
  await vi.waitFor(() => expect(server.logs.join('')).toContain('"code":"canceled"'));
  await server.close();
  expect(server.logs.join('')).not.toContain('a service failed');
});

test('what is too large is refused, either way', async () => {
  const server = await start();
  const anna = await server.client();
  expect(await failure(anna.getRound({ sessionId: 'x'.repeat(100_001) }))).toMatch(/^ResourceExhausted: /);
  const half = await server.client({ token: file('anna.token'), maxMessageBytes: 500 });
  expect(await failure(half.getRound({ sessionId: 'x'.repeat(501) }))).toMatch(/^ResourceExhausted: /);
  expect(await anna.getRound({ sessionId: 'x'.repeat(99_000) })).toMatchObject({ round: 7 });
});

test('an end answers what is in flight, and refuses what is new', async () => {
  const [entered, answered] = [gate(), gate()];
  const server = await start({
    getRound: async (session, { signal }) => {
      if (session === 'slow') {
        entered.open();
        await answered.opened;
        signal.throwIfAborted();
      }
      return { round: 5 };
    },
  });
  const anna = await server.client();
  const slow = anna.getRound({ sessionId: 'slow' });
  await entered.opened;
  const end = server.close();
  expect(await get1(server.address, '/healthz')).toEqual({ status: 503, text: 'draining\n' });
  expect(await failure(anna.getRound({}))).toBe('Unavailable: the server is going down');
  answered.open();
  expect(await slow).toMatchObject({ round: 5 });
  await end;
  expect(await failure(anna.getRound({}))).toMatch(/^Unavailable: .*ECONNREFUSED/);
  await expect(get1(server.address, '/healthz')).rejects.toThrow('ECONNREFUSED');
});

test('an end does not wait for ever: it says so to services, then cuts', async () => {
  const entered = gate();
  const aborted: unknown[] = [];
  const server = await start({
    getRound: async (session, { signal }) => {
      signal.addEventListener('abort', () => aborted.push(session));
      entered.open();
      if (session === 'deaf') await new Promise(() => {});
      await sleep(60_000, undefined, { signal }).catch(() => {});
      throw signal.reason;
    },
  });
  const anna = await server.client();
  const heeding = failure(anna.getRound({ sessionId: 'heeding' }));
  const deaf = failure(anna.getRound({ sessionId: 'deaf' }));
  await entered.opened;
  await sleep(50);
  const since = performance.now();
  await server.close(100);
  expect(performance.now() - since).toBeLessThan(5000);
  expect(await heeding).toBe('Unavailable: the server is going down');
  expect(await deaf).not.toBe('undefined');
  expect(aborted.sort()).toEqual(['deaf', 'heeding']);
});

test('plain text is for loopback addresses', async () => {
  for (const host of ['0.0.0.0', '::', '192.0.2.1', 'example.org'])
    await expect(start({ secure: false, host })).rejects.toThrow('listen: without TLS');
  for (const host of ['127.0.0.1', 'localhost', '::1']) {
    const server = await start({ secure: false, host, takes: { tokens } });
    expect(await (await server.client()).getRound({})).toMatchObject({ round: 7 });
  }
});

test('a port that is taken, keys that do not fit', async () => {
  const { port } = await start();
  const rest = {
    host: 'localhost',
    routes: () => {},
    authenticator: authenticator({ tokens }),
    metrics: serverMetrics(),
    log: pino({ level: 'silent' }),
    maxMessageBytes: 1000,
  };
  await expect(listen({ ...rest, tls, port })).rejects.toThrow(`listen: port ${port} of localhost is taken`);
  const key = foreign.find(({ name }) => name === 'server.key')!.text;
  await expect(listen({ ...rest, tls: { ...tls, key }, port: 0 })).rejects.toThrow(
    'listen: certificate and key are of no use',
  );
});

test.each([
  [{ server: 'http://example.org' }, 'cross the network in the clear'],
  [{ server: 'http://192.0.2.1:7443', token: file('anna.token') }, 'cross the network in the clear'],
  [{ server: 'localhost:7443' }, 'write it as https://localhost:7443'],
  [{ server: 'https://localhost:7443/path' }, 'write it as'],
  [{ server: 'https://user:word@localhost' }, 'write it as'],
  [{ server: 'http://localhost', ca: file('ca.crt') }, 'certificates need https:'],
  [{ server: 'https://localhost', cert: file('anna.crt') }, 'go together'],
  [{ server: 'https://localhost', key: file('anna.key') }, 'go together'],
  [
    { server: 'https://localhost', ca: file('none') },
    `the CA cannot be read from ${file('none')}: no such file`,
  ],
  [{ server: 'https://localhost', token: folder }, `the token cannot be read from ${folder}: EISDIR`],
  [{ server: 'https://localhost', token: file('ca.key') }, 'ca.key holds no token'],
  [{ server: 'https://localhost', ca: file('tokens.json') }, 'tokens.json: '],
  [{ server: 'https://localhost', cert: file('anna.crt'), key: file('bert.key') }, 'key values mismatch'],
])('a transport is refused: %j', async (options, message) => {
  await expect(clientTransport(options)).rejects.toThrow(message);
});

test('a server that is not the right one is named', async () => {
  const server = await start();
  const ask = async (options: Partial<ClientTransportOptions>) =>
    failure((await server.client({ token: file('anna.token'), ...options })).getRound({}));
  expect(await ask({ ca: file('foreign/ca.crt') })).toBe(
    `Unauthenticated: ${server.address}: the server's certificate is not of the authority in ${file('foreign/ca.crt')}`,
  );
  expect(await ask({ server: `https://127.0.0.1:${server.port}` })).toBe(
    `Unauthenticated: https://127.0.0.1:${server.port}: the server's certificate is for other hosts than this`,
  );
  const plain = await start({ secure: false, host: '127.0.0.1', takes: { tokens } });
  expect(await ask({ server: plain.address.replace('http:', 'https:') })).toMatch(/does not speak TLS$/);
});

test.each([
  ['', 'is no JSON'],
  ['{"clients":{}}', 'names no client'],
  ['{"clients":{"a/b":"00"}}', 'Invalid key in record'],
  ['{"clients":{"a":"secret"}}', 'the SHA-256 of a token'],
  [`{"clients":{"a":"${'0'.repeat(64)}","b":"${'0'.repeat(64)}"}}`, 'the same token for two clients'],
  [`{"clients":{},"more":1}`, 'Unrecognized key'],
  [' '.repeat(2 ** 20 + 1), 'larger than 1048576 bytes'],
])('tokens are refused: %#', async (text, message) => {
  const path = file('wrong.json');
  await writeFile(path, text);
  await expect(readTokens(path)).rejects.toThrow(message);
  await expect(readTokens(path)).rejects.not.toThrow('secret');
});
