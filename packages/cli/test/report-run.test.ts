// The report of runs: what is read from their folders, what is said and drawn of them, and the commands that write it.
import { copyFile, mkdir, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { RoundRecord } from '@fellrec/federation';
import { expect, test } from 'vitest';
import { addReport } from '../src/commands/train.ts';
import type { Comparison } from '../src/compare/result.ts';
import { silent } from '../src/progress.ts';
import { seriesStyles } from '../src/report/chart.ts';
import { comparisonSection } from '../src/report/comparison.ts';
import { page } from '../src/report/page.ts';
import { readRunFiles } from '../src/report/run-files.ts';
import { reportSections } from '../src/report/runs.ts';
import { comparison, type MadeUp, writeRun } from './made-up-runs.ts';
import { charts, expectBalanced, rowsOf } from './markup.ts';
import { fellrec, readJson, scratch, workspace } from './shared.ts';

async function madeUp(options?: MadeUp): Promise<string> {
  const directory = join(await scratch(), 'run');
  await writeRun(directory, options);
  return directory;
}

/** A run's report, its sections by title. */
async function sectionsOf(directory: string): Promise<Map<string, string>> {
  const sections = await reportSections([await readRunFiles(directory)]);
  return new Map(sections.map(({ title, body }) => [title, body.markup]));
}

const change = async (file: string, changed: (value: Record<string, unknown>) => unknown) =>
  writeFile(file, JSON.stringify(changed(await readJson(file))));

test('a run is read from its files', async () => {
  const directory = await madeUp();
  const run = await readRunFiles(directory);
  expect(run).toMatchObject({
    directory,
    config: { name: 'made-up', seed: 7, lora: { targetModules: ['q_proj', 'v_proj'] } },
    partition: { method: 'random', popularityCosine: 0.25 },
    rounds: [{ round: 0 }, { round: 1 }, { round: 2 }],
    result: { strategy: 'fellrec', rounds: 3 },
  });
  expect(run.missing).toBeUndefined();
  expect(run.users?.size).toBe(10 + 11 + 12);
});

test('a run that stopped early and was not evaluated lacks that only', async () => {
  const directory = await madeUp({ wantedRounds: 9, patience: 1 });
  await rm(join(directory, 'result.json'));
  const { missing } = await readRunFiles(directory);
  expect(missing).toBe(
    'its rounds are done, but it has no result, since it was not evaluated: go on with --resume',
  );
});

test.each([
  ['without a result, before its last round', 9, '3 of 9 rounds are done, and it has no result: go on'],
  ['without a result, after its last round', 3, 'its rounds are done, but it has no result'],
])('a run %s is not complete', async (_, wantedRounds, missing) => {
  const directory = await madeUp({ wantedRounds });
  await rm(join(directory, 'result.json'));
  expect(await readRunFiles(directory)).toMatchObject({ missing: expect.stringContaining(missing) });
  const sections = await sectionsOf(directory);
  expect(sections.get('Summary')).toContain(`<strong>Not complete:</strong> ${missing}`);
  expect([...sections.keys()]).toEqual([
    'Summary',
    'Data and partition',
    'Losses',
    'Warmth',
    'Similarity and mixing',
    'Configuration',
  ]);
});

test('a result of fewer rounds than there are by now does not count', async () => {
  const directory = await madeUp();
  await change(join(directory, 'result.json'), (result) => ({ ...result, rounds: 2 }));
  const run = await readRunFiles(directory);
  expect(run).toMatchObject({
    missing: 'its result is of 2 rounds, and there are 3 by now: go on with --resume',
  });
  expect(run.result).toBeUndefined();
  expect((await sectionsOf(directory)).has('Clients')).toBe(false);
});

test('a run that stopped early is complete', async () => {
  const directory = await madeUp({ wantedRounds: 9, patience: 1 });
  expect((await sectionsOf(directory)).get('Summary')).toContain('<dd>3 of 9: stopped early</dd>');
});

test('a run that was to go on is not complete with the result that it had', async () => {
  const directory = await madeUp({ wantedRounds: 9 });
  expect(await readRunFiles(directory)).toMatchObject({
    missing: '3 of 9 rounds are done, and it has the result of these: go on with --resume',
  });
});

test('who has no validation samples has no validation loss', async () => {
  const directory = await madeUp();
  const file = join(directory, 'rounds', '0001', 'round.json');
  await change(file, (record) => ({
    ...record,
    validation: { ...(record['validation'] as object), 'client-1': { loss: 0, samples: 0 } },
  }));
  const losses = (await sectionsOf(directory)).get('Losses')!;
  const rows = rowsOf(losses, 'Validation losses; ★ marks the best round');
  expect(losses).not.toContain('0.0000');
  expect(rows[2]).toEqual(['client-1', '2.3750', '– ★', '2.3750']);
});

test('who was not tested is named, and has the users that it joined with', async () => {
  const directory = await madeUp();
  await change(join(directory, 'result.json'), (result) => ({
    ...result,
    clients: (result['clients'] as { client: string }[]).map((one) =>
      one.client === 'client-1' ? { ...one, testUsers: 0, metrics: {}, missing: 'it was late' } : one,
    ),
  }));
  expect((await sectionsOf(directory)).get('Summary')).toContain(
    'Over the test users of all but client-1 (it was late); floors',
  );
});

test('a run that has just begun has a report', async () => {
  const directory = await madeUp();
  await rm(join(directory, 'result.json'));
  await rm(join(directory, 'rounds'), { recursive: true });
  expect([...(await sectionsOf(directory)).keys()]).toEqual([
    'Summary',
    'Data and partition',
    'Configuration',
  ]);
});

test('what is no run, or damaged, is refused by name', async () => {
  const folder = await scratch();
  await expect(readRunFiles(folder)).rejects.toThrow(
    `${folder} is no run (it has no config.json); pass a folder`,
  );
  const directory = await madeUp();
  const round = join(directory, 'rounds', '0001', 'round.json');
  const whole = await readFile(round, 'utf8');
  await writeFile(round, whole.slice(0, 50));
  await expect(readRunFiles(directory)).rejects.toThrow(`${round} is damaged: `);
  await change(join(directory, 'rounds', '0000', 'round.json'), (record) => record);
  await writeFile(round, whole.replace(/"matrix":\[\[[^\]]*\],/, '"matrix":['));
  await expect(readRunFiles(directory)).rejects.toThrow('there must be a row and a column for each client');
  await writeFile(round, whole.replace(/"validationLoss":[\d.]+/, '"validationLoss":null'));
  await expect(readRunFiles(directory)).rejects.toThrow('at validationLoss');
  await rm(round);
  await expect(readRunFiles(directory)).rejects.toThrow(`${round} is damaged: it is not there; put it back`);
  await writeFile(round, whole);
  await truncate(join(directory, 'clients.json'), 257 * 2 ** 20);
  await expect(readRunFiles(directory)).rejects.toThrow('a report is made of at most 256');
});

test('a run with remote clients has what they said of themselves', async () => {
  const directory = await madeUp();
  await change(join(directory, 'config.json'), ({ data: _, dataset: __, ...config }) => ({
    ...config,
    clients: 'remote',
  }));
  const facts = { modelHash: 'deadbeef', trainSamples: 100, validationSamples: 31, testUsers: 10 };
  await writeFile(
    join(directory, 'clients.json'),
    JSON.stringify({ method: 'remote', clients: [0, 1, 2].map((c) => ({ name: `client-${c}`, ...facts })) }),
  );
  await change(join(directory, 'result.json'), ({ popularityCosine: _, ...result }) => ({
    ...result,
    floors: {},
  }));
  await rm(join(directory, 'test-users.json'));
  const sections = await sectionsOf(directory);
  expect(sections.get('Summary')).toContain('<dt>data set</dt><dd>with the clients</dd>');
  expect(rowsOf(sections.get('Data and partition')!, 'Clients').slice(1, 3)).toEqual([
    ['client-0', '–', '100', '31', '10', '–'],
    ['client-1', '–', '101', '31', '11', '–'],
  ]);
  expect(sections.get('Data and partition')).not.toContain('cosine');
  expect(sections.get('Clients')).not.toContain('95 % intervals');
});

test('tables hold every number', async () => {
  const sections = await sectionsOf(await madeUp());
  expect(rowsOf(sections.get('Summary')!, 'Over all test users')).toEqual([
    ['', 'test users', 'R@10', 'R@20', 'N@10', 'N@20'],
    ['fellrec', '33', '0.1250', '0.2500', '0.0625', '0.0313'],
    ['floor: random', '', '0.0125', '0.0250', '0.0063', '0.0031'],
    ['floor: popularity', '', '0.0625', '0.1250', '0.0313', '0.0156'],
  ]);
  expect(sections.get('Summary')).toContain('<dt>took</dt><dd>3 min 20 s</dd>');
  expect(rowsOf(sections.get('Data and partition')!, 'Clients')).toEqual([
    ['client', 'users', 'training samples', 'validation samples', 'test users', 'truncated'],
    ['client-0', '20', '100', '30', '10', '4'],
    ['client-1', '21', '101', '31', '11', '4'],
    ['client-2', '22', '102', '32', '12', '4'],
    ['all 3', '63', '303', '93', '33', '12'],
  ]);
  expect(sections.get('Data and partition')).toContain('mean cosine of 0.25');
  expect(sections.get('Data and partition')).toContain('6 test prompts were longer');
  expect(rowsOf(sections.get('Losses')!, 'Validation losses')).toEqual([
    ['client', 'round 1', 'round 2', 'round 3'],
    ['client-0', '2.1250', '2.0000 ★', '2.1250'],
    ['client-1', '2.3750', '2.2500 ★', '2.3750'],
    ['client-2', '2.6250', '2.5000 ★', '2.6250'],
    ['all samples', '2.3750', '2.2500', '2.3750'],
  ]);
  expect(rowsOf(sections.get('Losses')!, 'Training losses')[1]).toEqual([
    'client-0',
    '3.0000',
    '2.8750',
    '2.7500',
  ]);
  expect(rowsOf(sections.get('Warmth')!, 'Warmth')[3]).toEqual(['client-2', '0.2700', '0.5200', '0.7700']);
  // No user of 10 apart from the first one is hit: resampling finds none to several of it.
  expect(rowsOf(sections.get('Clients')!, 'Metrics per client')[1]).toEqual([
    'client-0',
    '10',
    '2',
    '0.1000',
    '0.2000',
    '0.0500',
    '0.0250',
    expect.stringMatching(/^0\.0000 to 0\.[23]000$/),
  ]);
  expect(sections.get('Configuration')).toContain('<dt>lora.targetModules</dt><dd>q_proj, v_proj</dd>');
  expect(sections.get('Configuration')).toContain('<dt>federation.rounds</dt><dd>3</dd>');
});

test('every round has its matrices, with the last one chosen and the best one named', async () => {
  const markup = (await sectionsOf(await madeUp())).get('Similarity and mixing')!;
  expect(markup).toContain('In the first round clients keep 0.500 of their own');
  expect(
    [...markup.matchAll(/<input type="radio" name="run-1"( checked)?> ([^<]*)</g)].map(
      ([, ...found]) => found,
    ),
  ).toEqual([
    [undefined, '1'],
    [undefined, '2 (best)'],
    [' checked', '3'],
  ]);
  const rounds = markup.split('<div class="choice"').slice(1);
  expect(rounds.map((round) => rowsOf(round, 'Mixing')[1])).toEqual([
    ['client-0', '0.500', '0.250', '0.250'],
    ['client-0', '0.510', '0.245', '0.245'],
    ['client-0', '0.520', '0.240', '0.240'],
  ]);
  expect(rounds.map((round) => rowsOf(round, 'Similarity')[2]![1])).toEqual(['0.750', '0.760', '0.770']);
  expect(rounds.map((round) => rowsOf(round, 'Cosines')[2]![1])).toEqual(['0.500', '0.520', '0.540']);
  // 1 / (1/4 + 2/16), and what the records say of groups.
  expect(rowsOf(markup, 'By round').slice(0, 2)).toEqual([
    ['round', 'clients in effect', 'cosine within groups', 'cosine across groups'],
    ['1', '2.67', '0.500', '0.125'],
  ]);
  // Shades compare rounds: the largest weight of all is the darkest.
  expect(rounds[2]).toContain('<td style="--shade:100%">0.520</td>');
  expect(rounds[0]).toContain('<td style="--shade:96%">0.500</td>');
  const fedavg = await sectionsOf(await madeUp({ strategy: 'fedavg' }));
  expect(fedavg.has('Warmth')).toBe(false);
  expect(fedavg.get('Similarity and mixing')).not.toContain('Similarity between');
  expect((await sectionsOf(await madeUp({ clients: ['alone'] }))).has('Similarity and mixing')).toBe(false);
});

test('who was absent from a round is said, and breaks curves', async () => {
  const directory = await madeUp();
  await change(join(directory, 'rounds', '0001', 'round.json'), (record) => {
    const { clients, losses, samples, validation, mixing } = record as unknown as RoundRecord;
    const without = <T>({ 'client-1': _, ...rest }: Readonly<Record<string, T>>) => rest;
    const smaller = (rows: RoundRecord['mixing']['matrix']) =>
      rows.toSpliced(1, 1).map((row) => row.toSpliced(1, 1));
    return {
      ...record,
      clients: clients.toSpliced(1, 1),
      absent: ['client-1'],
      losses: without(losses),
      samples: without(samples),
      validation: without(validation),
      mixing: {
        matrix: smaller(mixing.matrix),
        similarity: smaller(mixing.similarity!),
        warmth: mixing.warmth!.toSpliced(1, 1),
      },
    };
  });
  const sections = await sectionsOf(directory);
  expect(sections.get('Similarity and mixing')).toContain('Absent, with the parameters they had: client-1.');
  expect(rowsOf(sections.get('Losses')!, 'Training losses')[2]).toEqual([
    'client-1',
    '3.2500',
    '–',
    '3.0000',
  ]);
  expect(rowsOf(sections.get('Warmth')!, 'Warmth').map((row) => row[2])).toEqual([
    'round 2',
    '0.5000',
    '–',
    '0.5200',
  ]);
  const training = charts(sections.get('Losses')!).get('Training loss')!;
  expect(training).not.toMatch(/NaN|undefined/);
  const lines = [...training.matchAll(/<path d="(M0,[^"]*)" stroke="(#\w+)"/g)];
  expect(lines.map(([, path, color]) => [color, path!.replace(/[^ML]/g, '')])).toEqual([
    [seriesStyles[0]!.color, 'MLL'],
    [seriesStyles[1]!.color, 'MM'],
    [seriesStyles[2]!.color, 'MLL'],
  ]);
});

test('charts name their clients and put points where the numbers say', async () => {
  const sections = await sectionsOf(await madeUp());
  const drawn = charts([...sections.values()].join('\n'));
  expect([...drawn.keys()]).toEqual([
    'Training loss',
    'Validation loss',
    'Warmth over rounds',
    'R@10 per client',
  ]);
  for (const svg of drawn.values()) {
    expect(svg).not.toMatch(/NaN|undefined|Infinity/);
    expectBalanced(svg);
    expect(svg).toContain('>client-2</text>');
  }
  // A plane of 600 x 260: rounds 1 to 3 to the right, warmth 1 to 0 downwards.
  const points = [
    ...drawn.get('Warmth over rounds')!.matchAll(/translate\(([\d.]+),([\d.]+)\)" d="[^"]*" fill="#\w+"/g),
  ];
  expect(
    points.slice(0, 3).map(([, x, y]) => [Number(x) / 300 + 1, Number((1 - Number(y) / 260).toFixed(4))]),
  ).toEqual([
    [1, 0.25],
    [2, 0.5],
    [3, 0.75],
  ]);
  // A ring for each client's best round, the second.
  const rings = [
    ...drawn.get('Validation loss')!.matchAll(/translate\((\d+),[\d.]+\)" d="[^"]*" stroke="#\w+"/g),
  ];
  expect(rings.map(([, x]) => x)).toEqual(['300', '300', '300']);
  for (const text of ['n = 10', 'n = 12', 'all test users', 'floor: popularity'])
    expect(drawn.get('R@10 per client')).toContain(`>${text}</text>`);
});

test('very many clients are summed up', async () => {
  const clients = Array.from({ length: 201 }, (_, c) => `client-${c}`);
  const directory = await madeUp({ clients, rounds: 2 });
  const sections = await sectionsOf(directory);
  const mixing = sections.get('Similarity and mixing')!;
  expect(mixing).toContain('Matrices of 201 clients are too large to be read here');
  expect(mixing).toContain('clients keep 0.500 of their own');
  expect(mixing).not.toContain('class="heat"');
  expect(rowsOf(sections.get('Losses')!, 'Training losses').map(([first, value]) => [first, value])).toEqual([
    ['client', 'round 1'],
    ['lowest', '3.0000'],
    ['lower quarter', '15.5000'],
    ['median', '28.0000'],
    ['upper quarter', '40.5000'],
    ['highest', '53.0000'],
  ]);
  expect(charts(sections.get('Losses')!).get('Training loss')).toContain(
    '>median of 201 clients (band: lowest to highest)</text>',
  );
  expect(sections.get('Clients')).toContain('Of 201 clients, the 200 with most test users are shown.');
  expect(rowsOf(sections.get('Clients')!, 'Metrics per client')).toHaveLength(1 + 200);
  expect([...sections.values()].join('').length).toBeLessThan(1_000_000);
});

test('of very many rounds some are shown, and it is said which', async () => {
  const clients = Array.from({ length: 50 }, (_, c) => `client-${c}`);
  const markup = (await sectionsOf(await madeUp({ clients, rounds: 20 }))).get('Similarity and mixing')!;
  // 20 rounds of three matrices of 50 x 50 are 3.75 times as many cells as are shown.
  expect(markup).toContain('Of 20 rounds, every 4th and the last are shown.');
  expect([...markup.matchAll(/<input [^>]*> ([^<]*)</g)].map(([, label]) => label)).toEqual([
    '1',
    '5',
    '9',
    '13',
    '17',
    '20',
  ]);
});

test('a comparison has its numbers, its intervals, and what did not count', async () => {
  const { title, body } = await comparisonSection(comparison);
  expect(title).toBe('Comparison');
  expect(body.markup).toContain('games, /models/tiny; seeds 1, 2');
  expect(body.markup).toContain('<li>fellrec, seed 2: 1 of 3 rounds are done</li>');
  expect(rowsOf(body.markup, 'Methods')).toEqual([
    [
      'method',
      'R@10',
      'R@20',
      'N@10',
      'N@20',
      'samples',
      'users',
      'spread',
      'worst client',
      'seconds',
      'exchanged',
    ],
    [
      'fedavg (baseline)',
      '0.1000 ± 0.0100',
      '0.2000 ± 0.0200',
      '0.0500 ± 0.0050',
      '0.0250 ± 0.0025',
      '–',
      '66',
      '0.0200',
      '0.0500',
      '1,235',
      '3.0 MiB',
    ],
    ['fellrec', '0.1200', '0.2400', '0.0600', '0.0300', '–', '33', '0.0300', '0.0600', '1,300', '3.0 MiB'],
    ['local', '0.0980', '0.1960', '0.0490', '0.0245', '–', '33', '–', '–', '–', '–'],
  ]);
  const change = '+20.0 % [+15.0 %, +25.0 %]';
  expect(rowsOf(body.markup, 'Change against fedavg')[1]).toEqual([
    'fellrec',
    '33',
    change,
    '0.004',
    change,
    '0.004',
    change,
    '0.004',
    change,
    '0.004',
  ]);
  expect(rowsOf(body.markup, 'Do clients take more')[1]).toEqual(['fellrec', '0.50', '0.63']);
  const svg = charts(body.markup).get('R@10 against fedavg')!;
  expectBalanced(svg);
  expect(svg).toContain(`>${change}, p 0.004</text>`);
  expect(svg).toContain('>−2.0 % [−7.0 %, +3.0 %], p 0.512</text>');
  // Filled where the interval is without 0, open where it is not.
  expect(svg.match(/d="M[^"]*" fill="#2f7ed8"/g)).toHaveLength(1);
  expect(svg.match(/d="M[^"]*" stroke="#2f7ed8"/g)).toHaveLength(1);
});

test('quality is drawn by the number of training samples where these differ', async () => {
  const drawn = async (samples: readonly number[]) => {
    const methods = comparison.methods.map((one, i) => ({ ...one, trainSamples: samples[i]! }));
    return charts((await comparisonSection({ ...comparison, methods })).body.markup).get(
      'R@10 by training samples',
    );
  };
  const svg = await drawn([256, 1024, 4096]);
  expectBalanced(svg!);
  for (const { method } of comparison.methods) expect(svg).toContain(`>${method}</text>`);
  expect(await drawn([256, 256, 256])).toBeUndefined();
});

test('a comparison without a baseline above 0 has absolute differences and no chart', async () => {
  const absolute: Comparison = {
    ...comparison,
    methods: comparison.methods.map(({ against, ...method }) => ({
      ...method,
      ...(against && {
        against: Object.fromEntries(
          Object.entries(against).map(([name, { relative: _, ...found }]) => [name, found]),
        ),
      }),
    })),
  };
  const { body } = await comparisonSection(absolute);
  expect(body.markup).not.toContain('<svg');
  expect(rowsOf(body.markup, 'Change against fedavg')[1]![2]).toBe('0.0200 (absolute)');
});

test('what others named stays text, and the page runs and loads nothing', async () => {
  const evil = `"><script>alert('x')</script><img src=http://x onerror=y>&amp;{{}}`;
  const directory = await madeUp({ name: evil, clients: [evil, 'client-1'] });
  await change(join(directory, 'config.json'), (config) => ({
    ...config,
    dataset: { name: evil, hash: 'c0ffee' },
    [evil]: evil,
  }));
  const methods = comparison.methods.map((one) => ({
    ...one,
    method: `${one.method}${evil}`,
    incomplete: [{ seed: 1, missing: evil }],
  }));
  const sections = await reportSections([await readRunFiles(directory)], {
    ...comparison,
    data: { name: evil, hash: '' },
    baseline: evil,
    methods,
  });
  const text = page(evil, sections);
  expect(text).not.toMatch(/<script|<img|<link|<iframe|<base|@import|url\(|\bsrc="|https?:\/\/[^x]/i);
  const escaped = '&quot;&gt;&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;';
  for (const { title, body } of sections) expect(body.markup, title).toContain(escaped);
  for (const svg of charts(text).values()) expectBalanced(svg);
  expect(text).toContain(`content="default-src 'none'; style-src 'unsafe-inline';`);
});

test('the command writes one file, of one run or several', async () => {
  const directory = await madeUp();
  const { code, stdout, stderr } = await fellrec('report', directory);
  expect({ code, stdout, stderr }).toEqual({
    code: 0,
    stdout: `report: ${join(directory, 'report.html')}\n`,
    stderr: '',
  });
  expect(await readFile(join(directory, 'report.html'), 'utf8')).toContain(
    '<title>FELLRec run made-up</title>',
  );

  const other = await madeUp({ strategy: 'fedavg', wantedRounds: 9 });
  await rm(join(other, 'result.json'));
  const nowhere = await fellrec('report', directory, other);
  expect(nowhere).toMatchObject({ code: 2, stderr: expect.stringContaining('say with -o FILE') });
  const file = join(directory, 'both.html');
  const both = await fellrec('report', directory, other, '-o', file, '--json');
  expect(both.code).toBe(0);
  expect(JSON.parse(both.stdout)).toEqual({
    file,
    runs: [
      { directory, name: 'made-up' },
      { directory: other, name: 'made-up', missing: expect.stringContaining('3 of 9 rounds') },
    ],
    notCompared: expect.stringContaining('are both made-up, seed 7'),
  });
  const text = await readFile(file, 'utf8');
  expect(text).toContain('These runs cannot be compared: compare: ');
  // Two runs of one name are told apart by their folders.
  for (const folder of [directory, other]) expect(text).toContain(`<h2>made-up (${folder}): losses</h2>`);
  for (const group of ['run-1', 'run-2']) expect(text).toContain(`type="radio" name="${group}"`);

  const gone = ['no', 'neither'].map((name) => join(directory, name));
  const wrong = await fellrec('report', ...gone, directory, '-o', file);
  expect(wrong.code).toBe(1);
  for (const folder of gone) expect(wrong.stderr).toContain(`${folder} is no run`);
});

test('methods, and rankings without rounds, are compared with FedAvg', async () => {
  const folder = await scratch();
  const inside = (name: string) => join(folder, name);
  for (const strategy of ['fellrec', 'fedavg'] as const)
    await writeRun(inside(strategy), { name: `${strategy}-7`, strategy });
  await mkdir(inside('popularity'));
  await copyFile(join(inside('fedavg'), 'test-users.json'), join(inside('popularity'), 'test-users.json'));
  const ranking = { ranking: 'popularity', seed: 7, data: { name: 'games', hash: 'c0ffee' }, seconds: 1 };
  await writeFile(join(inside('popularity'), 'ranking.json'), JSON.stringify(ranking));
  const file = inside('report.html');
  const { stdout, code } = await fellrec(
    'report',
    ...['fellrec', 'popularity', 'fedavg'].map(inside),
    '-o',
    file,
  );
  expect({ stdout, code }).toEqual({ stdout: `report: ${file}\n`, code: 0 });
  const text = await readFile(file, 'utf8');
  // 1 + 2 + 3 of 10 + 11 + 12 users are hit.
  expect(rowsOf(text, 'Methods, ').map(([method, recall]) => [method, recall])).toEqual([
    ['method', 'R@10'],
    ['fellrec', '0.1818'],
    ['popularity', '0.1818'],
    ['fedavg (baseline)', '0.1818'],
  ]);
  expect([...text.matchAll(/<h2>(.*?)<\/h2>/g)].map(([, title]) => title!.split(':')[0])).toEqual([
    'Comparison',
    ...Array(7).fill('fellrec-7'),
    ...Array(6).fill('fedavg-7'),
  ]);
});

test('training leaves a report in its folder and says where', async () => {
  const place = await workspace();
  try {
    const { code, stderr, stdout } = await fellrec('train', '-c', await place.config(), '--json');
    const file = join(place.run('tiny'), 'report.html');
    expect(stderr).toMatch(new RegExp(`report: ${file}\n$`));
    expect(code).toBe(0);
    const result = JSON.parse(stdout);
    const text = await readFile(file, 'utf8');
    expect(rowsOf(text, 'Over all test users')[1]![2]).toBe(result.pooled['recall@10'].toFixed(4));
    expect(text).toContain('<h2>Warmth</h2>');
    expect(text).toContain('<dt>federation.heating.exponent</dt><dd>t/beta</dd>');
  } finally {
    await place.remove();
  }
});

test('a report that cannot be written takes nothing else with it', async () => {
  const directory = await madeUp();
  await mkdir(join(directory, 'report.html', 'in-the-way'), { recursive: true });
  const lines: string[] = [];
  await addReport(directory, { ...silent, line: (text) => lines.push(text) });
  expect(lines).toEqual([
    expect.stringMatching(
      /^report: cannot write .*\nThe run is complete without its report: "fellrec report .*" writes it\.$/,
    ),
  ]);
  expect(await readdir(directory)).toContain('result.json');
});
