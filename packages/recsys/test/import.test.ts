import { existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { readDataset } from '../src/data/folder.ts';
import { type ImportOptions, importDataset } from '../src/data/import.ts';
import { type Dataset, datasetStats, type User } from '../src/dataset.ts';
import { gamesSample, importing, sharedData, write } from './shared.ts';

const { fresh, imported } = importing();

const all = ({ train, validation, test }: User) => [...train, ...validation, ...test];
/** Ids of a user's items, oldest first. */
const idsOf = (data: Dataset, id: string) =>
  all(data.users.find((user) => user.id === id)!).map((item) => data.catalogue.items[item]!.id);

const titles = (path: string) =>
  write(path, 'items.tsv', 'item\ttitle', ...'abcdef'.split('').map((c) => `${c}\t${c.toUpperCase()}`));

describe('formats give the same data set', () => {
  const expected = { u1: ['b', 'a', 'c'], u2: ['d', 'c', 'a', 'b'] };
  const rows = [
    ['u1', 'b', 1],
    ['u2', 'd', 1],
    ['u1', 'a', 2],
    ['u1', 'c', 3],
    ['u2', 'c', 4],
    ['u2', 'a', 5],
    ['u2', 'b', 6],
  ] as const;
  const shuffled = [6, 2, 4, 0, 5, 1, 3].map((i) => rows[i]!);
  const timed = { user: 'user', item: 'item', time: 'time' };
  const cases: Record<string, (path: string) => Pick<ImportOptions, 'interactions' | 'columns'>> = {
    'CSV with timestamps': (path) => ({
      interactions: write(path, 'i.csv', 'user,item,time', ...shuffled.map((row) => row.join(','))),
      columns: timed,
    }),
    'CSV in order': (path) => ({
      interactions: write(path, 'i.csv', 'user,item,rating', ...rows.map(([u, i]) => `${u},${i},5`)),
    }),
    'tab-separated with dates': (path) => ({
      interactions: write(
        path,
        'i.tsv',
        'user\titem\ttime',
        ...shuffled.map(([u, i, t]) => `${u}\t${i}\t2018-01-0${t} 10:00:00`),
      ),
      columns: timed,
    }),
    'RecBole with typed columns': (path) => ({
      interactions: write(
        path,
        'x.inter',
        'user_id:token\titem_id:token\ttimestamp:float',
        ...shuffled.map((row) => row.join('\t')),
      ),
      columns: { user: 'user_id', item: 'item_id:token', time: 'timestamp' },
    }),
    sequences: (path) => ({
      interactions: write(
        path,
        's.tsv',
        'who\twhat',
        ...Object.entries(expected).map(([u, items]) => `${u}\t${items.join(' ')}`),
      ),
      columns: { user: 'who', sequence: 'what' },
    }),
    'JSON of sequences': (path) => ({
      interactions: write(path, 's.json', JSON.stringify(expected, undefined, 1)),
    }),
    'JSON array': (path) => ({
      interactions: write(
        path,
        'i.json',
        JSON.stringify(shuffled.map(([user, item, time]) => ({ user, item, time }))),
      ),
      columns: timed,
    }),
    'JSON lines': (path) => ({
      interactions: write(
        path,
        'i.jsonl',
        ...shuffled.map(([user, item, time]) => JSON.stringify({ time, user, item })),
      ),
      columns: timed,
    }),
  };
  it.each(Object.keys(cases))('%s', async (name) => {
    const path = fresh();
    const data = await imported({ ...cases[name]!(path), items: titles(path) });
    for (const [id, items] of Object.entries(expected)) expect(idsOf(data, id)).toEqual(items);
    expect(data.users).toHaveLength(2);
    expect(data.catalogue.items.map(({ id, title }) => id + title)).toEqual(['aA', 'bB', 'cC', 'dD']);
  });

  it('Parquet, also what the importer wrote', async () => {
    const path = fresh();
    const output = join(path, 'first');
    await importDataset({ ...cases['CSV in order']!(path), items: titles(path), output, kCore: 0 });
    const data = await imported({
      interactions: join(output, 'interactions.parquet'),
      items: join(output, 'items.parquet'),
      columns: { time: 'position', itemId: 'index' },
    });
    expect(data.users.map(all)).toEqual((await readDataset(output)).users.map(all));
  });
});

describe('names', () => {
  it('with quotes, SQL and glob characters are only names', async () => {
    const path = join(fresh(), `it's "x"; DROP [a]*`);
    mkdirSync(path);
    const user = `us"er'; DROP TABLE items; --`;
    const interactions = write(path, `i'[1].tsv`, `${user}\tit em`, 'u\ta', 'u\tb', 'u\tc');
    const data = await imported({ interactions, items: titles(path), columns: { user, item: 'it em' } });
    expect(idsOf(data, 'u')).toEqual(['a', 'b', 'c']);
  });

  it('of items are kept as they are: spaces in JSON, leading zeros, quotes, HTML entities, spaces around titles', async () => {
    const path = fresh();
    const ids = ['0 07', 'B"x', '12345678901234567890'];
    const items = Object.fromEntries(
      ids.map((id) => [id, { title: ` ${id} &amp; "more" `, 'a/b~c': 'x', none: null, list: ['p', 'q'] }]),
    );
    const data = await imported({
      interactions: write(path, 'i.json', `{"007": ["0 07", "B\\"x", 12345678901234567890]}`),
      items: write(path, 'items.json', JSON.stringify(items)),
    });
    expect(data.users[0]!.id).toBe('007');
    expect(data.catalogue.items.map(({ id }) => id)).toEqual(ids);
    expect(data.catalogue.items[0]).toEqual({
      id: '0 07',
      title: ' 0 07 &amp; "more" ',
      attributes: { 'a/b~c': 'x', list: 'p q' },
    });
  });

  it('may belong to two items: ids are keys, titles are not', async () => {
    const path = fresh();
    const data = await imported({
      interactions: write(path, 's.json', '{"u": ["a", "b", "c"]}'),
      items: write(path, 't.json', '{"a": "same", "b": "same", "c": "same"}'),
    });
    expect(data.catalogue.items.map(({ title }) => title)).toEqual(['same', 'same', 'same']);
    expect(data.catalogue.indexOf('b')).toBe(1);
    expect(() => data.catalogue.indexOf('same')).toThrow('no item has the id "same"');
  });
});

it('titles in tab-separated files may hold quotation marks and number signs', async () => {
  const path = fresh();
  const titled = ['"Doom" 2', '"open', '# 1', ' a, b; c'];
  const data = await imported({
    interactions: write(path, 's.json', '{"u": ["0", "1", "2", "3"]}'),
    items: write(path, 'items.tsv', 'item\ttitle', ...titled.map((title, i) => `${i}\t${title}`)),
  });
  expect(data.catalogue.items.map(({ title }) => title)).toEqual(titled);
});

it('fields of JSON lines may have any name, and be missing in some lines', async () => {
  const path = fresh();
  const lines = [
    { item: 'a', title: 'A' },
    { item: 'b', title: 'B', 'a/b~c "d"': 'x' },
    { item: 'c', title: 'C' },
  ];
  const data = await imported({
    interactions: write(path, 's.json', '{"u": ["a", "b", "c"]}'),
    items: write(path, 'items.jsonl', ...lines.map((line) => JSON.stringify(line))),
  });
  expect(data.catalogue.items.map(({ attributes }) => attributes)).toEqual([{}, { 'a/b~c "d"': 'x' }, {}]);
});

it('sequences keep the order of users, and go on where a user occurs again', async () => {
  const path = fresh();
  const rows = ['z\ta b', 'm\tc b a', 'z\td c', 'a\tf'];
  const interactions = write(path, 's.tsv', 'user\titems', ...rows);
  const data = await imported({ interactions, items: titles(path), columns: { sequence: 'items' } });
  expect(data.users.map(({ id }) => [id, idsOf(data, id).join(' ')])).toEqual([
    ['z', 'a b d c'],
    ['m', 'c b a'],
    ['a', 'f'],
  ]);
});

it('of repeated interactions the last in time counts', async () => {
  const path = fresh();
  const rows = ['u,a,1', 'u,b,2', 'u,a,9', 'u,c,3', 'u,a,2', 'u,d,4'];
  const interactions = write(path, 'i.csv', 'user,item,time', ...rows);
  const byTime = await imported({ interactions, items: titles(path), columns: { time: 'time' } });
  expect(idsOf(byTime, 'u')).toEqual(['b', 'c', 'd', 'a']);
  const byRow = await imported({ interactions, items: titles(path) });
  expect(idsOf(byRow, 'u')).toEqual(['b', 'c', 'a', 'd']);
});

it('columns of users become attributes', async () => {
  const path = fresh();
  const data = await imported({
    interactions: write(path, 's.json', '{"u1": ["a", "b", "c"], "u2": ["a", "b", "c"]}'),
    items: titles(path),
    users: write(path, 'x.user', 'user_id:token\tage:token\tgender:token', 'u1\t24\tM', 'other\t1\tF'),
    columns: { userId: 'user_id' },
  });
  expect(data.users.map(({ attributes }) => attributes)).toEqual([{ age: '24', gender: 'M' }, {}]);
});

const arbitraryPairs = fc.array(fc.tuple(fc.nat(11), fc.nat(11)), { minLength: 60, maxLength: 110 });

it('a k-core is stable and the largest: what it dropped cannot stay', async () => {
  const path = fresh();
  const items = write(path, 'all.tsv', 'item\ttitle', ...Array.from({ length: 12 }, (_, i) => `${i}\tt`));
  await fc.assert(
    fc.asyncProperty(arbitraryPairs, fc.integer({ min: 2, max: 4 }), async (pairs, kCore) => {
      let kept = [...new Set(pairs.map(([u, i]) => `${u} ${i}`))].map((key) => key.split(' '));
      for (let size = -1; size !== kept.length; ) {
        size = kept.length;
        for (const side of [0, 1])
          kept = kept.filter((pair) => kept.filter((other) => other[side] === pair[side]).length >= kCore);
      }
      const interactions = write(path, 'i.tsv', 'user\titem', ...pairs.map((pair) => pair.join('\t')));
      const found = imported({ interactions, items, kCore });
      if (kept.length === 0) {
        await expect(found).rejects.toThrow(`no interaction is left after ${kCore}-core`);
        return;
      }
      const data = await found;
      const keys = data.users.flatMap(({ id }) => idsOf(data, id).map((item) => `${id} ${item}`));
      expect(keys.sort()).toEqual(kept.map((pair) => pair.join(' ')).sort());
    }),
    { numRuns: 25 },
  );
});

describe('splits', () => {
  it('leave one out: the last item is for testing, the one before for validation', async () => {
    const path = fresh();
    const interactions = write(path, 's.json', '{"long": ["a", "b", "c", "d"], "short": ["a", "b"]}');
    const data = await imported({ interactions, items: titles(path) });
    expect(data.users).toMatchObject([
      { train: [0, 1], validation: [2], test: [3] },
      { train: [0, 1], validation: [], test: [] },
    ]);
  });

  const arbitraryTimes = fc.array(fc.tuple(fc.nat(4), fc.nat(40)), { minLength: 30, maxLength: 60 });
  it('by time: later parts are later for everybody, in shares of 8:1:1', async () => {
    const path = fresh();
    await fc.assert(
      fc.asyncProperty(arbitraryTimes, async (pairs) => {
        // Every interaction has its own item, so that nothing is repeated.
        const items = write(path, 'all.tsv', 'item\ttitle', ...pairs.map((_, i) => `${i}\tt`));
        const interactions = write(
          path,
          'i.csv',
          'user,item,time',
          ...pairs.map(([u, t], i) => `${u},${i},${t}`),
        );
        const data = await imported({ interactions, items, split: 'global-time', columns: { time: 'time' } });
        const times = (part: 'train' | 'validation' | 'test') =>
          data.users.flatMap((user) =>
            user[part].map((item) => pairs[Number(data.catalogue.items[item]!.id)]![1]),
          );
        const sorted = pairs.map(([, time]) => time).sort((a, b) => a - b);
        const tenth = Math.floor(0.1 * pairs.length);
        const [validFrom, testFrom] = [sorted.at(-2 * tenth)!, sorted.at(-tenth)!];
        const of = (from: number, to: number) => sorted.filter((time) => time >= from && time < to);
        expect(times('train').sort((a, b) => a - b)).toEqual(of(-1, validFrom));
        expect(times('validation').sort((a, b) => a - b)).toEqual(of(validFrom, testFrom));
        expect(times('test').sort((a, b) => a - b)).toEqual(of(testFrom, 1e9));
      }),
      { numRuns: 20 },
    );
  });
});

it('a file is read under its own name, whatever is in it', async () => {
  const path = fresh();
  const bracketed = join(path, 'games [v1]?*');
  mkdirSync(bracketed);
  const interactions = write(bracketed, 'i[1].csv', 'user,item', 'u,a', 'u,b', 'u,c');
  write(bracketed, 'i1.csv', 'user,item', 'v,a');
  const items = write(bracketed, 'items[1].tsv', 'item\ttitle', 'a\tA', 'b\tB', 'c\tC');
  write(bracketed, 'items1.tsv', 'item\ttitle', 'a\tX', 'b\tX', 'c\tX');
  const output = join(bracketed, 'data[1]');
  await importDataset({ interactions, items, output, kCore: 0 });
  const { users, catalogue } = await readDataset(output);
  expect(users.map(({ id }) => id)).toEqual(['u']);
  expect(catalogue.items.map(({ title }) => title)).toEqual(['A', 'B', 'C']);
});

it('JSON may begin with a byte order mark', async () => {
  const path = fresh();
  const interactions = write(path, 's.json', '\ufeff{"u": ["a", "b", "c"]}');
  expect((await imported({ interactions, items: titles(path) })).users).toHaveLength(1);
});

describe('errors say what is wrong and write nothing', () => {
  const good = (path: string) => ({
    interactions: write(path, 'i.csv', 'user,item', 'u,a', 'u,b', 'u,c'),
    items: titles(path),
  });
  const cases: Record<string, [(path: string) => Partial<ImportOptions>, string | RegExp]> = {
    'a missing file': [(path) => ({ interactions: join(path, 'none.csv') }), 'none.csv does not exist'],
    'a missing column': [
      () => ({ columns: { user: 'who' } }),
      'i.csv has no column "who"; it has: user, item',
    ],
    'a missing title column': [
      () => ({ columns: { title: 'name' } }),
      'items.tsv has no column "name"; it has: item, title',
    ],
    'unknown items': [
      (path) => ({
        interactions: write(path, 'j.csv', 'user,item', 'u,a', 'u,x', 'u,y', 'u,x', 'u,z', 'u,q'),
      }),
      '4 items of the interactions have no title, such as "q", "x", "y"',
    ],
    'repeated items': [
      (path) => ({ items: write(path, 'twice.tsv', 'item\ttitle', 'a\tA', 'b\tB', 'c\tC', 'a\tD') }),
      'twice.tsv: the id "a" occurs 2 times',
    ],
    'repeated users': [
      (path) => ({ users: write(path, 'users.csv', 'user,age', 'u,1', 'u,2') }),
      'users.csv: the id "u" occurs 2 times',
    ],
    'nothing left': [() => ({ kCore: 5 }), 'no interaction is left after 5-core filtering'],
    'no rows': [
      (path) => ({ interactions: write(path, 'j.csv', 'user,item') }),
      'j.csv holds no rows; its columns are: user, item',
    ],
    'a k that is no number': [() => ({ kCore: 2.5 }), 'the k of k-core filtering is 2.5'],
    'a split by time without times': [
      () => ({ split: 'global-time' }),
      'a global-time split needs timestamps',
    ],
    'times that are none': [
      (path) => ({
        interactions: write(path, 'j.csv', 'user,item,t', 'u,a,1', 'u,b,soon'),
        columns: { time: 't' },
      }),
      'the time column "t" holds "soon", which is neither a number nor a date',
    ],
    'an interaction without item': [
      (path) => ({ interactions: write(path, 'j.csv', 'user,item', 'u,a', 'u,') }),
      '1 interactions have no user or no item',
    ],
    'rows without an id': [
      (path) => ({ items: write(path, 'k.csv', 'item,title', 'a,A', 'b,B', 'c,C', ',D', ',E') }),
      'k.csv: 2 rows have no id',
    ],
    'two columns of one name': [
      (path) => ({ items: write(path, 'k.tsv', 'item\ttitle\tTitle', 'a\tA\tA') }),
      'k.tsv cannot be read: two of its columns are called "Title"',
    ],
    'a column without a name': [
      (path) => ({ items: write(path, 'k.tsv', 'item\ttitle\t', 'a\tA\t') }),
      'one of its columns has no name; is there a tab at the end',
    ],
    'lines that end in two ways': [
      (path) => ({
        items: write(
          path,
          'k.tsv',
          'item\ttitle',
          ...Array.from({ length: 9 }, (_, i) => `${i}\tT${'\r'.repeat(i % 2)}`),
        ),
      }),
      'k.tsv cannot be read: its lines do not end alike',
    ],
    'times of sequences': [
      (path) => ({
        interactions: write(path, 's.tsv', 'user\titems', 'u\ta b c'),
        columns: { sequence: 'items', time: 'time' },
      }),
      's.tsv holds sequences, which have no times; leave the time column away',
    ],
    'sequences that are to be split by time': [
      (path) => ({ interactions: write(path, 's.json', '{"u": ["a", "b"]}'), split: 'global-time' }),
      's.json holds sequences, which have no times; split them by leave-one-out',
    ],
    'rows of the wrong length': [
      (path) => ({ interactions: write(path, 'j.tsv', 'user\titem', 'u\ta', 'u\ta\tb\tc') }),
      /j\.tsv cannot be read: .*Line: 3/,
    ],
    'malformed JSON': [
      (path) => ({ interactions: write(path, 'j.json', '{"u": [') }),
      /j\.json cannot be read: /,
    ],
    'JSON of another shape': [
      (path) => ({ interactions: write(path, 'j.json', '{"u": [1], "v": 3}') }),
      'j.json cannot be read: expected an array of objects, {user: [items]}',
    ],
    'malformed Parquet': [
      (path) => ({ interactions: write(path, 'j.parquet', 'no parquet') }),
      /j\.parquet cannot be read: /,
    ],
  };
  it.each(Object.keys(cases))('%s', async (name) => {
    const path = fresh();
    const out = fresh();
    const [change, message] = cases[name]!;
    const options = { kCore: 0, ...good(path), output: join(out, 'data'), ...change(path) };
    await expect(importDataset(options)).rejects.toThrow(message);
    expect(readdirSync(out)).toEqual([]);
  });

  it('an existing folder is replaced only by force, and only if it is a data folder', async () => {
    const path = fresh();
    const output = join(path, 'data');
    const options = { kCore: 0, ...good(path), output };
    await importDataset(options);
    await expect(importDataset(options)).rejects.toThrow('exists; choose another folder or pass --force');
    await expect(importDataset({ ...options, force: true, kCore: 9 })).rejects.toThrow(
      'no interaction is left',
    );
    expect((await readDataset(output)).users).toHaveLength(1);
    await importDataset({ ...options, force: true, name: 'again' });
    expect((await readDataset(output)).name).toBe('again');
    expect(readdirSync(path).sort()).toEqual(['data', 'i.csv', 'items.tsv']);

    const foreign = join(path, 'photos');
    mkdirSync(foreign);
    writeFileSync(join(foreign, 'cat.jpg'), '');
    await expect(importDataset({ ...options, output: foreign, force: true })).rejects.toThrow(
      'photos is no data folder and is not replaced',
    );
    expect(existsSync(join(foreign, 'cat.jpg'))).toBe(true);
  });
});

it('of two imports into one folder one succeeds, and the other leaves nothing behind', async () => {
  const path = fresh();
  const out = fresh();
  const interactions = write(path, 's.json', '{"u": ["a", "b", "c"]}');
  const options = { interactions, items: titles(path), output: join(out, 'data'), kCore: 0 };
  const results = await Promise.allSettled([importDataset(options), importDataset(options)]);
  expect(results.map(({ status }) => status).sort()).toEqual(['fulfilled', 'rejected']);
  expect(readdirSync(out)).toEqual(['data']);
  expect((await readDataset(join(out, 'data'))).users).toHaveLength(1);
});

describe('real data', () => {
  it('the embedded sample keeps all under 5-core', async () => {
    const data = await imported({
      interactions: join(gamesSample, 'sequences.tsv'),
      items: join(gamesSample, 'items.tsv'),
      columns: { sequence: 'items' },
      kCore: 5,
    });
    expect(datasetStats(data)).toEqual({
      users: 296,
      items: 269,
      interactions: 2465,
      density: 2465 / (296 * 269),
      meanLength: 2465 / 296,
      longest: 18,
      train: 1873,
      validation: 296,
      test: 296,
    });
    expect(idsOf(data, data.users[0]!.id).length).toBeGreaterThanOrEqual(5);
  });

  const games = sharedData('games');
  it.skipIf(!games)('Games: the counts of its 5-core, chronological order', async () => {
    const data = await imported({
      interactions: `${games}/sequences.tsv`,
      items: `${games}/items.tsv`,
      columns: { sequence: 'items' },
      kCore: 5,
    });
    expect(datasetStats(data)).toMatchObject({
      users: 50_546,
      items: 16_859,
      interactions: 452_989,
      longest: 771,
    });
    expect(idsOf(data, '0')).toEqual(['0', '1', '2', '3', '4', '5']);
  });

  const movies = sharedData('ml-100k');
  it.skipIf(!movies)('MovieLens-100K: atomic files, split by time, users by occupation', async () => {
    const data = await imported({
      interactions: `${movies}/ml-100k.inter`,
      items: `${movies}/ml-100k.item`,
      users: `${movies}/ml-100k.user`,
      split: 'global-time',
    });
    const stats = datasetStats(data);
    expect(stats).toMatchObject({ users: 943, items: 1682, interactions: 100_000 });
    // Ties at the borders move a few.
    expect(Math.abs(stats.train - 80_000)).toBeLessThan(50);
    expect(Math.abs(stats.test - 10_000)).toBeLessThan(50);
    expect(data.catalogue.items[0]).toEqual({
      id: '1',
      title: 'Toy Story',
      attributes: { release_year: '1995', class: "Animation Children's Comedy" },
    });
    expect(data.users.find(({ id }) => id === '1')!.attributes.occupation).toBe('technician');
  });

  const office = sharedData('office');
  it.skipIf(!office)('Office: JSON of sequences and of items with attributes', async () => {
    const data = await imported({
      interactions: `${office}/Office_Products.inter.json`,
      items: `${office}/Office_Products.item.json`,
      kCore: 5,
    });
    expect(datasetStats(data)).toMatchObject({ users: 4905, items: 2420, interactions: 53_258 });
    expect(idsOf(data, '0').slice(0, 4)).toEqual(['0', '781', '1083', '215']);
    expect(Object.keys(data.catalogue.items[0]!.attributes)).toContain('brand');
  });
});
