// JSON files as tables: arrays of objects, `{user: [items]}`, `{id: {title, ...}}`, `{id: title}`, or one object a line.
// Values are text columns, numbers as they are written; a field that only ever holds lists is a list of texts.
import type { DuckDBConnection } from '@duckdb/node-api';
import { identifier, literal, rows } from './duckdb.ts';

type Fields = ReadonlyMap<string, unknown>;

/** Whether a text that begins so is one object a line. @throws if its lines are Python's dictionaries. */
export function areLines(head: string): boolean {
  const [first, second] = head.split(/[\r\n]+/).filter((line) => line.trim() !== '');
  if (first?.startsWith("{'") || first?.startsWith("{u'"))
    throw new Error(
      `its lines are Python, not JSON: make JSON of them with
  python3 -c 'import sys, ast, json; [print(json.dumps(ast.literal_eval(line))) for line in sys.stdin]' < IN > OUT.jsonl`,
    );
  try {
    return second !== undefined && isObject(JSON.parse(first!));
  } catch {
    return false;
  }
}

/** SQL for a file with one JSON object a line, its columns in the fields' first order. @throws if it is empty. */
export async function linesQuery(db: DuckDBConnection, path: string): Promise<string> {
  const source = `(SELECT json, row_number() OVER () AS row FROM read_json_objects(${path}, format = 'newline_delimited'))`;
  const keys = await rows(
    db,
    `SELECT field FROM (SELECT unnest(json_keys(json)) AS field,
       {'row': row, 'step': generate_subscripts(json_keys(json), 1)} AS place FROM ${source})
     GROUP BY field ORDER BY min(place)`,
  );
  if (keys.length === 0) throw new Error('there is nothing in it');
  const fields = keys.map(({ field }) => String(field));
  // All paths at once: every line is parsed once.
  const pointers = `[${fields.map((field) => literal(pointer(field))).join(', ')}]`;
  const [lists] = await rows(
    db,
    `SELECT ${fields.map((_, i) => `bool_and(type[${i + 1}] = 'ARRAY') FILTER (type[${i + 1}] <> 'NULL') AS "${i}"`).join(', ')}
     FROM (SELECT json_type(json, ${pointers}) AS type FROM ${source})`,
  );
  const columns = fields.map((field, i) => {
    const value = `found[${i + 1}]`;
    return `${lists![i] ? `${value}::JSON::VARCHAR[]` : value} AS ${identifier(field)}`;
  });
  return `SELECT ${columns.join(', ')} FROM (SELECT json_extract_string(json, ${pointers}) AS found FROM ${source})`;
}

/** JSON pointer to a field (RFC 6901). */
export const pointer = (field: string): string => `/${field.replaceAll('~', '~0').replaceAll('/', '~1')}`;

/** Creates `table` of a JSON text. True if it is of the form `{user: [items]}`: columns `user` and `items` (a list). */
export async function loadJson(db: DuckDBConnection, text: string, table: string): Promise<boolean> {
  const json = parse(text);
  if (typeof json !== 'object' || json === null) throw new Error('neither an array nor an object');
  const entries = Object.entries(json);
  const allOf = (is: (value: unknown) => boolean) => entries.every(([, value]) => is(value));
  const keyed = !Array.isArray(json);
  const pairs = (key: string, value: string) =>
    entries.map((entry) => new Map([[key, entry[0]] as const, [value, entry[1]] as const]));
  if (keyed && allOf(Array.isArray)) {
    await fill(db, table, pairs('user', 'items'));
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
    await fill(db, table, pairs('item', 'title'));
  else
    throw new Error(
      'expected an array of objects, {user: [items]}, {item: {title, ...}}, {item: title}, all entries alike, or one object a line',
    );
  return false;
}

/** A table of one column a field; what is neither text nor a list is written as JSON. */
async function fill(db: DuckDBConnection, table: string, objects: readonly Fields[]): Promise<void> {
  const columns = [...new Set(objects.flatMap((fields) => [...fields.keys()]))];
  if (columns.length === 0) throw new Error('there is nothing in it');
  const texts = `${table}_text`;
  await db.run(
    `CREATE TABLE ${texts} (${columns.map((column) => `${identifier(column)} VARCHAR`).join(', ')})`,
  );
  const appender = await db.createAppender(texts);
  for (const fields of objects) {
    for (const column of columns) {
      const value = fields.get(column) ?? null;
      if (value === null) appender.appendNull();
      else appender.appendVarchar(typeof value === 'string' ? value : JSON.stringify(value));
    }
    appender.endRow();
  }
  appender.closeSync();
  const values = columns.map((column) => {
    const held = objects.flatMap((fields) => (fields.get(column) == null ? [] : [fields.get(column)]));
    const name = identifier(column);
    return held.length > 0 && held.every(Array.isArray) ? `${name}::JSON::VARCHAR[] AS ${name}` : name;
  });
  await db.run(`CREATE TABLE ${table} AS SELECT ${values.join(', ')} FROM ${texts}`);
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
