// The second recommender, end to end: train, evaluate, recommend, go on, with an adapter and with all tensors.
import { cp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { writeTinyEncoder } from './recformer-config.ts';
import { embeddedModel, fellrec, filesOf, readJson, type Workspace, workspace } from './shared.ts';

// Each test trains several times, beside other tests.
vi.setConfig({ testTimeout: 300_000, hookTimeout: 300_000 });

let place: Workspace;
let encoder: string;

beforeAll(async () => {
  place = await workspace();
  encoder = await writeTinyEncoder(join(place.folder, 'encoder'));
});
afterAll(() => place?.remove());

const config = (
  name: string,
  recformer: Record<string, unknown> = {},
  rest: Parameters<Workspace['config']>[0] = {},
) =>
  place.config({
    name,
    recommender: 'recformer',
    model: { path: encoder, maxTokens: 128 },
    lora: { rank: 2, alpha: 4 },
    training: { batchSize: 4, learningRate: 0.01 },
    recformer,
    ...rest,
  });

describe.each([
  ['lora', ['adapter_config.json', 'adapter_model.safetensors']],
  ['full', ['config.json', 'model.safetensors']],
] as const)('%s', (tune, files) => {
  test('trains, evaluates and recommends', async () => {
    const trained = await fellrec('train', '-c', await config(tune, { tune }), '--json');
    expect(trained.stderr).toContain('item vectors 100 %');
    expect(trained.code).toBe(0);
    const result = JSON.parse(trained.stdout);
    expect(result).toMatchObject({ name: tune, strategy: 'fellrec', rounds: 2 });
    const best = Object.keys(await filesOf(join(place.run(tune), 'best')));
    expect(best.filter((file) => file.startsWith('client-0/'))).toEqual(
      [...files, 'best.json'].map((file) => `client-0/${file}`).sort(),
    );

    const again = JSON.parse((await fellrec('evaluate', place.run(tune), '--json')).stdout);
    expect(again.pooled).toEqual(result.pooled);

    const asked = [
      'recommend',
      place.run(tune),
      '--client',
      'client-1',
      '--history',
      'Titanfall 2 - PlayStation 4',
    ];
    const { items } = JSON.parse((await fellrec(...asked, '-k', '3', '--json')).stdout);
    expect(items).toHaveLength(3);
    expect((await fellrec(...asked, '-k', '1')).stdout).toMatch(/^rank +id +title/);
    expect(items[0].score).toBeGreaterThanOrEqual(items[1].score);
  });

  test('goes on from an item table of an earlier round as if it had never stopped', async () => {
    const table = { tune, itemTable: { every: 2, stage1Rounds: 3 } };
    const rounds = (count: number) => ({ federation: { rounds: count, patience: 9 } });
    const [whole, parts] = [`${tune}-whole`, `${tune}-parts`];
    await fellrec('train', '-c', await config(whole, table, rounds(5)));
    for (const [count, resume] of [
      [1, []],
      [4, ['--resume']],
      [5, ['--resume']],
    ] as const) {
      const { code } = await fellrec('train', '-c', await config(parts, table, rounds(count)), ...resume);
      expect(code).toBe(0);
    }
    const outcome = async (name: string) => {
      const { pooled, clients } = await readJson(place.run(name), 'result.json');
      const { validation, losses } = await readJson(place.run(name), 'rounds', '0004', 'round.json');
      return { pooled, clients, validation, losses, best: await filesOf(join(place.run(name), 'best')) };
    };
    expect(await outcome(parts)).toEqual(await outcome(whole));
    // The table of rounds 3 to 5 (from 1) is that of round 3, which began with what round 2 left.
    const kept = Object.keys(await filesOf(join(place.run(whole), 'rounds')))
      .filter((file) => file.includes('client-0/'))
      .map((file) => file.split('/')[0]);
    expect([...new Set(kept)]).toEqual(['0001', '0003', '0004']);
    // A frozen table is another model than a fresh one.
    const fresh = `${tune}-fresh`;
    await fellrec('train', '-c', await config(fresh, { tune }, rounds(5)));
    expect((await outcome(fresh)).losses).not.toEqual((await outcome(whole)).losses);
  });
});

test('one adapter, every strategy', async () => {
  for (const strategy of ['fellrec', 'fedavg', 'local', 'centralized']) {
    const file = await config(strategy, {}, { federation: { strategy, rounds: 1 } });
    expect((await fellrec('train', '-c', file)).code).toBe(0);
  }
});

test('ditto with a frozen item table: its global model is that of fedavg, and it goes on', async () => {
  const frozen = { itemTable: { stage1Rounds: 1 } };
  const trained = (name: string, strategy: string, rounds: number, table = frozen) =>
    config(name, table, { federation: { strategy, rounds, patience: 9 } });
  for (const strategy of ['fedavg', 'ditto'])
    expect((await fellrec('train', '-c', await trained(`frozen-${strategy}`, strategy, 2))).code).toBe(0);
  const adapter = (name: string, ...folder: string[]) =>
    filesOf(join(place.run(`frozen-${name}`), 'rounds', '0001', 'client-1', ...folder));
  const [shared, global] = [await adapter('fedavg'), await adapter('ditto', 'global')];
  expect(global).toEqual(shared);
  // With a table of its second round it needs the personal model of the first.
  const later = { itemTable: { stage1Rounds: 2 } };
  const all = ['train', '-c', await trained('later', 'ditto', 4, later)];
  expect((await fellrec(...all)).code).toBe(0);
  for (const [rounds, resume] of [[2], [4, '--resume']] as const) {
    const parts = ['train', '-c', await trained('later-parts', 'ditto', rounds, later)];
    expect((await fellrec(...parts, ...(resume ? [resume] : []))).code).toBe(0);
  }
  const pooled = async (name: string) => (await readJson(place.run(name), 'result.json')).pooled;
  expect(await pooled('later-parts')).toEqual(await pooled('later'));
});

test('the history is ranked where it is not masked', async () => {
  const pooled = async (name: string, maskHistory: boolean) => {
    const rest = {
      evaluation: { maskHistory },
      federation: { strategy: 'local', rounds: 1 },
      data: { testUsers: 296 },
    };
    const { stdout } = await fellrec('train', '-c', await config(name, {}, rest), '--json');
    return JSON.parse(stdout).pooled['ndcg@20'];
  };
  // What was seen takes places of what was not.
  expect(await pooled('unmasked', false)).toBeLessThan(await pooled('masked', true));
});

test('a trained encoder is a checkpoint like any other, with the pooling that it was trained with', async () => {
  const file = await config('mean', { tune: 'full', pooling: 'avg' }, { federation: { rounds: 1 } });
  await fellrec('train', '-c', file);
  const info = await fellrec('model', 'info', join(place.run('mean'), 'best', 'client-0'), '--json');
  expect(JSON.parse(info.stdout)).toMatchObject({ config: { hiddenSize: 16, pooling: 'avg' }, unused: [] });
});

test('a refused --resume takes nothing away, and a model that changed is refused', async () => {
  const table = { itemTable: { every: 2, stage1Rounds: 3 } };
  const rounds = (count: number) => ({ federation: { rounds: count, patience: 9 } });
  const own = join(place.folder, 'own-encoder');
  await cp(encoder, own, { recursive: true });
  const model = { model: { path: own } };
  await fellrec('train', '-c', await config('refused', table, { ...rounds(4), ...model }));
  const before = Object.keys(await filesOf(place.run('refused')));
  const resumed = await fellrec(
    'train',
    '-c',
    await config('refused', {}, { ...rounds(5), ...model }),
    '--resume',
  );
  expect(resumed.code).toBe(1);
  expect(resumed.stderr).toContain('made with other settings: recformer.itemTable.every');
  expect(Object.keys(await filesOf(place.run('refused')))).toEqual(before);
  expect((await fellrec('evaluate', place.run('refused'))).code).toBe(0);

  await writeTinyEncoder(own, 2);
  for (const command of [['evaluate'], ['recommend', '--client', 'client-0', '--history', '4']]) {
    const { code, stderr } = await fellrec(command[0]!, place.run('refused'), ...command.slice(1));
    expect(code).toBe(1);
    expect(stderr).toContain(`the model in ${own} changed since`);
  }
});

test('a table whose parameters are gone is named when a run goes on', async () => {
  const table = { itemTable: { every: 1, stage1Rounds: 2 } };
  const rounds = (count: number) => ({ federation: { rounds: count, patience: 9 } });
  await fellrec('train', '-c', await config('gone', table, rounds(4)));
  await rm(join(place.run('gone'), 'rounds', '0000', 'client-0'), { recursive: true });
  const { code, stderr } = await fellrec('train', '-c', await config('gone', table, rounds(5)), '--resume');
  expect(code).toBe(1);
  expect(stderr).toContain('has no parameters of "client-0", which its item vectors were computed with');
});

test('a language model is no encoder, and an encoder no language model', async () => {
  const llama = await config('llama', {}, { model: { path: embeddedModel } });
  const wrong = await fellrec('train', '-c', llama);
  expect(wrong.code).toBe(1);
  expect(wrong.stderr).toContain(
    'unsupported architecture "llama"; supported by recformer: longformer (RecFormer), roberta, bert',
  );
  const bigrec = await place.config({ name: 'encoder', model: { path: encoder } });
  expect((await fellrec('train', '-c', bigrec)).stderr).toContain(
    'unsupported architecture "longformer"; supported: llama',
  );
});
