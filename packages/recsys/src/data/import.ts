// From files as they are published to one data folder: interactions and titles read by DuckDB, k-core, split.
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { extname } from 'node:path';
import { type DuckDBConnection, DuckDBInstance } from '@duckdb/node-api';
import type { SplitName } from '../dataset.ts';
import { literal, name, rows } from './duckdb.ts';
import { writeFolder } from './folder.ts';

export interface ImportOptions {
  /** CSV, TSV (also RecBole's .inter), JSON or Parquet. */
  readonly interactions: string;
  readonly items: string;
  readonly users?: string;
  /** Folder to write; must not exist unless `force`. */
  readonly output: string;
  readonly force?: boolean;
  readonly name?: string;
  readonly columns?: {
    readonly user?: string;
    readonly item?: string;
    /** Numbers that grow with time; without one, rows are in order. */
    readonly time?: string;
    /** A column that holds a user's whole sequence of items, separated by spaces, oldest first. */
    readonly sequence?: string;
    readonly itemId?: string;
    readonly title?: string;
    readonly userId?: string;
  };
  /** Every user and item keeps at least this many interactions; 0 is off. */
  readonly kCore?: number;
  readonly split?: SplitName;
}

/** Writes the data folder. @throws on missing files or columns, unknown items, or when nothing is left; then nothing is written. */
export async function importDataset(options: ImportOptions): Promise<void> {
  const { output, kCore = 5, split = 'leave-one-out', columns = {} } = options;
  if (existsSync(output) && !options.force)
    throw new Error(`data: ${output} exists; choose another folder or pass --force`);
  const instance = await DuckDBInstance.create(':memory:');
  const db = await instance.connect();
  try {
    await readInteractions(db, options.interactions, columns);
    await readItems(db, options.items, columns);
    await refuseUnknownItems(db);
    await readUsers(db, options.users, columns);
    await db.run(`CREATE TABLE kept AS SELECT user, item, max(time) AS time, max(place) AS place FROM interactions
                  GROUP BY user, item`);
    await applyKCore(db, kCore);
    await assignSplit(db, split);
    await writeFolder(db, options, {
      kCore,
      split,
      name: options.name ?? output.split(/[\\/]/).filter(Boolean).at(-1)!,
    });
  } finally {
    db.closeSync();
    instance.closeSync();
  }
}

type Columns = NonNullable<ImportOptions['columns']>;

/** interactions(user, item, time, place): place is the order of rows, then of items within a sequence. */
async function readInteractions(db: DuckDBConnection, file: string, columns: Columns): Promise<void> {
  const sequences = await readTable(db, file, 'interactions_file');
  const user = await column(db, 'interactions_file', file, columns.user ?? 'user');
  if (columns.sequence || sequences) {
    const sequence = await column(db, 'interactions_file', file, columns.sequence ?? 'items');
    await db.run(`CREATE TABLE interactions AS
      SELECT user, item, NULL::DOUBLE AS time, row * 1000000 + step AS place FROM (
        SELECT ${user}::VARCHAR AS user, row, unnest(list) AS item, generate_subscripts(list, 1) AS step FROM (
          SELECT *, string_split(trim(${sequence}), ' ') AS list, row_number() OVER () AS row FROM interactions_file))`);
  } else {
    const item = await column(db, 'interactions_file', file, columns.item ?? 'item');
    const time = columns.time ? await column(db, 'interactions_file', file, columns.time) : undefined;
    await db.run(`CREATE TABLE interactions AS
      SELECT ${user}::VARCHAR AS user, ${item}::VARCHAR AS item, ${time ? `TRY_CAST(${time} AS DOUBLE)` : 'NULL::DOUBLE'} AS time,
        row_number() OVER () AS place FROM interactions_file`);
    if (time) {
      const [bad] = await rows(
        db,
        `SELECT ${time}::VARCHAR AS text FROM interactions_file WHERE TRY_CAST(${time} AS DOUBLE) IS NULL LIMIT 1`,
      );
      if (bad)
        throw new Error(`data: ${file}: the time column ${time} holds "${bad.text}", which is no number`);
    }
  }
  const [missing] = await rows(
    db,
    `SELECT count(*) AS n FROM interactions WHERE user IS NULL OR item IS NULL OR item = ''`,
  );
  if (Number(missing!.n) > 0) throw new Error(`data: ${file}: ${missing!.n} rows have no user or no item`);
}

