// Whether a server begins a run, goes on with one, or refuses before it listens.
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { clientTransport, connect, createKeys, writeKeys } from '@fellrec/network';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { loadConfig } from '../src/config.ts';
import { silent } from '../src/progress.ts';
import { serve } from '../src/serve.ts';
import { embeddedModel, fellrec, filesOf, type Workspace, workspace } from './shared.ts';

let place: Workspace;
let key: (name: string) => string;
beforeAll(async () => {
  place = await workspace();
  key = (name) => join(place.folder, 'keys', name);
  const keys = await createKeys({ clients: ['client-0'], hosts: ['127.0.0.1'], days: 1 });
  await writeKeys(join(place.folder, 'keys'), keys, { force: false });
});
afterAll(() => place?.remove());

const serving = async (settings: Parameters<Workspace['config']>[0], ...more: string[]) =>
  fellrec(
    ...['serve', '-c', await place.config(settings), '--port', '0', '--tokens', key('tokens.json')],
    ...more,
  );

/** Starts a run and stops it as soon as it has begun; its client does nothing. Returns what the server said. */
async function begin(name: string, resume: boolean): Promise<string[]> {
  const config = await loadConfig(await place.config({ name }), [], { remote: true });
  const said: string[] = [];
  const stop = new AbortController();
  const listening = Promise.withResolvers<string>();
  const served = serve(config, {
    host: '127.0.0.1',
    port: 0,
    tokens: key('tokens.json'),
    deadlineSeconds: 60,
    waitSeconds: 60,
    firstLayer: 0,
    maxBytes: 2 ** 30,
    maxTokens: 65_536,
    logLevel: 'silent',
    resume,
    progress: {
      ...silent,
      line: (text) => said.push(text),
      event: ({ type }) => type === 'round-started' && stop.abort(),
    },
    signal: stop.signal,
    onListening: listening.resolve,
  });
  served.catch(listening.reject);
  const token = key('client-0.token');
  const { hash } = JSON.parse((await fellrec('model', 'info', embeddedModel, '--json')).stdout);
  await connect({
    transport: await clientTransport({ server: await listening.promise, token }),
    facts: { modelHash: hash, layersKept: 1, trainSamples: 3, validationSamples: 2, testUsers: 1 },
    giveUpSeconds: 10,
  });
  await expect(served).rejects.toThrow('stopped; complete rounds are safe, go on with --resume');
  return said;
}

test('a run goes on with the settings it began with only', async () => {
  expect(await begin('changed', false)).toEqual([]);
  const before = await filesOf(place.run('changed'));
  const { code, stderr } = await serving(
    { name: 'changed', training: { learningRate: 0.1 }, federation: { rounds: 3 } },
    '--resume',
  );
  expect(
    stderr.replace(place.folder, ''),
  ).toBe(`fellrec: run: /runs/changed was started with another configuration:
  training.learningRate: 0.003, now 0.1
  federation.rounds: 2, now 3
`);
  expect(code).toBe(1);
  expect(await filesOf(place.run('changed'))).toEqual(before);
  expect(await begin('changed', true)).toEqual([]);
});

test('with --resume and nothing to go on with, it says that a new run starts', async () => {
  const said = await begin('new', true);
  expect(said).toEqual([`no run has begun in ${place.run('new')}: a new one starts`]);
  expect(JSON.parse(await readFile(join(place.run('new'), 'clients.json'), 'utf8'))).toMatchObject({
    method: 'remote',
    clients: [{ name: 'client-0', layersKept: 1 }],
  });
});

test('--resume with --force is wrong usage', async () => {
  const { code, stderr } = await serving({ name: 'both' }, '--resume', '--force');
  expect(stderr).toBe('fellrec: serve: --resume goes on with a run, --force replaces it; pass one of them\n');
  expect(code).toBe(2);
});
