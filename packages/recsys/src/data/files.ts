// Published files as tables: CSV, tab-separated (RecBole's atomic files too), Parquet, JSON lines.
import { existsSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { extname } from 'node:path';
import type { DuckDBConnection } from '@duckdb/node-api';
import { identifier, literal, rows } from './duckdb.ts';
import { loadJson } from './json.ts';

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
  let unnamed = false;
  try {
    if (extname(file).toLowerCase() === '.json') unnamed = await loadJson(db, file, table);
    else await db.run(`CREATE TABLE ${table} AS ${await queryOf(db, file)}`);
  } catch (cause) {
    // What DuckDB adds are settings of its own.
    const [reason] = (cause as Error).message.split('\nPossible ');
    throw new Error(`data: ${file} cannot be read: ${reason!.trim()}`, { cause });
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

async function queryOf(db: DuckDBConnection, file: string): Promise<string> {
  const path = literal(file);
  // Values stay text. Without skip = 0, DuckDB takes lines that do not fit for a preamble and drops them.
  const text = "header = true, all_varchar = true, comment = '', skip = 0";
  switch (extname(file).toLowerCase()) {
    case '.parquet':
      return `SELECT * FROM read_parquet(${path})`;
    case '.csv':
      return `SELECT * FROM read_csv(${path}, ${text})`;
    case '.jsonl':
    case '.ndjson':
      return linesQuery(db, path);
    default: {
      // Nothing is guessed: quotation marks are part of titles.
      const columns = (await firstLine(file)).split('\t').map((name) => `${literal(name)}: 'VARCHAR'`);
      return `SELECT * FROM read_csv(${path}, header = true, skip = 0, auto_detect = false, columns = {${columns.join(', ')}},
        delim = '\t', quote = '', escape = '', comment = '')`;
    }
  }
}

/** JSON lines: one text column a field, in the fields' first order. */
async function linesQuery(db: DuckDBConnection, path: string): Promise<string> {
  const source = `(SELECT json FROM read_json_objects(${path}, format = 'newline_delimited'))`;
  const fields = await rows(
    db,
    `SELECT field FROM (SELECT unnest(json_keys(json)) AS field, row_number() OVER () AS place FROM ${source})
     GROUP BY field ORDER BY min(place)`,
  );
  const columns = fields.map(({ field }) => {
    const pointer = `/${String(field).replaceAll('~', '~0').replaceAll('/', '~1')}`;
    return `json_extract_string(json, ${literal(pointer)}) AS ${identifier(String(field))}`;
  });
  return `SELECT ${columns.join(', ')} FROM ${source}`;
}

async function firstLine(file: string): Promise<string> {
  const handle = await open(file);
  try {
    for await (const line of handle.readLines()) return line.replace(/^\ufeff/, '');
    throw new Error('the file is empty');
  } finally {
    await handle.close();
  }
}
