// One adapter, several ways to rank: as a setting, on a stored run, as methods beside each other, with cut models.
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { popularity, readDataset } from '@fellrec/recsys';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import type { Comparison } from '../src/compare/result.ts';
import { loadConfig } from '../src/config.ts';
import type { RecommendedTitles } from '../src/recommend.ts';
import type { RunResult } from '../src/train.ts';
import { writeTinyEncoder } from './recformer-config.ts';
import { fellrec, filesOf, readJson, type Workspace, workspace } from './shared.ts';

vi.setConfig({ testTimeout: 120_000, hookTimeout: 120_000 });

let place: Workspace;
beforeAll(async () => {
  place = await workspace();
  const { code, stderr } = await fellrec('train', '-c', await place.config(settings('grounded')));
  expect(code, stderr).toBe(0);
});
afterAll(() => place?.remove());

const settings = (
  name: string,
  ranking: Record<string, unknown> = {},
  more: Record<string, Record<string, unknown>> = {},
) => ({
  name,
  data: { testUsers: 12 },
  generation: { beams: 2, maxNewTokens: 40, batch: 4 },
  federation: { rounds: 1 },
  ranking,
  ...more,
});
const result = async (...argv: string[]) => {
  const { stdout, stderr, code } = await fellrec(...argv, '--json');
  expect(code, stderr).toBe(0);
  return JSON.parse(stdout) as RunResult;
};
const constrainedBy = (...inject: string[]) => [
  ...['--set', 'ranking.mode=constrained'],
  ...inject.map((one) => `ranking.inject=${one}`),
];
const constrained = ['--set', 'ranking.mode=constrained', 'ranking.beams=8'];

test('a stored run ranks otherwise, with what a run of that setting has', async () => {
  const set = await result('evaluate', place.run('grounded'), ...constrained);
  const own = await result(
    'train',
    '-c',
    await place.config(settings('constrained', { mode: 'constrained', beams: 8 })),
  );
  expect(set.pooled).toEqual(own.pooled);
  expect(set.pooled).not.toEqual((await result('evaluate', place.run('grounded'))).pooled);
  const refused = await fellrec('evaluate', place.run('grounded'), '--set', 'training.learningRate=1');
  expect(refused.code).toBe(2);
  expect(refused.stderr).toContain('train another run for the rest');
});

test('cut models rank the same', async () => {
  for (const ranking of [
    { mode: 'constrained', beams: 4 },
    { mode: 'rerank', shortlist: { of: 'popularity', size: 5 } },
  ]) {
    const [whole, cut] = [`whole-${ranking.mode}`, `cut-${ranking.mode}`];
    const a = await result('train', '-c', await place.config(settings(whole, ranking)));
    const b = await result(
      'train',
      '-c',
      await place.config(settings(cut, ranking, { split: { k: 1, adapters: 'all-layers' } })),
    );
    expect(b.clients.map(({ metrics }) => metrics)).toEqual(a.clients.map(({ metrics }) => metrics));
    const lists = async (name: string) => {
      const found: string[][] = [];
      for (const client of ['client-0', 'client-1']) {
        const asked = ['recommend', place.run(name), '--client', client, '--history', '4', '72', '--json'];
        const { items } = JSON.parse((await fellrec(...asked)).stdout) as RecommendedTitles;
        found.push(items.map(({ id }) => id));
      }
      return found;
    };
    expect(await lists(cut)).toEqual(await lists(whole));
  }
});

