// Files as MicroLens, Goodreads and Amazon publish them: without a header, gzipped, one JSON object a line; made up here.
import { readdirSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { describe, expect, it } from 'vitest';
import { type ImportOptions, importDataset } from '../src/data/import.ts';
import type { Dataset } from '../src/dataset.ts';
import { importing, write } from './shared.ts';

const { fresh, imported } = importing();

/** `user: items` of every user, oldest first. */
const sequences = ({ users, catalogue }: Dataset) =>
  users.map(
    ({ id, train, validation, test }) =>
      `${id}: ${[...train, ...validation, ...test].map((item) => catalogue.items[item]!.id).join(' ')}`,
  );

function gzip(path: string, name: string, text: string | Buffer): string {
  const file = join(path, name);
  writeFileSync(file, gzipSync(text));
  return file;
}

const lines = (objects: readonly object[]) => objects.map((object) => `${JSON.stringify(object)}\n`).join('');

describe('MicroLens: files without a header', () => {
  const pairs = (path: string) => write(path, 'pairs.tsv', '1\t20 10 30', '2\t30', '3\t10 20');
  const rows = ['10,"One, ""two"""', '20,Plain', '30, spaced ', '40,unseen'];
  const headers = { interactions: ['user', 'items'], items: ['item', 'title'] };
  const columns = { sequence: 'items' };

  it.each([
    ['with', ['item,title', ...rows], { interactions: headers.interactions }],
    ['without', rows, headers],
  ])('titles %s one: every row counts', async (_, titles, headers) => {
    const path = fresh();
    const items = write(path, 'titles.csv', ...titles);
    const data = await imported({ interactions: pairs(path), items, headers, columns });
    expect(sequences(data)).toEqual(['1: 20 10 30', '2: 30', '3: 10 20']);
    expect(data.catalogue.items.map(({ title }) => title)).toEqual(['One, "two"', 'Plain', ' spaced ']);
  });

  it('rows of several columns: ratings as Amazon lists them', async () => {
    const path = fresh();
    const data = await imported({
      interactions: write(path, 'ratings.csv', 'u,a,5.0,30', 'u,b,2.0,10', 'u,c,4.0,20'),
      items: write(path, 'items.csv', 'a,A', 'b,B', 'c,C'),
      headers: { interactions: ['user', 'item', 'rating', 'time'], items: headers.items },
      columns: { time: 'time' },
    });
    expect(sequences(data)).toEqual(['u: b c a']);
  });

  it('quotation marks that come late in a long file are found', async () => {
    const path = fresh();
    const many = Array.from({ length: 30_000 }, (_, i) => `${i},plain`);
    const items = write(path, 'titles.csv', ...many, '30000,"One, ""two"""');
    const interactions = write(path, 's.json', '{"u": ["0", "30000"]}');
    const data = await imported({ interactions, items, headers: { items: headers.items } });
    expect(data.catalogue.items.map(({ title }) => title)).toEqual(['plain', 'One, "two"']);
  });

  const failures: [string, (path: string) => Partial<ImportOptions>, string | RegExp][] = [
    [
      'interactions whose first row would be lost',
      () => ({ headers: { items: headers.items } }),
      'pairs.tsv has no column "user"; it has: 1, 20 10 30; if these are its first values, name its columns with --interactions-header',
    ],
    [
      'titles whose first row would be lost',
      () => ({ headers: { interactions: headers.interactions } }),
      'titles.csv has no column "item"; it has: 10, One, "two"; if these are its first values',
    ],
    [
      'too few names',
      () => ({ headers: { ...headers, items: ['item'] } }),
      'titles.csv has 2 columns; the header given for it names 1: item',
    ],
    [
      'too many names',
      () => ({ headers: { ...headers, interactions: ['user', 'items', 'time'] } }),
      /pairs\.tsv cannot be read: .*Expected Number of Columns: 3 Found: 2/s,
    ],
    [
      'names for a file that has them',
      (path) => ({ items: write(path, 'titles.json', '{"10": "A"}') }),
      'titles.json cannot be read: it names its columns itself; give no header for it',
    ],
  ];
  it.each(failures)('refuses %s', async (_, change, message) => {
    const path = fresh();
    const good = { interactions: pairs(path), items: write(path, 'titles.csv', ...rows), headers, columns };
    await expect(imported({ ...good, ...change(path) })).rejects.toThrow(message);
  });
});

describe('Goodreads: gzipped lines of JSON', () => {
  const dates = [
    'Fri Nov 18 07:22:29 -0800 2016',
    'Fri Nov 18 16:22:28 +0100 2016',
    'Thu Mar 02 00:00:00 -0800 2006',
  ];
  const read = dates.map((date, i) => ({
    user_id: 'u',
    book_id: `0${i}`,
    rating: 5 - 2 * i,
    date_updated: date,
  }));
  const books = [0, 1, 2].map((i) => ({
    book_id: `0${i}`,
    title: `Book ${i}`,
    series: i === 1 ? [] : ['x', `y${i}`],
    authors: [{ author_id: '7' }],
  }));
  const columns = { user: 'user_id', item: 'book_id', itemId: 'book_id', time: 'date_updated' };
  const files = (path: string) => ({
    interactions: gzip(path, 'interactions.json.gz', lines(read)),
    items: gzip(path, 'books.json.gz', lines(books)),
    columns,
  });

  it('dates with an offset, ids with zeros, lists as words', async () => {
    const data = await imported(files(fresh()));
    expect(sequences(data)).toEqual(['u: 02 01 00']);
    expect(data.catalogue.items.map(({ attributes }) => attributes)).toEqual([
      { series: 'x y0', authors: '{"author_id":"7"}' },
      { series: '', authors: '{"author_id":"7"}' },
      { series: 'x y2', authors: '{"author_id":"7"}' },
    ]);
  });

  it('only what is rated high enough, and what is rated at all', async () => {
    const path = fresh();
    const rated = [...read, { user_id: 'u', book_id: '01', date_updated: 'never' }];
    const interactions = gzip(path, 'rated.jsonl.gz', lines(rated));
    const data = await imported({ ...files(path), interactions, minRating: 3 });
    expect(sequences(data)).toEqual(['u: 01 00']);
    await expect(imported({ ...files(path), minRating: 6 })).rejects.toThrow('no interaction counts');
    await expect(
      imported({ ...files(path), minRating: 3, columns: { ...columns, rating: 'stars' } }),
    ).rejects.toThrow('has no column "stars"; it has: user_id, book_id, rating, date_updated');
    await expect(
      imported({ ...files(path), minRating: 3, columns: { ...columns, rating: 'user_id' } }),
    ).rejects.toThrow('the rating column "user_id" holds "u", which is no number');
    const undefinedRating = write(path, 'nan.csv', 'user_id,book_id,rating', 'u,00,5', 'u,01,nan');
    await expect(
      imported({
        ...files(path),
        interactions: undefinedRating,
        minRating: 3,
        columns: { ...columns, time: undefined },
      }),
    ).rejects.toThrow('the rating column "rating" holds "nan", which is no number');
  });

  it('dates of ISO 8601 with and without an offset', async () => {
    const path = fresh();
    const times = [
      '2016-11-18T07:00:00+08:00',
      '2016-11-17 23:30:00',
      '2016-11-17T20:00:00-02:30',
      '2016-11-17',
    ];
    const interactions = write(path, 'i.csv', 'user,item,t', ...times.map((time, i) => `u,${i},${time}`));
    const items = write(path, 'items.csv', 'item,title', '0,a', '1,b', '2,c', '3,d');
    expect(sequences(await imported({ interactions, items, columns: { time: 't' } }))).toEqual([
      'u: 3 2 0 1',
    ]);
  });

  const whole = gzipSync(lines(read));
  const middle = Math.floor(whole.length / 2);
  it.each([
    ['cut off', whole.subarray(0, middle), 'unexpected end of file'],
    ['cut off in its checksum', whole.subarray(0, -6), 'unexpected end of file'],
    [
      'with a wrong bit',
      Buffer.concat([whole.subarray(0, -5), Buffer.from([1]), whole.subarray(-4)]),
      'incorrect data check',
    ],
    ['that is none', Buffer.from(lines(read)), 'incorrect header check'],
  ])('a gzip file %s is refused', async (_, bytes, reason) => {
    for (const name of ['i.json.gz', 'i.csv.gz', 'i.inter.gz']) {
      const path = fresh();
      const good = files(path);
      const interactions = join(path, name);
      writeFileSync(interactions, bytes);
      await expect(importDataset({ ...good, interactions, output: join(path, 'data') })).rejects.toThrow(
        `${name} cannot be read: it is no whole gzip file (${reason}); fetch it again`,
      );
      expect(readdirSync(path)).not.toContain('data');
    }
  });

  it('CSV, tab-separated and JSON files are read gzipped as well', async () => {
    const path = fresh();
    const items = gzip(path, 'items.json.gz', '{"a": "A", "b": "B"}');
    for (const [name, text] of [
      ['i.csv.gz', 'user,item\nu,b\nu,a\n'],
      ['i.tsv.gz', 'user\titem\nu\tb\nu\ta\n'],
      ['i.inter.gz', 'user_id:token\titem_id:token\nu\tb\nu\ta\n'],
      ['s.json.gz', '{"u": ["b", "a"]}'],
    ] as const)
      expect(sequences(await imported({ interactions: gzip(path, name, text), items }))).toEqual(['u: b a']);
  });
});

describe('Amazon: reviews and metadata', () => {
  const reviews = ['a', 'b', 'c', 'd'].map((asin, i) => ({
    overall: 5.0 - i,
    reviewerID: 'u',
    asin,
    reviewText: 'line\nof "text"',
    style: { 'Size:': 'x' },
    unixReviewTime: 1_445_040_000 - i,
  }));
  const meta = ['a', 'b', 'c', 'a'].map((asin) => ({
    category: ['Video Games', 'PC'],
    title: asin === 'b' ? ' ' : `Game ${asin}`,
    brand: 'B',
    asin,
  }));
  const options = (path: string) => ({
    interactions: write(path, 'reviews.json', lines(reviews).trimEnd()),
    items: write(path, 'meta.json', lines(meta).trimEnd()),
    columns: { user: 'reviewerID', item: 'asin', itemId: 'asin', time: 'unixReviewTime' },
  });

  it('.json files of lines; items without a title are an error or left out; repeated lines count once', async () => {
    const path = fresh();
    await expect(imported(options(path))).rejects.toThrow(
      '1 items of the interactions have no title, such as "d"; do both files belong together? --drop-untitled',
    );
    const data = await imported({ ...options(path), dropUntitled: true });
    expect(sequences(data)).toEqual(['u: c a']);
    expect(data.catalogue.items[0]).toEqual({
      id: 'a',
      title: 'Game a',
      attributes: { category: 'Video Games PC', brand: 'B' },
    });
  });

  it('an id with two different titles is an error', async () => {
    const path = fresh();
    const items = write(path, 'two.jsonl', lines([...meta, { asin: 'c', title: 'Another' }]));
    await expect(imported({ ...options(path), items })).rejects.toThrow(
      'two.jsonl: the id "c" occurs 2 times',
    );
  });

  it('lists in lines of JSON are sequences', async () => {
    const path = fresh();
    const interactions = write(path, 's.jsonl', lines([{ user: 'u', items: ['c', 'a b', 7] }]).trimEnd());
    const items = write(path, 'items.json', '{"c": "C", "a b": "AB", "7": "seven"}');
    expect(sequences(await imported({ interactions, items, columns: { sequence: 'items' } }))).toEqual([
      'u: c a b 7',
    ]);
  });

  it.each([
    [
      'Python',
      `{'asin': 'a', 'title': "A"}\n{'asin': 'b', 'title': "B"}\n`,
      'meta.json cannot be read: its lines are Python, not JSON',
    ],
    [
      'a broken line',
      '{"asin": "a", "title": "A"}\n{"asin": "b", "title"\n',
      'meta.json cannot be read: Invalid Input Error: Malformed JSON',
    ],
    ['nothing', '', 'meta.json cannot be read: '],
  ])('metadata of %s are refused', async (_, text, message) => {
    const path = fresh();
    const items = join(path, 'meta.json');
    const good = options(path);
    writeFileSync(items, text);
    await expect(imported({ ...good, items })).rejects.toThrow(message);
  });

  it('JSON in one piece that no string can hold is refused before it is read', async () => {
    const path = fresh();
    const good = options(path);
    const items = join(path, 'huge.json');
    writeFileSync(items, '');
    truncateSync(items, 2 ** 30);
    await expect(imported({ ...good, items })).rejects.toThrow(
      'huge.json cannot be read: it is JSON in one piece of 1024 MiB, more than fits into a string; write one object a line',
    );
  });
});
