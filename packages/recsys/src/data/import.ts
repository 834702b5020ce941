// From files as they are published to one data folder: interactions and titles read by DuckDB, k-core, split.
import { basename, resolve } from 'node:path';
import type { DuckDBConnection } from '@duckdb/node-api';
import type { SplitName } from '../dataset.ts';
import { identifier, rows, withDatabase } from './duckdb.ts';
import { attributesOf, column, type FileTable, loadFile } from './files.ts';
import { refuseExisting, writeFolder } from './folder.ts';
import { untyped } from './recbole.ts';

export interface ImportOptions {
  /** CSV, tab-separated (.tsv, RecBole's .inter), JSON, JSON lines or Parquet; all but Parquet may be gzipped. */
  readonly interactions: string;
  readonly items: string;
  readonly users?: string;
  /** Names of the columns of files whose first line is data. */
  readonly headers?: {
    readonly interactions?: readonly string[] | undefined;
    readonly items?: readonly string[] | undefined;
  };
  /** Folder to write; must not exist unless `force`, and then must be a data folder or empty. */
  readonly output: string;
  readonly force?: boolean;
  readonly name?: string;
  /** Defaults: `user`, `item` and `title`; of files with RecBole's types `user_id`, `item_id`, `timestamp` and the title. */
  readonly columns?: {
    readonly user?: string;
    readonly item?: string;
    /** Numbers or dates that grow with time; without one, rows are in order. */
    readonly time?: string;
    /** A column that holds a user's whole sequence of items, oldest first: a list, or text separated by spaces. */
    readonly sequence?: string;
    /** What `minRating` is about; default `rating`. */
    readonly rating?: string;
    readonly itemId?: string;
    readonly title?: string;
    /** Default: that of the interactions. */
    readonly userId?: string;
  };
  /** Interactions with a lower rating, or none, do not count. */
  readonly minRating?: number;
  /** Whether interactions with items that have no title do not count; without it they are an error if the item is unknown. */
  readonly dropUntitled?: boolean;
  /** Every user and item keeps at least this many interactions; 0 is off. */
  readonly kCore?: number;
  readonly split?: SplitName;
}

/**
 * Writes the data folder; of several interactions of a user with an item the last one counts.
 * @throws on missing files or columns, unknown items, or when nothing is left; then nothing is written.
 */
export async function importDataset(options: ImportOptions): Promise<void> {
  const { kCore = 5, split = 'leave-one-out', force = false } = options;
  const output = resolve(options.output);
  const name = options.name ?? basename(output);
  if (!Number.isInteger(kCore) || kCore < 0)
    throw new Error(`data: the k of k-core filtering is ${kCore}; use a whole number, 0 for none`);
  refuseExisting(output, force);
  await withDatabase(async (db) => {
    // Dates without an offset mean the same everywhere.
    await db.run(`SET TimeZone = 'UTC'`);
    await readInteractions(db, options);
    await readItems(db, options);
    if (options.dropUntitled)
      await db.run(
        `DELETE FROM interactions WHERE NOT EXISTS (FROM items WHERE id = item AND trim(title) <> '')`,
      );
    await refuseUnknownItems(db);
    await readUsers(db, options);
    await db.run(`CREATE TABLE kept AS SELECT user, item, last.time AS time, last.place AS place FROM (
      SELECT user, item, max({'time': time, 'place': place}) AS last FROM interactions GROUP BY user, item)`);
    await applyKCore(db, kCore);
    await assignSplit(db, split);
    const { interactions, items, users } = options;
    await writeFolder(db, output, { force, kCore, split, name, sources: { interactions, items, users } });
  });
}

type Columns = NonNullable<ImportOptions['columns']>;

/** interactions(user, item, time, place): place is the order of rows, then of items within a sequence. */
async function readInteractions(db: DuckDBConnection, options: ImportOptions): Promise<void> {
  const { interactions: file, columns = {} } = options;
  const found = await loadFile(db, {
    file,
    table: 'interactions_file',
    header: options.headers?.interactions,
  });
  const sequence = found.unnamed ? 'items' : columns.sequence;
  if (sequence) {
    refuseRows(file, options);
    await readSequences(db, found, { user: found.unnamed ? 'user' : userOf(found, columns), sequence });
  } else await readRows(db, found, options);
  const [missing] = await rows(
    db,
    `SELECT count(*) AS n FROM interactions WHERE user IS NULL OR item IS NULL`,
  );
  if (Number(missing!.n) > 0)
    throw new Error(`data: ${file}: ${missing!.n} interactions have no user or no item`);
}