test('what is injected is the statistics of the own users, with a gamma for each client', async () => {
  const ranking = { inject: 'popularity' };
  const found = await result('train', '-c', await place.config(settings('injected', ranking)));
  for (const { gamma } of found.clients) expect(gamma).toBeDefined();
  const fixed = await result('evaluate', place.run('injected'), '--set', 'ranking.gamma=99');
  expect(fixed.clients.map(({ gamma }) => gamma)).toEqual([99, 99]);
  // So much of it is popularity itself: all but the item that the model likes best are in the order of the counts.
  const { users, catalogue } = await readDataset(join(place.folder, 'data'));
  const { clients } = (await readJson(place.run('injected'), 'clients.json')) as {
    clients: { name: string; users: string[] }[];
  };
  for (const { name, users: own } of clients) {
    const counts = popularity(
      users.filter(({ id }) => own.includes(id)),
      269,
    );
    const asked = ['--client', name, '--history', '4', '-k', '269', '--set', 'ranking.gamma=1000', '--json'];
    const { stdout } = await fellrec('recommend', place.run('injected'), ...asked);
    const [, ...rest] = (JSON.parse(stdout) as RecommendedTitles).items.map(
      ({ id }) => counts[catalogue.indexOf(id)]!,
    );
    expect(rest.filter((count) => count > 0)).toEqual(
      rest.filter((count) => count > 0).toSorted((a, b) => b - a),
    );
  }
});

test('recommend explains itself', async () => {
  const asked = ['recommend', place.run('grounded'), '--client', 'client-1', '--history', '4', '-k', '3'];
  const json = async (...more: string[]) =>
    JSON.parse((await fellrec(...asked, ...more, '--json')).stdout) as RecommendedTitles;
  expect((await fellrec(...asked)).stdout).toMatch(/^rank +id +title/);
  expect((await fellrec(...asked, '--explain')).stdout).toMatch(
    /^The model said: .*\n\nrank +id +title +score\n/,
  );
  const beams = await json(...constrained);
  expect(new Set(beams.items.map(({ id }) => id)).size).toBe(3);
  for (const { likelihood, score } of beams.items)
    expect(likelihood!.logProbability / likelihood!.tokens).toBeCloseTo(score, 10);
  const few = await json('--set', 'ranking.mode=rerank', 'ranking.shortlist.size=2');
  expect(few.items.map(({ likelihood }) => likelihood !== undefined)).toEqual([true, true, false]);
});

test('a history of the whole catalogue leaves nothing, and says so', async () => {
  const { catalogue } = await readDataset(join(place.folder, 'data'));
  const all = catalogue.items.map(({ id }) => id);
  for (const more of [[], constrained]) {
    const { stdout, code } = await fellrec(
      ...['recommend', place.run('grounded'), '--client', 'client-0', '--history', ...all],
      ...more,
    );
    expect(code).toBe(0);
    expect(stdout).toContain('nothing is left to recommend: the history has all 269 items of the catalogue');
  }
});