/** items(id, title, attributes): the order of the file. */
async function readItems(db: DuckDBConnection, file: string, columns: Columns): Promise<void> {
  await readTable(db, file, 'items_file');
  const id = await column(db, 'items_file', file, columns.itemId ?? 'item');
  const title = await column(db, 'items_file', file, columns.title ?? 'title');
  await db.run(`CREATE TABLE items AS SELECT ${id}::VARCHAR AS id, coalesce(${title}::VARCHAR, '') AS title,
    to_json(items_file)::VARCHAR AS attributes, row_number() OVER () AS place FROM items_file`);
  const [twice] = await rows(db, 'SELECT id, count(*) AS n FROM items GROUP BY id HAVING n > 1 LIMIT 1');
  if (twice)
    throw new Error(`data: ${file}: the item "${twice.id}" occurs ${twice.n} times; ids must be unique`);
}

async function readUsers(db: DuckDBConnection, file: string | undefined, columns: Columns): Promise<void> {
  if (!file) {
    await db.run(`CREATE TABLE users AS SELECT NULL::VARCHAR AS id, NULL::VARCHAR AS attributes WHERE false`);
    return;
  }
  await readTable(db, file, 'users_file');
  const id = await column(db, 'users_file', file, columns.userId ?? columns.user ?? 'user');
  await db.run(
    `CREATE TABLE users AS SELECT ${id}::VARCHAR AS id, to_json(users_file)::VARCHAR AS attributes FROM users_file`,
  );
}

/** Loads a file as a table. True if it is JSON of the form {user: [items]}, brought to columns user and items. */
async function readTable(db: DuckDBConnection, file: string, table: string): Promise<boolean> {
  if (!existsSync(file)) throw new Error(`data: ${file} does not exist`);
  const path = literal(file);
  const extension = extname(file).toLowerCase();
  try {
    if (extension === '.json') return await readJsonTable(db, file, table);
    const source =
      extension === '.parquet'
        ? `read_parquet(${path})`
        : extension === '.jsonl' || extension === '.ndjson'
          ? `read_json_auto(${path}, format = 'newline_delimited')`
          : extension === '.csv'
            ? `read_csv(${path}, header = true, all_varchar = true)`
            : `read_csv(${path}, header = true, all_varchar = true, delim = '\t', quote = '', escape = '')`;
    await db.run(`CREATE TABLE ${table} AS SELECT * FROM ${source}`);
    return false;
  } catch (cause) {
    throw new Error(`data: ${file} cannot be read: ${(cause as Error).message}`, { cause });
  }
}

/** Arrays of objects, {user: [items]}, or {id: {title, ...}}. */
async function readJsonTable(db: DuckDBConnection, file: string, table: string): Promise<boolean> {
  const json: unknown = JSON.parse(await readFile(file, 'utf8'));
  if (Array.isArray(json)) {
    await db.run(`CREATE TABLE ${table} AS SELECT * FROM read_json_auto(${literal(file)}, format = 'array')`);
    return false;
  }
  if (typeof json !== 'object' || json === null) throw new Error('neither an array nor an object');
  const [first] = Object.values(json);
  const sequences = Array.isArray(first);
  const entries = `(SELECT e.key AS key, e.value AS value FROM read_text(${literal(file)}) t, json_each(t.content) e)`;
  if (sequences) {
    await db.run(
      `CREATE TABLE ${table} AS SELECT key AS user, array_to_string(value::VARCHAR[], ' ') AS items FROM ${entries}`,
    );
    return true;
  }
  const fields = [...new Set(Object.values(json).flatMap((entry) => Object.keys(entry as object)))];
  const picked = fields.map((field) => `value->>${literal(`$."${field}"`)} AS ${name(field)}`);
  await db.run(
    `CREATE TABLE ${table} AS SELECT key AS item${picked.map((p) => `, ${p}`).join('')} FROM ${entries}`,
  );
  return false;
}

