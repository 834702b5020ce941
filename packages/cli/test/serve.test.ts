// Whether a server begins a run, goes on with one, or refuses before it listens.
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { clientTransport, connect, createKeys, writeKeys } from '@fellrec/network';
import { importDataset } from '@fellrec/recsys';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { loadConfig } from '../src/config.ts';
import { silent } from '../src/progress.ts';
import type { ServeOptions } from '../src/serve/options.ts';
import { servedHere } from './served.ts';
import { embeddedModel, fellrec, filesOf, interactions, items, type Workspace, workspace } from './shared.ts';

let place: Workspace;
let key: (name: string) => string;
beforeAll(async () => {
  place = await workspace();
  key = (name) => join(place.folder, 'keys', name);
  const keys = await createKeys({ clients: ['client-0', 'client-1'], hosts: ['127.0.0.1'], days: 1 });
  await writeKeys(join(place.folder, 'keys'), keys, { force: false });
});
afterAll(() => place?.remove());

const serving = async (settings: Parameters<Workspace['config']>[0], ...more: string[]) =>
  fellrec(
    ...['serve', '-c', await place.config(settings), '--port', '0', '--tokens', key('tokens.json')],
    ...more,
  );

type Watched = Pick<ServeOptions, 'resume' | 'signal' | 'progress' | 'clients'>;

/** Starts a server, in this process. */
async function serverOf(name: string, o: Watched) {
  const config = await loadConfig(await place.config({ name }), [], { remote: true });
  return servedHere(config, key('tokens.json'), { clients: ['client-0'], ...o });
}

/** Starts a run and stops it as soon as it has begun; its client does nothing. Returns what the server said. */
async function begin(name: string, resume: boolean): Promise<string[]> {
  const said: string[] = [];
  const stop = new AbortController();
  const { served, address } = await serverOf(name, {
    resume,
    progress: {
      ...silent,
      line: (text) => said.push(text),
      event: ({ type }) => type === 'round-started' && stop.abort(),
    },
    signal: stop.signal,
  });
  await enter(address, 'client-0', 3);
  await expect(served).rejects.toThrow('stopped; complete rounds are safe, go on with --resume');
  return said;
}

/** Joins, and does nothing. */
async function enter(address: string, client: string, trainSamples: number): Promise<void> {
  const { hash } = JSON.parse((await fellrec('model', 'info', embeddedModel, '--json')).stdout);
  await connect({
    transport: await clientTransport({ server: address, token: key(`${client}.token`) }),
    facts: { modelHash: hash, layersKept: 1, trainSamples, validationSamples: 2, testUsers: 1 },
    giveUpSeconds: 10,
  });
}

test('a run goes on with the settings it began with only', async () => {
  expect(await begin('changed', false)).toEqual([]);
  const before = await filesOf(place.run('changed'));
  const { code, stderr } = await serving(
    { name: 'changed', training: { learningRate: 0.1 }, federation: { rounds: 3 } },
    '--resume',
  );
  expect(stderr.replace(place.folder, '')).toBe(
    'fellrec: run: /runs/changed was made with other settings: training.learningRate; take the same, or another name, or replace it with --force\n',
  );
  expect(code).toBe(1);
  expect(await filesOf(place.run('changed'))).toEqual(before);
  expect(await begin('changed', true)).toEqual([]);
});

test('a run that is older than a setting goes on with its default', async () => {
  await begin('older', false);
  const file = join(place.run('older'), 'config.json');
  const { federation, ...settings } = JSON.parse(await readFile(file, 'utf8'));
  delete federation.weighting;
  await writeFile(file, JSON.stringify({ ...settings, federation, threads: 3 }));
  expect(await begin('older', true)).toEqual([]);
});

test('a client without training samples is no part of the quorum', async () => {
  const stop = new AbortController();
  const skipped: string[] = [];
  const { served, address } = await serverOf('skipping', {
    clients: ['client-0', 'client-1'],
    progress: {
      ...silent,
      event(event) {
        if (event.type === 'client-skipped') skipped.push(event.client);
        if (event.type === 'round-started') stop.abort();
      },
    },
    signal: stop.signal,
  });
  await enter(address, 'client-0', 3);
  await enter(address, 'client-1', 0);
  await expect(served).rejects.toThrow('stopped');
  expect(skipped).toEqual(['client-1']);
});

test('a folder that holds other files is not replaced by what a client learned', async () => {
  const folder = join(place.folder, 'own');
  await mkdir(folder);
  await writeFile(join(folder, 'thesis.txt'), '');
  const { code, stderr } = await fellrec(
    ...['join', 'https://localhost:1', '--token', key('client-0.token'), '--data', place.folder],
    ...['--model', embeddedModel, '-o', folder],
  );
  expect(stderr).toBe(
    `fellrec: join: ${folder} holds other files (thesis.txt), and what is written replaces the folder; choose another one\n`,
  );
  expect(code).toBe(1);
});

test('with --resume and nothing to go on with, it says that a new run starts', async () => {
  const said = await begin('new', true);
  expect(said).toEqual([`no run has begun in ${place.run('new')}: a new one starts`]);
  expect(JSON.parse(await readFile(join(place.run('new'), 'clients.json'), 'utf8'))).toMatchObject({
    method: 'remote',
    clients: [{ name: 'client-0', layersKept: 1 }],
  });
});

test('what cannot begin is refused before anybody is waited for', async () => {
  const unknown = await serving({ name: 'unknown' }, '--names', 'client-0', 'clinet-1');
  expect(unknown.stderr).toBe(
    `fellrec: serve: clinet-1: no such client in ${key('tokens.json')}, so it could not join; there are client-0, client-1\n`,
  );
  expect(unknown.code).toBe(2);
  await mkdir(place.run('thesis'), { recursive: true });
  await writeFile(join(place.run('thesis'), 'thesis.txt'), '');
  const foreign = await serving({ name: 'thesis' });
  expect(foreign.stderr).toBe(
    `fellrec: run: ${place.run('thesis')} holds other files (thesis.txt); choose another name\n`,
  );
  expect(foreign.code).toBe(1);
});

test('--resume with --force is wrong usage', async () => {
  const { code, stderr } = await serving({ name: 'both' }, '--resume', '--force');
  expect(stderr).toBe('fellrec: serve: --resume goes on with a run, --force replaces it; pass one of them\n');
  expect(code).toBe(2);
});

test('a client that fails tells the server, and its error to nobody else', async () => {
  const data = join(place.folder, 'few');
  const lines = (await readFile(interactions, 'utf8')).split('\n');
  await writeFile(`${data}.tsv`, lines.slice(0, 4).join('\n'));
  const columns = { sequence: 'items' };
  await importDataset({ interactions: `${data}.tsv`, items, columns, kCore: 0, output: data });
  const said: string[] = [];
  const progress = { ...silent, line: (text: string) => said.push(text) };
  const { served, address } = await serverOf('failing', { progress });
  const { code, stderr } = await fellrec(
    ...['join', address, '--token', key('client-0.token'), '--data', data, '--model', embeddedModel],
    // A file, which title vectors cannot be put into.
    ...['--threads', '1', '--cache', key('client-0.token')],
  );
  expect(stderr).toMatch(/^fellrec: EEXIST.+$/m);
  expect(code).toBe(1);
  await expect(served).rejects.toThrow('client-0 left: unknown');
  expect(said).toEqual(['client-0 failed and left: unknown']);
});
