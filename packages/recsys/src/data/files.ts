// Published files as tables: CSV, tab-separated (RecBole's atomic files too), Parquet, JSON, JSON lines; gzipped or not.
import { constants as bufferConstants } from 'node:buffer';
import { createReadStream, existsSync } from 'node:fs';
import { open, readFile, stat } from 'node:fs/promises';
import { extname } from 'node:path';
import { Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { constants, createGunzip, gunzipSync } from 'node:zlib';
import type { DuckDBConnection } from '@duckdb/node-api';
import { identifier, literal, pathLiteral, rows } from './duckdb.ts';
import { areLines, linesQuery, loadJson } from './json.ts';
import { hasTypes, isTyped, unquoted, untyped } from './recbole.ts';

export interface FileTable {
  readonly table: string;
  readonly file: string;
  /** SQL type of each column, in the file's order. */
  readonly columns: ReadonlyMap<string, string>;
  /** True if the file is JSON of the form `{user: [items]}`, which names no columns: they are `user` and `items`. */
  readonly unnamed: boolean;
  /** True if the columns have RecBole's types in their names. */
  readonly typed: boolean;
}

interface Source {
  readonly file: string;
  /** Name of the table to make. */
  readonly table: string;
  /** Names of the columns, if the file's first line is data. */
  readonly header: readonly string[] | undefined;
}

/** Loads a file into a table, rows in the file's order. @throws if it is missing, malformed or without rows. */
export async function loadFile(db: DuckDBConnection, source: Source): Promise<FileTable> {
  const { file, table, header } = source;
  if (!existsSync(file)) throw new Error(`data: ${file} does not exist`);
  let unnamed = false;
  try {
    if (gzipped(file)) await refuseDamaged(file);
    const query = await queryOf(db, source);
    if (query) await db.run(`CREATE TABLE ${table} AS ${query}`);
    else unnamed = await loadJson(db, await textOf(file), table);
  } catch (cause) {
    throw new Error(`data: ${file} cannot be read: ${reasonOf(cause as Error)}`, { cause });
  }
  const described = await rows(db, `DESCRIBE ${table}`);
  const columns = new Map(described.map((row) => [String(row.column_name), String(row.column_type)]));
  if (header && header.length !== columns.size)
    throw new Error(
      `data: ${file} has ${columns.size} columns; the header given for it names ${header.length}: ${header.join(', ')}`,
    );
  const [counted] = await rows(db, `SELECT count(*) AS n FROM ${table}`);
  if (Number(counted!.n) === 0)
    throw new Error(`data: ${file} holds no rows; its columns are: ${[...columns.keys()].join(', ')}`);
  return { table, file, columns, unnamed, typed: [...columns.keys()].every(isTyped) };
}

function reasonOf({ message }: Error): string {
  if (message.includes('CSV Parser state machine'))
    return 'its lines do not end alike; make them all end in \\n, or all in \\r\\n';
  // What DuckDB adds are settings of its own.
  return message.split(/\n(?:Possible |\nLINE )/)[0]!.trim();
}

/** Name and type of a column, found with or without RecBole's `:type`. @throws naming the columns that exist. */
export function column(found: FileTable, wanted: string): { name: string; type: string } {
  const { columns, file } = found;
  const entry =
    [...columns].find(([name]) => name === wanted) ?? [...columns].find(([name]) => untyped(name) === wanted);
  if (!entry) {
    const names = [...columns.keys()];
    const hint = names.some((name) => /^\d+$/.test(name))
      ? '; if these are its first values, name its columns with --interactions-header or --items-header'
      : '';
    throw new Error(`data: ${file} has no column "${wanted}"; it has: ${names.join(', ')}${hint}`);
  }
  return { name: entry[0], type: entry[1] };
}

/** SQL: the columns that are not in `except` as one JSON object, their names without RecBole's `:type`. */
export function attributesOf({ columns }: FileTable, except: readonly string[]): string {
  const others = [...columns.keys()].filter((name) => !except.includes(name));
  const packed = others.map((name) => `${identifier(untyped(name))} := ${identifier(name)}`);
  return others.length === 0 ? `'{}'` : `to_json(struct_pack(${packed.join(', ')}))::VARCHAR`;
}

/** What selects the rows of a file; undefined for a JSON file in one piece. */
async function queryOf(db: DuckDBConnection, { file, header }: Source): Promise<string | undefined> {
  const path = pathLiteral(file);
  const format = extname(file.replace(/\.gz$/, '')).toLowerCase();
  if (header && ['.parquet', '.json', '.jsonl', '.ndjson'].includes(format))
    throw new Error('it names its columns itself; give no header for it');
  switch (format) {
    case '.parquet':
      return `SELECT * FROM read_parquet(${path})`;
    case '.jsonl':
    case '.ndjson':
      return linesQuery(db, path);
    case '.json':
      return areLines(await headOf(file)) ? linesQuery(db, path) : undefined;
    case '.csv': {
      const names = header ? `header = false, names = [${header.map(literal).join(', ')}]` : 'header = true';
      // Values stay text. Without skip = 0, DuckDB takes lines that do not fit for a preamble and drops them.
      return `SELECT * FROM read_csv(${path}, ${names}, all_varchar = true, quote = '"', escape = '"', comment = '', skip = 0)`;
    }
    default: {
      const [firstLine] = (await headOf(file)).split(/\r?\n/);
      if (!firstLine) throw new Error('its first line is empty');
      const names = header ?? firstLine.split('\t');
      refuseNames(names);
      const columns = names.map((name) => `${literal(name)}: 'VARCHAR'`);
      const typed = !header && hasTypes(file, names);
      // Nothing is guessed: quotation marks are part of titles.
      return `SELECT ${typed ? names.map(unquoted).join(', ') : '*'} FROM read_csv(${path}, header = ${!header}, skip = 0,
        auto_detect = false, columns = {${columns.join(', ')}}, delim = '\t', quote = '', escape = '', comment = '')`;
    }
  }
}

/** @throws if two names differ in case at most, as those of an SQL table may not, or one is empty. */
function refuseNames(names: readonly string[]): void {
  const lower = names.map((name) => name.toLowerCase());
  const twice = names.find((_, i) => lower.indexOf(lower[i]!) !== i);
  if (twice !== undefined)
    throw new Error(`two of its columns are called "${twice}", with letters of either case`);
  if (lower.includes(''))
    throw new Error('one of its columns has no name; is there a tab at the end of its first line?');
}

const gzipped = (file: string) => file.endsWith('.gz');

/** Reads a gzipped file to its end: DuckDB takes one that was cut off for a shorter one. */
async function refuseDamaged(file: string): Promise<void> {
  try {
    await pipeline(createReadStream(file), createGunzip(), new Writable({ write: (_, __, done) => done() }));
  } catch (cause) {
    throw new Error(`it is no whole gzip file (${(cause as Error).message}); fetch it again`, { cause });
  }
}

/** The beginning of a file's text, enough for its first lines: of a gzipped file more than of another. */
async function headOf(file: string): Promise<string> {
  const handle = await open(file);
  try {
    const { buffer, bytesRead } = await handle.read({ buffer: Buffer.alloc(2 ** 18) });
    const bytes = buffer.subarray(0, bytesRead);
    const head = gzipped(file) ? gunzipSync(bytes, { finishFlush: constants.Z_SYNC_FLUSH }) : bytes;
    return textIn(head);
  } finally {
    await handle.close();
  }
}

async function textOf(file: string): Promise<string> {
  const { size } = await stat(file);
  if (size > bufferConstants.MAX_STRING_LENGTH)
    throw new Error(
      `it is JSON in one piece of ${Math.round(size / 2 ** 20)} MiB, more than fits into a string; write one object a line`,
    );
  const bytes = await readFile(file);
  return textIn(gzipped(file) ? gunzipSync(bytes) : bytes);
}

/** Without a byte order mark. */
const textIn = (bytes: Buffer) => bytes.toString('utf8').replace(/^\ufeff/, '');