/** A column by its name, with or without RecBole's `:type`. */
async function column(db: DuckDBConnection, table: string, file: string, wanted: string): Promise<string> {
  const found = (await rows(db, `DESCRIBE ${table}`)).map((row) => String(row.column_name));
  const match = found.find((c) => c === wanted) ?? found.find((c) => c.split(':')[0] === wanted);
  if (!match) throw new Error(`data: ${file} has no column "${wanted}"; it has: ${found.join(', ')}`);
  return name(match);
}

async function refuseUnknownItems(db: DuckDBConnection): Promise<void> {
  const unknown = await rows(
    db,
    `SELECT item, count(*) OVER () AS n FROM (SELECT DISTINCT item FROM interactions ANTI JOIN items ON item = id) ORDER BY item LIMIT 3`,
  );
  if (unknown.length > 0)
    throw new Error(
      `data: ${unknown[0]!.n} items of the interactions have no title, such as ${unknown.map((row) => `"${row.item}"`).join(', ')}; do both files belong together?`,
    );
}

async function applyKCore(db: DuckDBConnection, k: number): Promise<void> {
  for (;;) {
    const before = await countKept(db);
    if (before === 0)
      throw new Error(`data: no interaction is left after ${k}-core filtering; lower --k-core`);
    for (const side of ['item', 'user'])
      await db.run(
        `DELETE FROM kept WHERE ${side} IN (SELECT ${side} FROM kept GROUP BY ${side} HAVING count(*) < ${k})`,
      );
    if ((await countKept(db)) === before) return;
  }
}

async function countKept(db: DuckDBConnection): Promise<number> {
  return Number((await rows(db, 'SELECT count(*) AS n FROM kept'))[0]!.n);
}

/** split(user, item, position, part): position from 0, oldest first; part 0 train, 1 validation, 2 test. */
async function assignSplit(db: DuckDBConnection, split: SplitName): Promise<void> {
  const ordered = `SELECT user, item, time, row_number() OVER (PARTITION BY user ORDER BY time, place) - 1 AS position,
    count(*) OVER (PARTITION BY user) AS length FROM kept`;
  if (split === 'leave-one-out') {
    await db.run(`CREATE TABLE split AS SELECT user, item, position, CASE WHEN length < 3 THEN 0
      WHEN position = length - 1 THEN 2 WHEN position = length - 2 THEN 1 ELSE 0 END AS part FROM (${ordered})`);
    return;
  }
  const [timed] = await rows(db, 'SELECT count(time) AS timed, count(*) AS n FROM kept');
  if (Number(timed!.timed) !== Number(timed!.n))
    throw new Error('data: a global-time split needs timestamps; name their column with --time-column');
  const tenth = Math.floor(0.1 * Number(timed!.n));
  if (tenth === 0) throw new Error('data: too few interactions for a split 8:1:1 by time');
  const at = async (fromEnd: number) =>
    Number(
      (await rows(db, `SELECT time FROM kept ORDER BY time DESC LIMIT 1 OFFSET ${fromEnd - 1}`))[0]!.time,
    );
  const [validFrom, testFrom] = [await at(2 * tenth), await at(tenth)];
  await db.run(`CREATE TABLE split AS SELECT user, item, position,
    CASE WHEN time < ${validFrom} THEN 0 WHEN time < ${testFrom} THEN 1 ELSE 2 END AS part FROM (${ordered})`);
}