test('modes are compared as methods, on one adapter', async () => {
  const file = await place.config(settings('modes'));
  const methods =
    'fedavg,fedavg+constrained,fedavg+rerank,fedavg+constrained+popularity,zero-shot+constrained';
  const argv = ['compare', '-c', file, '--methods', methods, '--json'];
  const { stdout, stderr, code } = await fellrec(...argv);
  expect(code, stderr).toBe(0);
  expect(stderr.match(/^round 1$/gm)).toHaveLength(1);
  const found = JSON.parse(stdout) as Comparison;
  expect(found.methods.map(({ method }) => method)).toEqual(methods.split(','));
  for (const { users, clients } of found.methods) {
    expect(users).toBe(12);
    expect(clients.map(({ client }) => client)).toEqual(['client-0', 'client-1']);
  }
  // What differs in what is injected only is scored once, and has what it has alone.
  expect(stderr).not.toContain('== fedavg+constrained+popularity');
  for (const [at, inject] of [
    [1, []],
    [3, ['popularity']],
  ] as const) {
    const own = await result('evaluate', place.run('modes/fedavg-1'), ...constrainedBy(...inject));
    for (const [name, value] of Object.entries(own.pooled))
      expect(found.methods[at]!.metrics[name]).toBeCloseTo(value, 12);
  }
  // What each client's statistics are worth to it is part of the comparison.
  const { clients } = await result('evaluate', place.run('modes/fedavg-1'), ...constrainedBy('popularity'));
  expect(found.methods[3]!.clients.map(({ gamma }) => gamma)).toEqual(clients.map(({ gamma }) => gamma));
  const text = (await fellrec(...argv.slice(0, -1))).stdout;
  expect(text).toMatch(/^fedavg\+constrained\+popularity +1 +client-0 +\d+ +[\d.]+ +\d\.\d{4} +\d\.\d{4}$/m);
  expect(found.methods.map(({ trainSamples }) => trainSamples)).toEqual([12, 12, 12, 12, undefined]);
  const before = await filesOf(place.run('modes'));
  const again = await fellrec(...argv);
  expect(again.stderr).not.toContain('==');
  expect(await filesOf(place.run('modes'))).toEqual(before);

  // The one client of `centralized` is none of those that are compared.
  const central = await fellrec(...argv.slice(0, 4), 'fedavg,centralized+popularity', '--json');
  const [, injecting] = (JSON.parse(central.stdout) as Comparison).methods;
  expect(injecting!.clients.map(({ gamma }) => gamma)).toEqual([undefined, undefined]);

  // A run that is trained again and came to the same has the same ranking.
  await rm(place.run('modes/fedavg-1'), { recursive: true });
  const anew = await fellrec(...argv.slice(0, 4), 'fedavg+constrained', '--json');
  expect(anew.stderr).toContain('round 1');
  expect(anew.stderr).not.toContain('failed');
  expect((JSON.parse(anew.stdout) as Comparison).methods[0]!.seconds).toBe(found.methods[1]!.seconds);

  // A run that goes on is ranked with again.
  const longer = ['--set', 'federation.rounds=2'];
  const more = await fellrec(...argv.slice(0, 4), 'fedavg+constrained', '--json', ...longer);
  expect(more.code, more.stderr).toBe(0);
  expect(more.stderr).toContain('round 2');
  const { methods: ranked } = JSON.parse(more.stdout) as Comparison;
  expect(ranked[0]!.seconds).not.toBe(found.methods[1]!.seconds);

  // Before anything is trained.
  const early = await fellrec('compare', '-c', file, '--methods', 'local,fedavg+rerank-sentences');
  expect(early.stderr).toContain('ranking.sentences: the folder of a sentence encoder is missing');
  expect(early.stderr).not.toContain('round');
  expect(early.code).toBe(2);

  for (const wrong of ['fedavg+likely', 'popularity+constrained', 'fedavg+rerank+constrained']) {
    const refused = await fellrec('compare', '-c', file, '--methods', wrong);
    expect(refused.code).toBe(2);
    expect(refused.stderr).toContain(`unknown methods: "${wrong}"`);
  }
});

test('every shortlist and every statistic is a method, and has what a run of that setting has', async () => {
  const ranking = {
    sentences: await writeTinyEncoder(join(place.folder, 'encoder')),
    shortlist: { size: 5 },
  };
  const file = await place.config(settings('variants', ranking));
  const variants = {
    'grounded-all': ['from=all'],
    'rerank-per-token': ['mode=rerank', 'perToken=true'],
    'rerank-popularity': ['mode=rerank', 'shortlist.of=popularity'],
    'rerank-sentences': ['mode=rerank', 'shortlist.of=sentences'],
    'rerank-grounded': ['mode=rerank', 'shortlist.of=grounded'],
    cooccurrence: ['inject=cooccurrence'],
    sasrec: ['inject=sasrec'],
    sentences: ['inject=sentences'],
  };
  const methods = ['fedavg', ...Object.keys(variants).map((one) => `fedavg+${one}`)];
  const { stdout, stderr, code } = await fellrec(
    'compare',
    '-c',
    file,
    '--methods',
    methods.join(),
    '--json',
  );
  expect(code, stderr).toBe(0);
  const found = (JSON.parse(stdout) as Comparison).methods;
  expect(found.map(({ method }) => method)).toEqual(methods);
  const distinct = new Set<string>();
  for (const [i, set] of Object.values(variants).entries()) {
    const wanted = set.map((one) => `ranking.${one}`);
    const own = await result('evaluate', place.run('variants/fedavg-1'), '--set', ...wanted);
    for (const [name, value] of Object.entries(own.pooled))
      expect(found[i + 1]!.metrics[name], set.join()).toBeCloseTo(value, 12);
    const asked = ['--client', 'client-0', '--history', '4', '72', '-k', '20', '--set', ...wanted];
    distinct.add((await fellrec('recommend', place.run('variants/fedavg-1'), ...asked)).stdout);
  }
  expect(distinct.size).toBeGreaterThan(5);
});

