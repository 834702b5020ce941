// Published data sets from the command line: every command of docs/data.md, RecBole's files out and in, wrong input.
import { existsSync, writeFileSync } from 'node:fs';
import { cp, mkdir, readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { describe, expect, onTestFinished, test } from 'vitest';
import { fellrec, interactions, items, root, scratch, workspace } from './shared.ts';

const shared = process.env.FELLREC_SHARED ?? join(root, '../shared');
const movies = join(shared, 'data/ml-100k');

/** Runs a command line that has to succeed, and parses what it prints. */
async function json(...argv: string[]) {
  const { code, stdout, stderr } = await fellrec(...argv, '--json');
  expect({ code, stderr }, argv.join(' ')).toEqual({ code: 0, stderr: '' });
  return JSON.parse(stdout);
}

/** Small files under the names and in the forms of docs/data.md: six users with the same six items. */
async function publishedFiles(folder: string): Promise<void> {
  const six = [1, 2, 3, 4, 5, 6];
  const pairs = six.flatMap((user) => six.map((item) => ({ user, item, time: 1e9 + item * 100 + user })));
  const put = (name: string, text: string) =>
    writeFileSync(join(folder, name), name.endsWith('.gz') ? gzipSync(text) : text);
  const rows = (name: string, header: string[], rows: unknown[][], mark: string) =>
    put(name, [...(header.length > 0 ? [header] : []), ...rows].map((row) => `${row.join(mark)}\n`).join(''));
  const lines = (name: string, objects: object[]) =>
    put(name, objects.map((object) => `${JSON.stringify(object)}\n`).join(''));
  const sequences = six.map((user) => [user, six.join(' ')]);
  const titles = six.map((item) => [item, `"Title, ""${item}"""`]);

  const typed = ['user_id:token', 'item_id:token', 'rating:float', 'timestamp:float'];
  rows(
    'ml-100k.inter',
    typed,
    pairs.map(({ user, item, time }) => [user, item, 4, time]),
    '\t',
  );
  rows(
    'ml-100k.item',
    ['item_id:token', 'movie_title:token_seq'],
    six.map((item) => [item, `Movie ${item}`]),
    '\t',
  );
  rows(
    'ml-100k.user',
    ['user_id:token', 'age:token'],
    six.map((user) => [user, 30]),
    '\t',
  );
  rows('sequences.tsv', ['user', 'items'], sequences, '\t');
  rows(
    'items.tsv',
    ['item', 'title'],
    six.map((item) => [item, `"Game" ${item}`]),
    '\t',
  );
  put(
    'Office_Products.inter.json',
    JSON.stringify(Object.fromEntries(six.map((user) => [user, six])), undefined, 1),
  );
  put(
    'Office_Products.item.json',
    JSON.stringify(Object.fromEntries(six.map((item) => [item, { title: 'T' }])), undefined, 1),
  );
  lines(
    'Video_Games_5.json.gz',
    pairs.map(({ user, item, time }) => ({ overall: 5, reviewerID: user, asin: item, unixReviewTime: time })),
  );
  lines(
    'meta_Video_Games.json.gz',
    [...six, 6].map((asin) => ({ category: ['a', 'b'], asin, title: 'T' })),
  );
  rows('MicroLens-50k_pairs.tsv', [], sequences, '\t');
  rows('MicroLens-50k_titles.csv', ['item', 'title'], titles, ',');
  rows(
    'MicroLens-50k_pairs.csv',
    ['user', 'item', 'timestamp'],
    pairs.map(({ user, item, time }) => [user, item, time]),
    ',',
  );
  rows('MicroLens-100k_pairs.tsv', [], sequences, '\t');
  rows('MicroLens-100k_title_en.csv', [], titles, ',');
  lines(
    'goodreads_interactions_poetry.json.gz',
    pairs.map(({ user, item, time }) => ({
      user_id: user,
      book_id: item,
      rating: 4,
      date_updated: `Fri Nov 18 07:22:${time % 60} -0800 2016`,
    })),
  );
  lines(
    'goodreads_books_poetry.json.gz',
    six.map((book) => ({ book_id: book, title: 'T', series: ['1'] })),
  );
  rows(
    'plays.csv',
    ['listener', 'track', 'played_at'],
    pairs.map(({ user, item, time }) => [user, item, new Date(time * 1000).toISOString()]),
    ',',
  );
}

test('every command of docs/data.md runs, on small files of these forms', async () => {
  const folder = await scratch();
  await publishedFiles(folder);
  const text = await readFile(join(root, 'docs/data.md'), 'utf8');
  const commands = [...text.matchAll(/^npx fellrec (data (?:import|export) .*)$/gm)].map(
    ([, words]) => words!,
  );
  expect(commands.length).toBeGreaterThan(10);
  const at = (word: string) => (/[./]/.test(word) ? join(folder, word) : word);
  for (const command of commands) {
    // A Parquet file of items: that of a data folder.
    if (command.includes('tracks.parquet')) await cp(at('data/games/items.parquet'), at('tracks.parquet'));
    const result = await json(...command.split(' ').map(at));
    if (command.startsWith('data import'))
      expect(result, command).toMatchObject({ users: 6, items: 6, interactions: 36 });
    else
      expect(result).toEqual({
        folder: at('recbole/games'),
        rows: expect.objectContaining({ 'games.inter': 36, 'games.test.inter': 6 }),
      });
  }
});

test('the options that docs/data.md names exist', async () => {
  const text = await readFile(join(root, 'docs/data.md'), 'utf8');
  const named = new Set([...text.matchAll(/--[a-z][a-z-]+/g)].map(([option]) => option));
  const options = (await Promise.all(['import', 'export'].map((name) => fellrec('data', name, '--help'))))
    .map(({ stdout }) => stdout)
    .join();
  for (const option of named) expect(options).toContain(option);
});

test('data export prints the files and their rows', async () => {
  const folder = await scratch();
  const data = join(folder, 'data');
  await json(
    'data',
    'import',
    '--interactions',
    interactions,
    '--items',
    items,
    '--sequence-column',
    'items',
    '-o',
    data,
  );
  const { code, stdout, stderr } = await fellrec('data', 'export', data, '--recbole', join(folder, 'sample'));
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  expect(stdout).toBe(`file                rows
------------------  ----
sample.inter        2465
sample.train.inter  1873
sample.valid.inter   296
sample.test.inter    296
sample.item          269
`);
  expect((await readdir(join(folder, 'sample'))).sort()).toEqual(stdout.match(/sample\S+/g)!.sort());
});

test.skipIf(!existsSync(movies))('MovieLens-100K needs no options', async () => {
  const folder = await scratch();
  const [inter, item] = ['inter', 'item'].map((suffix) => join(movies, `ml-100k.${suffix}`));
  const importing = (...more: string[]) =>
    json('data', 'import', '--interactions', inter!, '--items', item!, '--name', 'm', ...more);
  expect(await importing('-o', join(folder, 'one'))).toMatchObject({
    users: 943,
    items: 1349,
    interactions: 99_287,
    validation: 943,
    test: 943,
  });
  expect(
    await importing('-o', join(folder, 'time'), '--split', 'global-time', '--k-core', '0'),
  ).toMatchObject({ users: 943, items: 1682, interactions: 100_000 });
});

describe('wrong input', () => {
  const cases: [string, string[], number, string][] = [
    [
      'a header of nothing',
      ['--items-header', 'item,'],
      2,
      '"item," is no list of different names, separated by commas',
    ],
    [
      'a header that repeats itself',
      ['--interactions-header', 'a,a'],
      2,
      '"a,a" is no list of different names',
    ],
    ['a rating that is no number', ['--min-rating', 'good'], 2, '"good" is not a number'],
    [
      'ratings of sequences',
      ['--min-rating', '4'],
      1,
      'sequences.tsv holds sequences, which have no ratings',
    ],
    ['a header of the wrong length', ['--items-header', 'item'], 1, 'Expected Number of Columns: 1 Found: 2'],
  ];
  test.each(cases)('%s', async (_, more, code, message) => {
    const folder = await scratch();
    const outcome = await fellrec(
      'data',
      'import',
      '--interactions',
      interactions,
      '--items',
      items,
      '--sequence-column',
      'items',
      '-o',
      join(folder, 'out'),
      ...more,
    );
    expect(outcome).toMatchObject({ code, stdout: '' });
    expect(outcome.stderr).toContain(message);
    expect(await readdir(folder)).toEqual([]);
  });

  test('an export of no data folder, into one that is there, or into none', async () => {
    const folder = await scratch();
    for (const [argv, code, message] of [
      [[folder, '--recbole', join(folder, 'out')], 1, 'is no data folder (it has no dataset.json)'],
      [[folder, '--recbole', folder], 1, `data: ${folder} exists; choose another folder`],
      [[folder], 2, "required option '--recbole <folder>' not specified"],
    ] as const) {
      const outcome = await fellrec('data', 'export', ...argv);
      expect(outcome).toMatchObject({ code, stdout: '' });
      expect(outcome.stderr).toContain(message);
    }
    expect(await readdir(folder)).toEqual([]);
  });
});

test("data partition writes all clients' folders or none, and leaves none of an earlier cut beside them", async () => {
  const place = await workspace();
  onTestFinished(() => place.remove());
  const config = await place.config();
  const output = join(place.folder, 'clients');
  const cut = (...more: string[]) => fellrec('data', 'partition', '-c', config, '-o', output, ...more);
  await mkdir(join(output, 'client-1'), { recursive: true });
  expect((await cut()).stderr).toContain('client-1 exists; choose another folder or pass --force');
  expect(await readdir(output)).toEqual(['client-1']);
  expect((await cut('--force', '--set', 'partition.clients=3')).code).toBe(0);
  const fewer = await cut('--force');
  expect(fewer.code).toBe(1);
  expect(fewer.stderr).toContain('clients has data of client-2, who are none of these clients');
  await rm(join(output, 'client-2'), { recursive: true });
  expect((await cut('--force')).code).toBe(0);
});
