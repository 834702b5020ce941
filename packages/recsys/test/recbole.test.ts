// RecBole's atomic files, in and out.
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { exportRecBole } from '../src/data/export.ts';
import { readDataset, writeUsers } from '../src/data/folder.ts';
import { type ImportOptions, importDataset } from '../src/data/import.ts';
import { type Dataset, datasetStats } from '../src/dataset.ts';
import { importing, sharedData, write } from './shared.ts';

const { fresh, imported } = importing();

/** An export's table without its header, values as pandas reads them: as CSV is, with tabs. */
function rowsOf(out: string, suffix: string): string[][] {
  const lines = readFileSync(join(out, `set.${suffix}`), 'utf8').split('\n');
  expect(lines.pop()).toBe('');
  const cells = lines.map((line) =>
    line.split('\t').map((cell) => (cell[0] === '"' ? cell.slice(1, -1).replaceAll('""', '"') : cell)),
  );
  for (const cell of cells[0]!) expect(cell).toMatch(/^[^:]+:(token|token_seq|float)$/);
  for (const row of cells) expect(row).toHaveLength(cells[0]!.length);
  return cells.slice(1);
}

/** All of a data set that does not depend on indices. */
const contentOf = ({ catalogue, users, split }: Dataset) => {
  const ids = (items: readonly number[]) => items.map((item) => catalogue.items[item]!.id);
  return {
    split,
    items: catalogue.items,
    users: users.map(({ train, validation, test, ...user }) => ({
      ...user,
      train: ids(train),
      validation: ids(validation),
      test: ids(test),
    })),
  };
};

const inter = (path: string, ...lines: string[]) =>
  write(path, 'x.inter', 'user_id:token\titem_id:token\trating:float\ttimestamp:float', ...lines);

describe('an import without column options', () => {
  const rows = ['u\tb\t5\t1', 'u\tc\t1\t3', 'u\ta\t4\t2', 'v\ta\t2\t9', 'v\tc\t3\t8', 'v\tb\t4\t7'];
  const item = (path: string, title: string) =>
    write(path, 'x.item', `item_id:token\t${title}\tyear:token`, 'a\tA\t1', 'b\tB\t2', 'c\tC\t3');
  const sequences = { u: ['b', 'a', 'c'], v: ['b', 'c', 'a'] };

  it.each(['movie_title:token_seq', 'title:token_seq'])('finds ids, times and %s', async (title) => {
    const path = fresh();
    const users = write(path, 'x.user', 'user_id:token\tage:token', 'v\t30', 'u\t20');
    const data = contentOf(
      await imported({ interactions: inter(path, ...rows), items: item(path, title), users }),
    );
    expect(data.items).toContainEqual({ id: 'b', title: 'B', attributes: { year: '2' } });
    for (const { id, train, validation, test, attributes } of data.users) {
      expect([...train, ...validation, ...test]).toEqual(sequences[id as 'u' | 'v']);
      expect(attributes).toEqual({ age: id === 'u' ? '20' : '30' });
    }
  });

  it('takes the order of rows where there are no times', async () => {
    const path = fresh();
    const interactions = write(path, 'x.inter', 'user_id:token\titem_id:token', 'u\tc', 'u\ta', 'u\tb');
    const [user] = contentOf(await imported({ interactions, items: item(path, 'title:token') })).users;
    expect(user).toMatchObject({ train: ['c'], validation: ['a'], test: ['b'] });
  });

  it('prefers what is said', async () => {
    const path = fresh();
    const items = write(
      path,
      'x.item',
      'movie:token\ttitle:token\tplot:token',
      'a\tA\tp',
      'b\tB\tq',
      'c\tC\tr',
    );
    const columns = { itemId: 'movie', title: 'plot', time: 'rating' };
    const data = contentOf(await imported({ interactions: inter(path, ...rows), items, columns }));
    expect(data.items.map(({ title }) => title)).toEqual(['p', 'q', 'r']);
    expect(data.users[0]).toMatchObject({ train: ['c'], validation: ['a'], test: ['b'] });
  });

  const failures: [string, (path: string) => Partial<ImportOptions>, string][] = [
    [
      'several titles',
      (path) => ({
        items: write(path, 'y.item', 'item_id:token\tmovie_title:token\told_title:token', 'a\tA\tB'),
      }),
      'y.item has several columns that may be the title; name one with --title-column: movie_title, old_title',
    ],
    [
      'no title',
      (path) => ({ items: write(path, 'y.item', 'item_id:token\tname:token', 'a\tA') }),
      'y.item has no column whose name ends in "title"; name one with --title-column: item_id, name',
    ],
    [
      'a type missing',
      (path) => ({ items: write(path, 'y.item', 'item_id:token\ttitle', 'a\tA') }),
      `y.item cannot be read: its header has RecBole's types, but not for "title"; write name:type with token`,
    ],
    [
      'a type misspelt',
      (path) => ({ interactions: write(path, 'y.inter', 'user_id:tok\titem_id:tok', 'u\ta') }),
      `y.inter cannot be read: its header has RecBole's types, but not for "user_id:tok", "item_id:tok"`,
    ],
    [
      'no rows',
      (path) => ({ interactions: inter(path) }),
      'x.inter holds no rows; its columns are: user_id:token, item_id:token, rating:float, timestamp:float',
    ],
    [
      'other columns',
      (path) => ({ interactions: write(path, 'y.inter', 'uid:token\titem_id:token', 'u\ta') }),
      'y.inter has no column "user_id"; it has: uid:token, item_id:token',
    ],
  ];
  it.each(failures)('refuses %s', async (_, change, message) => {
    const path = fresh();
    const good = { interactions: inter(path, ...rows), items: item(path, 'title:token') };
    await expect(imported({ ...good, ...change(path) })).rejects.toThrow(message);
  });
});

