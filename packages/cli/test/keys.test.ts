// The keys command.
import { X509Certificate } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { fellrec, filesOf, readJson, scratch } from './shared.ts';

const made = [
  'a.crt',
  'a.key',
  'a.token',
  'b.crt',
  'b.key',
  'b.token',
  'ca.crt',
  'ca.key',
  'server.crt',
  'server.key',
  'tokens.json',
];

test('says what it made, how to use it, and whom not to trust with it', async () => {
  const folder = join(await scratch(), 'keys');
  const { code, stdout, stderr } = await fellrec('keys', '--clients', 'a,b', '-o', folder);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  expect(stdout.replaceAll(folder, 'KEYS')).toMatchInlineSnapshot(`
    "For tests: whoever has ca.key can be any client and the server.

    KEYS: ca.crt, ca.key, server.crt, server.key, tokens.json, a.crt, a.key, a.token, b.crt, b.key, b.token

    With tokens:
      fellrec serve ... --tls-cert KEYS/server.crt --tls-key KEYS/server.key --tokens KEYS/tokens.json
      fellrec join https://localhost:7443 --ca KEYS/ca.crt --token KEYS/a.token

    With certificates:
      fellrec serve ... --tls-cert KEYS/server.crt --tls-key KEYS/server.key --client-ca KEYS/ca.crt --names a b
      fellrec join https://localhost:7443 --ca KEYS/ca.crt --cert KEYS/a.crt --key KEYS/a.key
    "
  `);
  expect((await readdir(folder)).sort()).toEqual(made);
  for (const name of ['ca.key', 'a.key', 'a.token'])
    expect(stdout).not.toContain(
      (await readFile(join(folder, name), 'utf8'))
        .split('\n')
        .find((line) => line !== '' && !line.startsWith('-----')),
    );
});

test('--json, hosts and days', async () => {
  const folder = await scratch();
  const argv = ['--host', 'train.example.org', '--host', '::1', '--days', '7', '--json', '-o', folder];
  const { code, stdout } = await fellrec('keys', '--clients', 'a, b', ...argv);
  expect(code).toBe(0);
  const { files, ...rest } = JSON.parse(stdout);
  expect(files.toSorted()).toEqual(made);
  expect(rest).toEqual({
    folder,
    clients: ['a', 'b'],
    hosts: ['train.example.org', '::1'],
    days: 7,
    warning: 'For tests: whoever has ca.key can be any client and the server.',
  });
  const server = new X509Certificate(await readFile(join(folder, 'server.crt')));
  expect(server.checkHost('train.example.org')).toBe('train.example.org');
  expect(server.checkIP('::1')).toBe('::1');
  expect(server.checkHost('localhost')).toBeUndefined();
  expect(Object.keys((await readJson(folder, 'tokens.json')).clients)).toEqual(['a', 'b']);
});

test('existing keys are replaced with --force only', async () => {
  const folder = await scratch();
  const argv = ['keys', '--clients', 'a', '-o', folder];
  await fellrec(...argv);
  const before = await filesOf(folder);
  const { code, stdout, stderr } = await fellrec(...argv);
  expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
  expect(stderr).toContain('ca.crt, ca.key, server.crt');
  expect(await filesOf(folder)).toEqual(before);
  expect((await fellrec(...argv, '--force')).code).toBe(0);
  expect((await filesOf(folder))['ca.key']).not.toBe(before['ca.key']);
});

test.each([
  [['--clients', ''], 'client ""'],
  [['--clients', 'a,a'], 'client "a": another one has its name'],
  [['--clients', '../a'], 'client "../a": letters, digits'],
  [['--clients', 'a', '--host', 'a b'], 'host "a b"'],
  [['--clients', 'a', '--days', '0'], '0 is not above 0'],
  [[], "required option '--clients <names>' not specified"],
])('keys %j is wrong usage', async (argv, message) => {
  const folder = await scratch();
  const { code, stdout, stderr } = await fellrec('keys', ...argv, '-o', folder);
  expect(stderr).toContain(message);
  expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
  expect(await readdir(folder)).toEqual([]);
});
