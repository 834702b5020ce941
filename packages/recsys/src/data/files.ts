// Published files as tables: CSV, tab-separated (RecBole's atomic files too), Parquet and the usual shapes of JSON.
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { extname } from 'node:path';
import type { DuckDBConnection } from '@duckdb/node-api';
import { identifier, literal, rows } from './duckdb.ts';

export interface FileTable {
  readonly table: string;
  readonly file: string;
  /** SQL type of each column, in the file's order. */
  readonly columns: ReadonlyMap<string, string>;
  /** True if the file is JSON of the form `{user: [items]}`, which names no columns: they are `user` and `items`. */
  readonly unnamed: boolean;
}

/** Loads a file into `table`, rows in the file's order. @throws if it is missing or malformed. */
export async function loadFile(db: DuckDBConnection, file: string, table: string): Promise<FileTable> {
  if (!existsSync(file)) throw new Error(`data: ${file} does not exist`);
  let query: string;
  let unnamed = false;
  try {
    switch (extname(file).toLowerCase()) {
      case '.parquet':
        query = `SELECT * FROM read_parquet(${literal(file)})`;
        break;
      case '.csv':
        query = `SELECT * FROM read_csv(${literal(file)}, header = true, all_varchar = true, comment = '')`;
        break;
      case '.jsonl':
      case '.ndjson':
        query = await objectsQuery(
          db,
          `SELECT json AS value FROM read_json_objects(${literal(file)}, format = 'newline_delimited')`,
        );
        break;
      case '.json':
        ({ query, unnamed } = await jsonQuery(db, file));
        break;
      default:
        query = `SELECT * FROM read_csv(${literal(file)}, header = true, all_varchar = true, delim = '\t',
          quote = '', escape = '', comment = '')`;
    }
    await db.run(`CREATE TABLE ${table} AS ${query}`);
  } catch (cause) {
    throw new Error(`data: ${file} cannot be read: ${(cause as Error).message}`, { cause });
  }
  const described = await rows(db, `DESCRIBE ${table}`);
  const columns = new Map(described.map((row) => [String(row.column_name), String(row.column_type)]));
  return { table, file, columns, unnamed };
}

/** Name and type of a column, found with or without RecBole's `:type`. @throws naming the columns that exist. */
export function column({ columns, file }: FileTable, wanted: string): { name: string; type: string } {
  const found =
    [...columns].find(([name]) => name === wanted) ?? [...columns].find(([name]) => bare(name) === wanted);
  if (!found)
    throw new Error(`data: ${file} has no column "${wanted}"; it has: ${[...columns.keys()].join(', ')}`);
  return { name: found[0], type: found[1] };
}

/** SQL: the columns that are not in `except` as one JSON object, their names without RecBole's `:type`. */
export function attributesOf({ columns }: FileTable, except: readonly string[]): string {
  const others = [...columns.keys()].filter((name) => !except.includes(name));
  const packed = others.map((name) => `${identifier(bare(name))} := ${identifier(name)}`);
  return others.length === 0 ? `'{}'` : `to_json(struct_pack(${packed.join(', ')}))::VARCHAR`;
}

/** A column's name without RecBole's type: `item_id` for `item_id:token`. */
function bare(name: string): string {
  return name.replace(/:(token|token_seq|float|float_seq)$/, '');
}

/** Arrays of objects, `{user: [items]}`, `{id: {title, ...}}` or `{id: title}`. */
async function jsonQuery(db: DuckDBConnection, file: string): Promise<{ query: string; unnamed: boolean }> {
  const json: unknown = JSON.parse(await readFile(file, 'utf8'));
  if (typeof json !== 'object' || json === null) throw new Error('neither an array nor an object');
  const values: unknown[] = Object.values(json);
  const allOf = (is: (value: unknown) => boolean) => values.length > 0 && values.every(is);
  const isObject = (value: unknown) => typeof value === 'object' && value !== null && !Array.isArray(value);
  if (Array.isArray(json) && allOf(isObject)) {
    const source = `SELECT json AS value FROM read_json_objects(${literal(file)}, format = 'array')`;
    return { query: await objectsQuery(db, source), unnamed: false };
  }
  const entries = `SELECT e.key AS key, e.value AS value FROM read_text(${literal(file)}) t, json_each(t.content) e`;
  if (!Array.isArray(json) && allOf(Array.isArray))
    return {
      query: `SELECT key AS user, value::VARCHAR[] AS items FROM (${entries})`,
      unnamed: true,
    };
  if (!Array.isArray(json) && allOf(isObject))
    return { query: await objectsQuery(db, entries, 'key AS item'), unnamed: false };
  if (!Array.isArray(json) && allOf((value) => typeof value === 'string'))
    return { query: `SELECT key AS item, value->>'$' AS title FROM (${entries})`, unnamed: false };
  throw new Error(
    'expected an array of objects, {user: [items]}, {item: {title, ...}} or {item: title}, all entries alike',
  );
}

/** Objects (a column `value`) as a table with one text column a field, in the fields' first order. */
async function objectsQuery(db: DuckDBConnection, source: string, key?: string): Promise<string> {
  const names = await rows(
    db,
    `SELECT field FROM (SELECT unnest(json_keys(value)) AS field, row_number() OVER () AS place FROM (${source}))
     GROUP BY field ORDER BY min(place)`,
  );
  const fields = names.map(({ field }) => {
    const pointer = `/${String(field).replaceAll('~', '~0').replaceAll('/', '~1')}`;
    return `json_extract_string(value, ${literal(pointer)}) AS ${identifier(String(field))}`;
  });
  return `SELECT ${[...(key ? [key] : []), ...fields].join(', ')} FROM (${source})`;
}