/** @throws if something is asked of sequences that only rows of one item have. */
function refuseRows(file: string, { columns = {}, minRating, split }: ImportOptions): void {
  const wrong = [
    minRating !== undefined && 'no ratings; leave the least rating away',
    columns.time !== undefined && 'no times; leave the time column away',
    columns.item !== undefined && 'no item in each row; leave the item column away',
    split === 'global-time' && 'no times; split them by leave-one-out',
  ].find((one) => one !== false);
  if (wrong) throw new Error(`data: ${file} holds sequences, which have ${wrong}`);
}

const userOf = (found: FileTable, { user }: Columns) => user ?? (found.typed ? 'user_id' : 'user');

async function readSequences(
  db: DuckDBConnection,
  found: FileTable,
  columns: { readonly user: string; readonly sequence: string },
): Promise<void> {
  const user = identifier(column(found, columns.user).name);
  const { name, type } = column(found, columns.sequence);
  const list = type.endsWith('[]')
    ? `${identifier(name)}::VARCHAR[]`
    : `list_filter(string_split(${identifier(name)}::VARCHAR, ' '), lambda item: item <> '')`;
  // 2^32: more than any sequence is long.
  await db.run(`CREATE TABLE interactions AS
    SELECT user, item, NULL::DOUBLE AS time, row * 4294967296 + step AS place FROM (
      SELECT user, row, unnest(list) AS item, generate_subscripts(list, 1) AS step FROM (
        SELECT ${user}::VARCHAR AS user, ${list} AS list, row_number() OVER () AS row FROM ${found.table}))`);
}

async function readRows(
  db: DuckDBConnection,
  found: FileTable,
  { columns = {}, minRating }: ImportOptions,
): Promise<void> {
  const { file, table, typed } = found;
  const text = (name: string) => `${identifier(column(found, name).name)}::VARCHAR`;
  const user = text(userOf(found, columns));
  const item = text(columns.item ?? (typed ? 'item_id' : 'item'));
  const stamped = typed && [...found.columns.keys()].some((name) => untyped(name) === 'timestamp');
  const timed = columns.time ?? (stamped ? 'timestamp' : undefined);
  const written = timed ? text(timed) : 'NULL::VARCHAR';
  // A number, an ISO date, or as Goodreads writes it: Fri Nov 18 07:22:29 -0800 2016.
  const time = `coalesce(TRY_CAST(${written} AS DOUBLE), epoch(TRY_CAST(${written} AS TIMESTAMPTZ)),
    epoch(try_strptime(${written}, '%a %b %d %H:%M:%S %z %Y')))`;
  let counts = 'true';
  if (minRating !== undefined) {
    const rated = columns.rating ?? 'rating';
    // Not a number would be above all of them.
    const rating = `nullif(TRY_CAST(${text(rated)} AS DOUBLE), 'nan')`;
    counts = `coalesce(${rating}, '-inf') >= ${minRating}`;
    const bad = await firstWhere(db, table, { text: text(rated), condition: `${rating} IS NULL` });
    if (bad)
      throw new Error(`data: ${file}: the rating column "${rated}" holds "${bad}", which is no number`);
  }
  if (timed) {
    const condition = `${counts} AND NOT coalesce(isfinite(${time}), false)`;
    const bad = await firstWhere(db, table, { text: `coalesce(${written}, '')`, condition });
    if (bad !== undefined)
      throw new Error(
        `data: ${file}: the time column "${timed}" holds "${bad}", which is neither a number nor a date`,
      );
  }
  await db.run(`CREATE TABLE interactions AS SELECT ${user} AS user, ${item} AS item, ${time} AS time,
    row_number() OVER () AS place FROM ${table} WHERE ${counts}`);
}

/** A text that is there, of a row for which the condition holds; undefined if there is none. */
async function firstWhere(
  db: DuckDBConnection,
  table: string,
  { text, condition }: { readonly text: string; readonly condition: string },
): Promise<string | undefined> {
  const [found] = await rows(
    db,
    `SELECT ${text} AS text FROM ${table} WHERE ${text} IS NOT NULL AND ${condition} LIMIT 1`,
  );
  return found && String(found.text);
}

/** items(id, title, attributes, place): place is the order of the file. */
async function readItems(
  db: DuckDBConnection,
  { items: file, columns = {}, headers }: ImportOptions,
): Promise<void> {
  const found = await loadFile(db, { file, table: 'items_file', header: headers?.items });
  const id = column(found, columns.itemId ?? (found.typed ? 'item_id' : 'item')).name;
  const title = column(found, columns.title ?? titleOf(found)).name;
  await db.run(`CREATE TABLE items AS SELECT id, title, attributes, min(place) AS place FROM (
    SELECT ${identifier(id)}::VARCHAR AS id, coalesce(${identifier(title)}::VARCHAR, '') AS title,
      ${attributesOf(found, [id, title])} AS attributes, row_number() OVER () AS place FROM items_file)
    GROUP BY id, title, attributes`);
  await refuseIds(db, 'items', file);
}