test('a statistic that cannot be had costs the others nothing', async () => {
  const file = await place.config(settings('broken', { sentences: join(place.folder, 'nowhere') }));
  const methods = 'fedavg,fedavg+popularity,fedavg+sentences';
  const { stdout, code } = await fellrec('compare', '-c', file, '--methods', methods, '--json');
  expect(code).toBe(1);
  const found = (JSON.parse(stdout) as Comparison).methods;
  expect(found.map(({ incomplete }) => incomplete.length)).toEqual([0, 0, 1]);
  expect(found[1]!.users).toBe(12);
  expect(found[2]!.incomplete[0]!.missing).toContain('nowhere');
});

test('a run is asked with the gamma that it has found, and looks for another one where it ranks otherwise', async () => {
  await fellrec('train', '-c', await place.config(settings('chosen', { inject: 'popularity' })));
  const run = place.run('chosen');
  const asked = ['recommend', run, '--client', 'client-0', '--history', '4', '72', '-k', '20'];
  const ask = async (...more: string[]) => {
    const { stdout, stderr, code } = await fellrec(...asked, ...more);
    expect(code, stderr).toBe(0);
    return { list: stdout, looked: stderr.includes('validation samples') };
  };
  const { gamma } = ((await readJson(run, 'result.json')) as RunResult).clients[0]!;
  const same = await ask();
  expect(same.looked).toBe(false);
  expect(same.list).toBe((await ask('--set', `ranking.gamma=${gamma}`)).list);
  expect((await ask('--set', 'ranking.from=all')).looked).toBe(true);
});

test('an 8-bit base ranks in every mode', async () => {
  const base = { model: { base: 'int8' } };
  await fellrec('train', '-c', await place.config(settings('int8', {}, base)));
  for (const mode of ['grounded', 'constrained', 'rerank']) {
    const asked = ['--client', 'client-0', '--history', '4', '72', '--set', `ranking.mode=${mode}`, '--json'];
    const { stdout, stderr, code } = await fellrec('recommend', place.run('int8'), ...asked);
    expect(code, stderr).toBe(0);
    expect(new Set((JSON.parse(stdout) as RecommendedTitles).items.map(({ id }) => id)).size).toBe(10);
  }
});

test('recformer has one way to rank, into which a statistic is injected, and a sentence encoder must be given', async () => {
  const encoder = { path: await writeTinyEncoder(join(place.folder, 'ranked')), maxTokens: 128 };
  const ranked = await place.config({
    ...settings('recformer', { inject: 'cooccurrence' }),
    recommender: 'recformer',
    model: encoder,
  });
  for (const { gamma } of (await result('train', '-c', ranked)).clients) expect(gamma).toBeDefined();
  const recformer = await place.config({
    ...settings('other', { mode: 'rerank' }),
    recommender: 'recformer',
  });
  expect((await fellrec('train', '-c', recformer)).stderr).toContain(
    'rerank is there for recommender: bigrec',
  );
  const file = await place.config(settings('other', { mode: 'rerank', shortlist: { of: 'sentences' } }));
  expect((await fellrec('train', '-c', file)).stderr).toContain(
    'the folder of a sentence encoder is missing',
  );
});

test('remote clients are asked for nothing that only this process has', async () => {
  const remote = async (more: Record<string, Record<string, unknown>>) =>
    loadConfig(await place.config({ data: { path: 'data' }, ...more }), [], { remote: true });
  await expect(remote({ ranking: { sentences: 'encoder' } })).rejects.toThrow(
    'ranking.sentences: remote clients have no such folder; take co-occurrence or popularity',
  );
  await expect(remote({ training: { targetsPerUser: 2 } })).rejects.toThrow(
    'training.targetsPerUser: remote clients count their samples before they know the settings',
  );
  await expect(remote({ federation: { strategy: 'ditto' } })).rejects.toThrow(
    'federation.strategy: under ditto',
  );
});
