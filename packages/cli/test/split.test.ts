// Clients that keep some layers, in one process: with the middle's adapter trained it is the training of the whole model,
// without it the client has no part in these layers; different clients may keep different ones.
import { existsSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { readAdapter } from '@fellrec/models';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { RunResult } from '../src/index.ts';
import { tinyEncoder, writeTinyEncoder } from './recformer-config.ts';
import { fellrec, readJson, type Workspace, workspace } from './shared.ts';

let place: Workspace;
let encoder: string;
beforeAll(async () => {
  place = await workspace();
  encoder = join(place.folder, 'encoder');
  await writeTinyEncoder(encoder, 1, { ...tinyEncoder, layerCount: 3, attentionWindows: [16, 16, 16] });
});
afterAll(() => place?.remove());

type Settings = Parameters<Workspace['config']>[0];
const backends: Record<string, Settings> = {
  bigrec: { lora: { rank: 2, alpha: 4, dropout: 0.1 } },
  recformer: {
    recommender: 'recformer',
    lora: { rank: 2, alpha: 4, dropout: 0.1 },
    training: { batchSize: 4, learningRate: 0.01 },
  },
};
const settings = (backend: string, name: string, rest: Settings = {}) => ({
  name,
  ...backends[backend],
  ...(backend === 'recformer' && { model: { path: encoder, maxTokens: 128 } }),
  ...rest,
});

async function trained(backend: string, name: string, rest: Settings = {}): Promise<RunResult> {
  const { code, stdout, stderr } = await fellrec(
    'train',
    '-c',
    await place.config(settings(backend, name, rest)),
    '--json',
  );
  expect(stderr + code).toMatch(/0$/);
  return JSON.parse(stdout);
}

const losses = ({ clients }: RunResult) =>
  clients.flatMap(({ firstLoss, lastLoss }) => [firstLoss!, lastLoss!]);

describe.each(Object.keys(backends))('%s', (backend) => {
  test.each([0, 1])('k = %i with adapters in all layers is training of the whole model', async (k) => {
    const whole = await trained(backend, `${backend}-whole-${k}`);
    const split = await trained(backend, `${backend}-all-${k}`, { split: { k, adapters: 'all-layers' } });
    for (const [i, loss] of losses(whole).entries()) expect(losses(split)[i]).toBeCloseTo(loss, 5);
    expect(split.pooled).toEqual(whole.pooled);
  });

  test('clients keep different layers, and have adapters in these', async () => {
    const name = `${backend}-different`;
    const result = await trained(backend, name, { split: { k: { 'client-0': 0, 'client-1': 1 } } });
    expect(result.clients).toHaveLength(2);
    const last = backend === 'bigrec' ? 4 : 2;
    for (const [client, layers] of [
      ['client-0', [last]],
      ['client-1', [0, last]],
    ] as const) {
      const { config, tensors } = await readAdapter(join(place.run(name), 'best', client));
      expect(config.layers).toEqual(layers);
      expect(tensors.size).toBeGreaterThan(0);
    }
    const round = await readJson(place.run(name), 'rounds', '0001', 'round.json');
    expect(round.bytes.up).toBeGreaterThan(0);
    const again = await fellrec('evaluate', place.run(name), '--json');
    expect(JSON.parse(again.stdout).pooled).toEqual(result.pooled);
    const history = ['--history', 'Titanfall 2 - PlayStation 4', '-k', '3', '--json'];
    const found = await fellrec('recommend', place.run(name), '--client', 'client-0', ...history);
    expect(JSON.parse(found.stdout).items).toHaveLength(3);
  });
});

test('vectors of items, of which the client knows only its own part of the parameters, are not kept', async () => {
  const kept = async (adapters: 'all-layers' | 'client-layers') => {
    const cache = join(place.folder, `cache-${adapters}`);
    await trained('recformer', `kept-${adapters}`, { cache, split: { k: 0, adapters } });
    return existsSync(cache);
  };
  expect(await kept('client-layers')).toBe(true);
  expect(await kept('all-layers')).toBe(false);
});

test.each([
  [{ k: 5 }, /split.k of "client-0" is 5; the model has 5 layers, so 0 to 4 are possible/],
  [{ k: { 'client-0': 1 } }, /split.k says nothing of "client-1"/],
  [{ k: -1 }, /split\.k/],
])('split %j is refused', async (split, message) => {
  const config = await place.config({ name: 'refused', split });
  const { code, stderr } = await fellrec('train', '-c', config);
  expect(code).toBe(2);
  expect(stderr).toMatch(message);
});

test('a run of remote clients has no data here', async () => {
  const run = place.run('remote');
  await mkdir(run, { recursive: true });
  await writeFile(join(run, 'config.json'), JSON.stringify({ name: 'remote', clients: 'remote' }));
  const history = ['--client', 'client-0', '--history', 'x'];
  for (const argv of [
    ['evaluate', run],
    ['recommend', run, ...history],
  ]) {
    const { code, stderr } = await fellrec(...argv);
    expect(code).toBe(1);
    expect(stderr).toMatch(/are remote, and their data is with them/);
  }
});

test('what cannot be cut is refused', async () => {
  const int8 = await place.config({ name: 'refused', split: { k: 1 }, model: { base: 'int8' } });
  expect((await fellrec('train', '-c', int8)).stderr).toMatch(/int8 cannot be cut/);
  const stale = settings('recformer', 'refused', {
    split: { k: 1, adapters: 'all-layers' },
    recformer: { itemTable: { every: 2 } },
  });
  expect((await fellrec('train', '-c', await place.config(stale))).stderr).toMatch(
    /item table is computed in every round/,
  );
});