it('quotation marks around a value are none of it, as for pandas; others are', async () => {
  const path = fresh();
  const titles = {
    '"Doom"': 'Doom',
    '"a ""b"""': 'a "b"',
    '"Doom" 2': '"Doom" 2',
    '"': '"',
    '5" disk': '5" disk',
  };
  const data = await imported({
    interactions: write(path, 's.json', '{"u": ["0", "1", "2", "3", "4"]}'),
    items: write(
      path,
      'x.item',
      'item_id:token\ttitle:token_seq',
      ...Object.keys(titles).map((t, i) => `${i}\t${t}`),
    ),
  });
  expect(data.catalogue.items.map(({ title }) => title)).toEqual(Object.values(titles));
});

describe('an export', () => {
  const text = (characters: string, minLength: number) =>
    fc.string({ unit: fc.constantFrom(...characters), minLength, maxLength: 6 });
  const id = text('ab"\' #\\é0,', 1);
  const title = text('aé" \t\n\r#\\:,\u2028', 0);
  const attributes = fc.record(
    { 'a/b~c': fc.option(title), list: fc.array(text('ab', 1), { maxLength: 2 }), Year: text('0"', 0) },
    { requiredKeys: [] },
  );
  const set = fc.record({
    items: fc.uniqueArray(fc.tuple(id, title, attributes), {
      selector: ([key]) => key,
      minLength: 3,
      maxLength: 6,
    }),
    users: fc.uniqueArray(fc.tuple(id, attributes), { selector: ([key]) => key, minLength: 1, maxLength: 4 }),
    /** User and item by their places, and a time; the times of a tenth of a second would not survive float32. */
    interactions: fc.array(fc.tuple(fc.nat(3), fc.nat(5), fc.nat(50)), { minLength: 15, maxLength: 30 }),
    timed: fc.boolean(),
  });

  it('of any data set, imported again, is the same data set, and its parts are the split', async () => {
    await fc.assert(
      fc.asyncProperty(set, async ({ items, users, interactions, timed }) => {
        const path = fresh();
        const json = (name: string, value: unknown) => write(path, name, JSON.stringify(value));
        const different = new Set(interactions.map(([u, i]) => `${u % users.length} ${i % items.length}`));
        const split = timed && different.size >= 10 ? 'global-time' : 'leave-one-out';
        const options = {
          interactions: json(
            'i.json',
            interactions.map(([u, i, time]) => ({
              user: users[u % users.length]![0],
              item: items[i % items.length]![0],
              time,
            })),
          ),
          items: json(
            'items.json',
            items.map(([item, title, more]) => ({ item, title, ...more })),
          ),
          users: json(
            'users.json',
            users.map(([user, more]) => ({ user, ...more })),
          ),
          columns: timed ? { time: 'time' } : {},
          kCore: 0,
        } as const;
        const [data, out] = [join(path, 'data'), join(path, 'set')];
        await importDataset({ ...options, split, output: data });
        const written = await exportRecBole(data, out);

        const content = contentOf(await readDataset(data));
        const expected = {
          ...content,
          ...JSON.parse(JSON.stringify(content).replaceAll(/\\[tnr]/g, ' ')),
        };
        const again = await imported({
          interactions: join(out, 'set.inter'),
          items: join(out, 'set.item'),
          ...(written['set.user'] !== undefined && { users: join(out, 'set.user') }),
          split,
        });
        expect(contentOf(again)).toEqual(expected);

        const pairs = (part: 'train' | 'validation' | 'test') =>
          content.users.flatMap((user) => user[part].map((item) => [user.id, item]));
        for (const [suffix, part] of [
          ['train', 'train'],
          ['valid', 'validation'],
          ['test', 'test'],
        ] as const)
          expect(rowsOf(out, `${suffix}.inter`).map((row) => row.slice(0, 2))).toEqual(pairs(part));
        expect(rowsOf(out, 'inter')).toHaveLength(written['set.inter']!);
        expect(rowsOf(out, 'item').map(([item]) => item)).toEqual(content.items.map((item) => item.id));
      }),
      { numRuns: 10, endOnFailure: true },
    );
  });

  const small = async (
    items: object[] = [
      { item: 'a', title: 'A' },
      { item: 'b', title: 'B' },
    ],
    user = 'u',
  ) => {
    const path = fresh();
    const output = join(path, 'data');
    await importDataset({
      interactions: write(path, 'i.json', JSON.stringify({ [user]: ['b', 'a'] })),
      items: write(path, 'items.json', JSON.stringify(items)),
      kCore: 0,
      output,
    });
    return { path, output };
  };

  it("has the times of the data's own, of a client's folder too, and else the order", async () => {
    const path = fresh();
    const data = join(path, 'data');
    await importDataset({
      interactions: inter(path, 'u\tb\t1\t881250949', 'v\tb\t1\t5', 'v\ta\t1\t1.5'),
      items: write(path, 'x.item', 'item_id:token\ttitle:token', 'a\tA', 'b\tB'),
      kCore: 0,
      output: data,
    });
    await writeUsers(data, join(path, 'client'), { name: 'one, of two', users: ['v'] });
    await exportRecBole(join(path, 'client'), join(path, 'set'));
    expect(rowsOf(join(path, 'set'), 'inter')).toEqual([
      ['v', 'a', '1.5'],
      ['v', 'b', '5.0'],
    ]);
    const untimed = await small();
    await exportRecBole(untimed.output, join(untimed.path, 'set'));
    expect(rowsOf(join(untimed.path, 'set'), 'inter')).toEqual([
      ['u', 'b', '0.0'],
      ['u', 'a', '1.0'],
    ]);
  });

  const failures: [string, Parameters<typeof small>, string][] = [
    [
      'an attribute with a colon',
      [
        [
          { item: 'a', title: '', 'a:b': 1 },
          { item: 'b', title: '' },
        ],
      ],
      'items cannot be columns of RecBole\'s: "a:b"',
    ],
    [
      'an attribute called as the id',
      [
        [
          { item: 'a', title: '', item_id: 1 },
          { item: 'b', title: '' },
        ],
      ],
      'RecBole\'s: "item_id"; import the data without',
    ],
    [
      'an id with a tab',
      [undefined, 'u\t1'],
      '1 ids of users are empty or hold tabs or line breaks, such as "u\\t1"',
    ],
  ];
  it.each(failures)('refuses %s, and writes nothing', async (_, made, message) => {
    const { path, output } = await small(...made);
    await expect(exportRecBole(output, join(path, 'set'))).rejects.toThrow(message);
    expect(readdirSync(path).sort()).toEqual(['data', 'i.json', 'items.json']);
  });

  it('refuses a folder that is there, and data that are damaged', async () => {
    const { path, output } = await small();
    mkdirSync(join(path, 'set'));
    await expect(exportRecBole(output, join(path, 'set'))).rejects.toThrow(
      'set exists; choose another folder',
    );
    writeFileSync(join(output, 'items.parquet'), 'nothing');
    await expect(exportRecBole(output, join(path, 'new'))).rejects.toThrow('import the data again');
    expect(readdirSync(path)).not.toContain('new');
  });

  const movies = sharedData('ml-100k');
  it.skipIf(!movies)('of MovieLens-100K, imported again, has the same hash', async () => {
    const path = fresh();
    const split = 'global-time';
    const files = (at: string) => ({
      interactions: `${at}.inter`,
      items: `${at}.item`,
      users: `${at}.user`,
    });
    await importDataset({ ...files(`${movies}/ml-100k`), split, kCore: 5, output: join(path, 'data') });
    const written = await exportRecBole(join(path, 'data'), join(path, 'set'));
    expect(written).toMatchObject({ 'set.inter': 99_287, 'set.item': 1349, 'set.user': 943 });
    const data = await readDataset(join(path, 'data'));
    expect(written).toMatchObject({
      'set.train.inter': datasetStats(data).train,
      'set.test.inter': datasetStats(data).test,
    });
    expect((await imported({ ...files(join(path, 'set', 'set')), split })).hash).toBe(data.hash);
  });
});
