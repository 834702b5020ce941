// Keys: that others (OpenSSL, Node's TLS) take them for what they are to be, and refuse them for anything else.
import { execFile } from 'node:child_process';
import { createHash, X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { createServer, request } from 'node:https';
import { type AddressInfo, isIP } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TLSSocket } from 'node:tls';
import { promisify } from 'node:util';
import { expect, onTestFinished, test } from 'vitest';
import { createKeys, type KeyFile, keysProblems, writeKeys } from '../src/keys.ts';
import { readTokens } from '../src/server/credentials.ts';

const options = { clients: ['client-0', 'client-1'], hosts: ['localhost', '127.0.0.1'], days: 30 };
const files = await createKeys(options);
const textOf = (name: string, of: readonly KeyFile[] = files) => of.find((file) => file.name === name)!.text;

async function scratch(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'fellrec-keys-'));
  onTestFinished(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

test('files: who may read them', async () => {
  const folder = join(await scratch(), 'keys');
  await writeKeys(folder, files, { force: false });
  const modes = await Promise.all(
    (await readdir(folder)).map(async (name) => {
      const { mode } = await stat(join(folder, name));
      return `${(mode & 0o777).toString(8)} ${name}`;
    }),
  );
  expect(modes.sort()).toEqual([
    '600 ca.key',
    '600 client-0.key',
    '600 client-0.token',
    '600 client-1.key',
    '600 client-1.token',
    '600 server.key',
    '600 tokens.json',
    '644 ca.crt',
    '644 client-0.crt',
    '644 client-1.crt',
    '644 server.crt',
  ]);
});

test('existing files are kept, all of them, unless forced; then nobody else may read them either', async () => {
  const folder = await scratch();
  await writeFile(join(folder, 'server.key'), 'mine', { mode: 0o644 });
  await expect(writeKeys(folder, files, { force: false })).rejects.toThrow(
    /has server\.key already; --force replaces/,
  );
  expect(await readdir(folder)).toEqual(['server.key']);
  expect(await readFile(join(folder, 'server.key'), 'utf8')).toBe('mine');

  await writeKeys(folder, files, { force: true });
  expect(await readFile(join(folder, 'server.key'), 'utf8')).toBe(textOf('server.key'));
  expect((await stat(join(folder, 'server.key'))).mode & 0o777).toBe(0o600);
  expect(await readdir(folder)).toHaveLength(files.length);
});

test('certificates are valid from two days ago, for the days asked for, with numbers of their own', () => {
  const certificates = files
    .filter(({ name }) => name.endsWith('.crt'))
    .map(({ text }) => new X509Certificate(text));
  const days = (date: Date) => (date.getTime() - Date.now()) / 86_400_000;
  for (const { validFromDate, validToDate } of certificates) {
    expect(days(validFromDate)).toBeCloseTo(-2, 1);
    expect(days(validToDate)).toBeCloseTo(30, 1);
  }
  expect(new Set(certificates.map(({ serialNumber }) => serialNumber)).size).toBe(4);
  expect(new Set(certificates.map(({ publicKey }) => publicKey.export({ format: 'jwk' }).x)).size).toBe(4);
  expect(certificates[0]!.publicKey.asymmetricKeyDetails).toEqual({ namedCurve: 'prime256v1' });
});

test('tokens: 32 random bytes each, of which the server has hashes alone', async () => {
  const folder = await scratch();
  await writeKeys(folder, files, { force: false });
  const tokens = await readTokens(join(folder, 'tokens.json'));
  expect([...tokens.keys()]).toEqual(options.clients);
  for (const [client, hash] of tokens) {
    const token = textOf(`${client}.token`).trim();
    expect(Buffer.from(token, 'base64url')).toHaveLength(32);
    expect(hash).toEqual(createHash('sha256').update(token).digest());
    expect(textOf('tokens.json')).not.toContain(token);
  }
});

const openssl = await promisify(execFile)('openssl', ['version']).then(
  () => true,
  () => false,
);
test.skipIf(!openssl)('OpenSSL verifies them for their purpose and no other', async () => {
  const folder = await scratch();
  await writeKeys(folder, files, { force: false });
  const verify = async (purpose: string, name: string, ...more: string[]) => {
    const argv = ['verify', '-x509_strict', '-CAfile', 'ca.crt', '-purpose', purpose, ...more, name];
    return promisify(execFile)('openssl', argv, { cwd: folder }).then(
      ({ stdout }) => stdout.trim(),
      ({ stderr }) => /error \d+ .*/.exec(stderr)?.[0],
    );
  };
  expect(await verify('sslserver', 'server.crt')).toBe('server.crt: OK');
  expect(await verify('sslserver', 'server.crt', '-verify_hostname', 'localhost')).toBe('server.crt: OK');
  expect(await verify('sslserver', 'server.crt', '-verify_ip', '127.0.0.1')).toBe('server.crt: OK');
  expect(await verify('sslserver', 'server.crt', '-verify_ip', '127.0.0.2')).toMatch(/IP address mismatch/);
  expect(await verify('sslclient', 'client-0.crt')).toBe('client-0.crt: OK');
  expect(await verify('sslclient', 'server.crt')).toMatch(/purpose/);
  expect(await verify('sslserver', 'client-0.crt')).toMatch(/purpose/);
});

/** An HTTPS server with the keys that says who its peer is; a request to it by a host's name. */
async function handshake(host: string, client?: { cert: string; key: string }): Promise<string> {
  const tls = { cert: textOf('server.crt'), key: textOf('server.key'), ca: textOf('ca.crt') };
  const server = createServer({ ...tls, requestCert: true, rejectUnauthorized: false }, (asked, answer) => {
    const socket = asked.socket as TLSSocket;
    answer.end(`${socket.authorized} ${socket.getPeerCertificate().subject?.CN}`);
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  try {
    return await new Promise((resolve, reject) => {
      const { port } = server.address() as AddressInfo;
      const name = isIP(host) === 0 ? { servername: host } : { host };
      request({ host: '127.0.0.1', port, ca: tls.ca, agent: false, ...client, ...name }, async (answer) => {
        resolve((await answer.setEncoding('utf8').toArray()).join(''));
      })
        .on('error', reject)
        .end();
    });
  } finally {
    server.close();
  }
}
const pair = (name: string, of = files) => ({
  cert: textOf(`${name}.crt`, of),
  key: textOf(`${name}.key`, of),
});

test("Node's TLS takes the server for its hosts only", async () => {
  expect(await handshake('localhost')).toBe('false undefined');
  expect(await handshake('127.0.0.1')).toBe('false undefined');
  await expect(handshake('example.org')).rejects.toThrow(/example\.org/);
});

test("Node's TLS takes clients of this authority, and nothing else for one", async () => {
  expect(await handshake('localhost', pair('client-0'))).toBe('true client-0');
  expect(await handshake('localhost', pair('server'))).toBe('false fellrec test server');
  const others = await createKeys(options);
  expect(await handshake('localhost', pair('client-0', others))).toBe('false client-0');
});

test.each([
  [{ clients: [] }, ['no client is named']],
  [{ clients: ['a/b'] }, ['client "a/b": letters, digits, "_", "-" and "." only, 64 at most']],
  [{ clients: ['..', ''] }, [/client "\.\.": more than dots/, /client "":/]],
  [{ clients: ['a'.repeat(65)] }, [/64 at most/]],
  [{ clients: ['a', 'b', 'A'] }, ['client "A": another one has its name']],
  [{ clients: ['ca', 'Server'] }, [/"ca": its files would be the ca's/, /"Server": its files would be/]],
  [{ hosts: [] }, ['no host is named']],
  [{ hosts: ['a b', '*.org', '::1', 'x.org'] }, [/host "a b" is no host name/, /host "\*\.org" is no/]],
  [{ days: 0 }, ['days: 0 is not from 1 to 3650']],
  [{ days: 1.5, clients: [] }, ['no client is named', /days: 1\.5/]],
])('wrong options are all named: %j', async (wrong, expected) => {
  const found = keysProblems({ ...options, ...wrong });
  expect(found).toEqual(
    expected.map((text) => (typeof text === 'string' ? text : expect.stringMatching(text))),
  );
  await expect(createKeys({ ...options, ...wrong })).rejects.toThrow('keys: ');
});
