// Keys for tests: a certificate authority, the server's certificate, and a certificate and a token for each client.
// Who runs a federation in earnest brings certificates of an authority of their own.
import 'reflect-metadata';
import { KeyObject, randomBytes, webcrypto } from 'node:crypto';
import { access, mkdir, open, rename, rm } from 'node:fs/promises';
import { isIP } from 'node:net';
import { join } from 'node:path';
import {
  AuthorityKeyIdentifierExtension,
  BasicConstraintsExtension,
  ExtendedKeyUsage,
  ExtendedKeyUsageExtension,
  type Extension,
  KeyUsageFlags,
  KeyUsagesExtension,
  SubjectAlternativeNameExtension,
  SubjectKeyIdentifierExtension,
  X509CertificateGenerator,
} from '@peculiar/x509';
import { clientName, hashToken, type TokensFile } from './server/credentials.ts';

export interface KeysOptions {
  /** Names of the clients. */
  readonly clients: readonly string[];
  /** Host names and IP addresses that clients reach the server by. */
  readonly hosts: readonly string[];
  /** Days from now that the certificates are valid. */
  readonly days: number;
}

/** A file to write. Secret ones are for their owner's eyes only. */
export interface KeyFile {
  readonly name: string;
  readonly text: string;
  readonly secret: boolean;
}

const dayMs = 86_400_000;
const maxDays = 3650;
const hostName = /^(?=.{1,253}$)[a-z\d]([a-z\d-]{0,61}[a-z\d])?(\.[a-z\d]([a-z\d-]{0,61}[a-z\d])?)*$/i;
/** Files that the clients' ones must not replace. */
const reserved = ['ca', 'server'];

/** Everything that is wrong with the options, a sentence each; empty if they are right. */
export function keysProblems({ clients, hosts, days }: KeysOptions): string[] {
  // Where file names ignore case, "A.key" is "a.key".
  const files = clients.map((name) => name.toLowerCase());
  return [
    clients.length === 0 && 'no client is named',
    ...clients.map((name) => {
      const { error } = clientName.safeParse(name);
      return error && `client "${name}": ${error.issues.map(({ message }) => message).join('; ')}`;
    }),
    ...clients.map(
      (name, i) => reserved.includes(files[i]!) && `client "${name}": its files would be the ${files[i]}'s`,
    ),
    ...clients.map((name, i) => files.indexOf(files[i]!) < i && `client "${name}": another one has its name`),
    hosts.length === 0 && 'no host is named',
    ...hosts.map(
      (host) => isIP(host) === 0 && !hostName.test(host) && `host "${host}" is no host name or IP address`,
    ),
    !(Number.isInteger(days) && days >= 1 && days <= maxDays) && `days: ${days} is not from 1 to ${maxDays}`,
  ].filter((problem) => typeof problem === 'string');
}

/**
 * Makes `ca`, `server` and each client's `.crt` and `.key`, each client's `.token`, and the server's `tokens.json`, with
 * ECDSA over P-256. @throws on any of `keysProblems`.
 */