/** `title`, or the one column of an atomic file that is called so: `movie_title`. @throws if there are several or none. */
function titleOf({ file, columns, typed }: FileTable): string {
  const names = [...columns.keys()].map(untyped);
  if (!typed || names.includes('title')) return 'title';
  const candidates = names.filter((name) => name.endsWith('title'));
  if (candidates.length === 1) return candidates[0]!;
  throw new Error(
    candidates.length === 0
      ? `data: ${file} has no column whose name ends in "title"; name one with --title-column: ${names.join(', ')}`
      : `data: ${file} has several columns that may be the title; name one with --title-column: ${candidates.join(', ')}`,
  );
}

/** users(id, attributes); empty without a file. */
async function readUsers(db: DuckDBConnection, { users: file, columns = {} }: ImportOptions): Promise<void> {
  if (!file) {
    await db.run(`CREATE TABLE users (id VARCHAR, attributes VARCHAR)`);
    return;
  }
  const found = await loadFile(db, { file, table: 'users_file', header: undefined });
  const id = column(found, columns.userId ?? userOf(found, columns)).name;
  await db.run(`CREATE TABLE users AS SELECT DISTINCT ${identifier(id)}::VARCHAR AS id,
    ${attributesOf(found, [id])} AS attributes FROM users_file`);
  await refuseIds(db, 'users', file);
}

async function refuseIds(db: DuckDBConnection, table: string, file: string): Promise<void> {
  const [missing] = await rows(db, `SELECT count(*) AS n FROM ${table} WHERE id IS NULL`);
  if (Number(missing!.n) > 0) throw new Error(`data: ${file}: ${missing!.n} rows have no id`);
  const [twice] = await rows(db, `SELECT id, count(*) AS n FROM ${table} GROUP BY id HAVING n > 1 LIMIT 1`);
  if (twice)
    throw new Error(`data: ${file}: the id "${twice.id}" occurs ${twice.n} times; ids must be unique`);
}

async function refuseUnknownItems(db: DuckDBConnection): Promise<void> {
  const unknown = await rows(
    db,
    `SELECT item, count(*) OVER () AS n FROM (SELECT DISTINCT item FROM interactions ANTI JOIN items ON item = id) ORDER BY item LIMIT 3`,
  );
  if (unknown.length > 0)
    throw new Error(
      `data: ${unknown[0]!.n} items of the interactions have no title, such as ${unknown.map((row) => `"${row.item}"`).join(', ')}; do both files belong together? --drop-untitled leaves out what they are in`,
    );
}

/** Items, then users with fewer than k interactions go, until all have k. */
async function applyKCore(db: DuckDBConnection, k: number): Promise<void> {
  const countKept = async () => Number((await rows(db, 'SELECT count(*) AS n FROM kept'))[0]!.n);
  let before = await countKept();
  if (before === 0)
    throw new Error('data: no interaction counts: there are none with that rating, of titled items');
  for (;;) {
    for (const side of ['item', 'user'])
      await db.run(
        `DELETE FROM kept WHERE ${side} IN (SELECT ${side} FROM kept GROUP BY ${side} HAVING count(*) < ${k})`,
      );
    const left = await countKept();
    if (left === 0) throw new Error(`data: no interaction is left after ${k}-core filtering; lower --k-core`);
    if (left === before) return;
    before = left;
  }
}

/** split(user, item, time, position, part): position from 0, oldest first; part 0 train, 1 validation, 2 test. */
async function assignSplit(db: DuckDBConnection, split: SplitName): Promise<void> {
  const ordered = `SELECT user, item, time, row_number() OVER (PARTITION BY user ORDER BY time, place) - 1 AS position,
    count(*) OVER (PARTITION BY user) AS length FROM kept`;
  if (split === 'leave-one-out') {
    await db.run(`CREATE TABLE split AS SELECT user, item, time, position, CASE WHEN length < 3 THEN 0
      WHEN position = length - 1 THEN 2 WHEN position = length - 2 THEN 1 ELSE 0 END AS part FROM (${ordered})`);
    return;
  }
  const [timed] = await rows(db, 'SELECT count(time) AS timed, count(*) AS n FROM kept');
  if (timed!.timed !== timed!.n)
    throw new Error('data: a global-time split needs timestamps; name their column with --time-column');
  const tenth = Math.floor(0.1 * Number(timed!.n));
  if (tenth === 0) throw new Error('data: too few interactions for a split 8:1:1 by time');
  const nthLatest = (n: number) => `(SELECT time FROM kept ORDER BY time DESC LIMIT 1 OFFSET ${n - 1})`;
  await db.run(`CREATE TABLE split AS SELECT user, item, time, position, CASE WHEN time < ${nthLatest(2 * tenth)} THEN 0
    WHEN time < ${nthLatest(tenth)} THEN 1 ELSE 2 END AS part FROM (${ordered})`);
}
