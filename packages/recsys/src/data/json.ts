// JSON files as tables: arrays of objects, `{user: [items]}`, `{id: {title, ...}}` or `{id: title}`.
import { readFile } from 'node:fs/promises';
import type { DuckDBConnection } from '@duckdb/node-api';
import { identifier } from './duckdb.ts';

type Fields = ReadonlyMap<string, unknown>;

/** Creates `table`. True if the file is of the form `{user: [items]}`: columns `user` and `items` (a list). */
export async function loadJson(db: DuckDBConnection, file: string, table: string): Promise<boolean> {
  const json = parse(await readFile(file, 'utf8'));
  if (typeof json !== 'object' || json === null) throw new Error('neither an array nor an object');
  const entries = Object.entries(json);
  const allOf = (is: (value: unknown) => boolean) => entries.every(([, value]) => is(value));
  const keyed = !Array.isArray(json);
  if (keyed && allOf(Array.isArray)) {
    await fill(
      db,
      `${table}_text`,
      entries.map(
        ([user, items]) =>
          new Map<string, unknown>([
            ['user', user],
            ['items', items],
          ]),
      ),
    );
    await db.run(`CREATE TABLE ${table} AS SELECT user, items::JSON::VARCHAR[] AS items FROM ${table}_text`);
    return true;
  }
  if (allOf(isObject))
    await fill(
      db,
      table,
      entries.map(
        ([id, fields]) => new Map([...(keyed ? [['item', id] as const] : []), ...Object.entries(fields)]),
      ),
    );
  else if (keyed && allOf((value) => typeof value === 'string'))
    await fill(
      db,
      table,
      entries.map(
        ([id, title]) =>
          new Map([
            ['item', id],
            ['title', title],
          ]),
      ),
    );
  else
    throw new Error(
      'expected an array of objects, {user: [items]}, {item: {title, ...}} or {item: title}, all entries alike',
    );
  return false;
}

/** A table of text columns, one a field; what is not text is written as JSON. */
async function fill(db: DuckDBConnection, table: string, objects: readonly Fields[]): Promise<void> {
  const columns = [...new Set(objects.flatMap((fields) => [...fields.keys()]))];
  if (columns.length === 0) throw new Error('there is nothing in it');
  await db.run(
    `CREATE TABLE ${table} (${columns.map((column) => `${identifier(column)} VARCHAR`).join(', ')})`,
  );
  const appender = await db.createAppender(table);
  for (const fields of objects) {
    for (const column of columns) {
      const value = fields.get(column) ?? null;
      if (value === null) appender.appendNull();
      else appender.appendVarchar(typeof value === 'string' ? value : JSON.stringify(value));
    }
    appender.endRow();
  }
  appender.closeSync();
}

/** Numbers stay the text that they are in the file: an id of twenty digits, or 1e3, is not to be rounded. */
function parse(text: string): unknown {
  const reviver = (_: string, value: unknown, context: { source?: string }) =>
    typeof value === 'number' ? context.source : value;
  return JSON.parse(text, reviver as (key: string, value: unknown) => unknown);
}

function isObject(value: unknown): boolean {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