export async function createKeys(options: KeysOptions): Promise<KeyFile[]> {
  const problems = keysProblems(options);
  if (problems.length > 0) throw new Error(`keys: ${problems.join('\n')}`);
  const now = Date.now();
  // From two days ago: a clock may be hours wrong.
  const validity = { notBefore: new Date(now - 2 * dayMs), notAfter: new Date(now + options.days * dayMs) };

  const authority = await webcrypto.subtle.generateKey(ecdsa, true, ['sign', 'verify']);
  const issue = async (
    subject: string,
    keys: webcrypto.CryptoKeyPair,
    critical: readonly Extension[],
    others: readonly Extension[] = [],
  ) => {
    const certificate = await X509CertificateGenerator.create({
      serialNumber: serialNumber(),
      subject: [{ CN: [subject] }],
      issuer: [{ CN: ['fellrec test CA'] }],
      ...validity,
      publicKey: keys.publicKey,
      signingKey: authority.privateKey,
      signingAlgorithm: ecdsa,
      extensions: [
        ...critical,
        ...others,
        await SubjectKeyIdentifierExtension.create(keys.publicKey),
        await AuthorityKeyIdentifierExtension.create(authority.publicKey),
      ],
    });
    return `${certificate.toString('pem')}\n`;
  };
  const leaf = async (
    name: string,
    subject: string,
    extensions: readonly Extension[],
  ): Promise<KeyFile[]> => {
    const keys = await webcrypto.subtle.generateKey(ecdsa, true, ['sign', 'verify']);
    const constraints = [
      new BasicConstraintsExtension(false, undefined, true),
      new KeyUsagesExtension(KeyUsageFlags.digitalSignature, true),
    ];
    return [
      shared(`${name}.crt`, await issue(subject, keys, constraints, extensions)),
      privateKey(name, keys),
    ];
  };

  const ca = await issue('fellrec test CA', authority, [
    new BasicConstraintsExtension(true, 0, true),
    new KeyUsagesExtension(KeyUsageFlags.keyCertSign | KeyUsageFlags.cRLSign, true),
  ]);
  const server = await leaf('server', 'fellrec test server', [
    new ExtendedKeyUsageExtension([ExtendedKeyUsage.serverAuth]),
    new SubjectAlternativeNameExtension(
      options.hosts.map((value) => ({ type: isIP(value) ? 'ip' : 'dns', value })),
    ),
  ]);
  const tokens = options.clients.map((name) => [name, randomBytes(32).toString('base64url')] as const);
  const clients = await Promise.all(
    tokens.map(async ([name, token]) => [
      ...(await leaf(name, name, [new ExtendedKeyUsageExtension([ExtendedKeyUsage.clientAuth])])),
      secret(`${name}.token`, `${token}\n`),
    ]),
  );
  const hashes: TokensFile = {
    clients: Object.fromEntries(tokens.map(([name, token]) => [name, hashToken(token).toString('hex')])),
  };
  return [
    shared('ca.crt', ca),
    privateKey('ca', authority),
    ...server,
    secret('tokens.json', `${JSON.stringify(hashes, undefined, 2)}\n`),
    ...clients.flat(),
  ];
}

const ecdsa = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const;

const shared = (name: string, text: string): KeyFile => ({ name, text, secret: false });
const secret = (name: string, text: string): KeyFile => ({ name, text, secret: true });
const privateKey = (name: string, keys: webcrypto.CryptoKeyPair): KeyFile =>
  secret(`${name}.key`, KeyObject.from(keys.privateKey).export({ type: 'pkcs8', format: 'pem' }).toString());

/** 16 random bytes as a positive number without leading zeros (RFC 5280, section 4.1.2.2). */
function serialNumber(): string {
  const bytes = randomBytes(16);
  bytes[0] = (bytes[0]! & 0x3f) | 0x40;
  return bytes.toString('hex');
}

/**
 * Writes the files, secret ones with mode 0600. Each is whole or absent, and without `force` none is written if one of
 * them exists. @throws naming those that exist.
 */
export async function writeKeys(
  folder: string,
  files: readonly KeyFile[],
  { force }: { readonly force: boolean },
): Promise<void> {
  await mkdir(folder, { recursive: true, mode: 0o700 });
  const found = await Promise.all(files.map(({ name }) => exists(join(folder, name))));
  const existing = files.filter((_, i) => found[i]).map(({ name }) => name);
  if (existing.length > 0 && !force)
    throw new Error(`keys: ${folder} has ${existing.join(', ')} already; --force replaces them`);
  for (const { name, text, secret } of files) {
    const partial = join(folder, `.${name}.${process.pid}`);
    try {
      // A new file has the mode that it is opened with; one that is written over keeps its own.
      const file = await open(partial, 'wx', secret ? 0o600 : 0o644);
      try {
        await file.writeFile(text);
        await file.sync();
      } finally {
        await file.close();
      }
      await rename(partial, join(folder, name));
    } finally {
      await rm(partial, { force: true });
    }
  }
}

const exists = (path: string) =>
  access(path).then(
    () => true,
    () => false,
  );
