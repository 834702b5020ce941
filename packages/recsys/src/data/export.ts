// A data folder as RecBole's atomic files, and its split as their benchmark files: `benchmark_filename: [train, valid, test]`.
import { existsSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';
import type { DuckDBConnection } from '@duckdb/node-api';
import { identifier, literal, pathLiteral, rows, withDatabase } from './duckdb.ts';
import { readDataset, writeWhole } from './folder.ts';
import { pointer } from './json.ts';

/**
 * Writes NAME.inter, NAME.item, NAME.user if users have attributes, and NAME.train.inter, NAME.valid.inter and
 * NAME.test.inter into a new folder, NAME being the folder's: with the folder above it as `data_path`, RecBole's `dataset`.
 * Returns the number of rows by file.
 * @throws if the folder exists, the data are damaged, or ids or attributes cannot stand in such files; then nothing is written.
 */
export async function exportRecBole(directory: string, folder: string): Promise<Record<string, number>> {
  const output = resolve(folder);
  if (existsSync(output)) throw new Error(`data: ${output} exists; choose another folder`);
  await readDataset(directory);
  return await withDatabase(async (db) => {
    for (const table of ['items', 'users', 'interactions'])
      await db.run(
        `CREATE VIEW ${table} AS SELECT * FROM read_parquet(${pathLiteral(join(directory, `${table}.parquet`))})`,
      );
    await refuseIds(db);
    const files = { ...(await interactionFiles(db)), ...(await attributeFiles(db)) };
    const written: Record<string, number> = {};
    await writeWhole(output, false, async (temporary) => {
      for (const [suffix, query] of Object.entries(files)) {
        const file = `${basename(output)}.${suffix}`;
        const target = literal(join(temporary, file));
        // Values that begin with or hold quotation marks are quoted: pandas, with which RecBole reads, expects it.
        const [copied] = await rows(db, `COPY (${query}) TO ${target} (FORMAT csv, DELIMITER '\t', HEADER)`);
        written[file] = Number(copied!.Count);
      }
    });
    return written;
  });
}

async function interactionFiles(db: DuckDBConnection): Promise<Record<string, string>> {
  // Folders of before times were kept have no such column.
  const timed = (await rows(db, 'DESCRIBE interactions')).some((row) => row.column_name === 'time');
  const query = (condition: string) =>
    `SELECT users.id AS "user_id:token", items.id AS "item_id:token",
      ${timed ? 'coalesce(time, position)' : 'position'}::DOUBLE AS "timestamp:float"
     FROM interactions n JOIN users ON users.index = n."user" JOIN items ON items.index = n.item
     WHERE ${condition} ORDER BY n."user", position`;
  return {
    inter: query('true'),
    'train.inter': query(`part = 'train'`),
    'valid.inter': query(`part = 'validation'`),
    'test.inter': query(`part = 'test'`),
  };
}

async function attributeFiles(db: DuckDBConnection): Promise<Record<string, string>> {
  const ofItems = await attributes(db, 'items', ['item_id', 'title']);
  const ofUsers = await attributes(db, 'users', ['user_id']);
  const query = (table: string, columns: readonly string[]) =>
    `SELECT ${columns.join(', ')} FROM ${table} ORDER BY index`;
  return {
    item: query('items', [
      'id AS "item_id:token"',
      `${oneLine('title')} AS "title:token_seq"`,
      ...ofItems.map(({ name, value }) => `${value} AS ${identifier(`${name}:token_seq`)}`),
    ]),
    ...(ofUsers.length > 0 && {
      user: query('users', [
        'id AS "user_id:token"',
        ...ofUsers.map(({ name, value }) => `${value} AS ${identifier(`${name}:token`)}`),
      ]),
    }),
  };
}

/** Attributes that any row of a table has, and SQL of their values. @throws if one cannot be a column beside `taken`. */
async function attributes(
  db: DuckDBConnection,
  table: string,
  taken: readonly string[],
): Promise<{ name: string; value: string }[]> {
  const found = await rows(
    db,
    `SELECT field FROM (SELECT unnest(json_keys(attributes)) AS field, json_type(unnest(json_extract(attributes, '$.*'))) AS type,
       {'index': index, 'step': generate_subscripts(json_keys(attributes), 1)} AS place FROM ${table})
     WHERE type <> 'NULL' GROUP BY field ORDER BY min(place)`,
  );
  const names = found.map(({ field }) => String(field));
  const wrong = names.filter((name) => taken.includes(name) || name === '' || /[:"\p{Cc}]/u.test(name));
  if (wrong.length > 0)
    throw new Error(
      `data: attributes of ${table} cannot be columns of RecBole's: ${wrong.map((name) => JSON.stringify(name)).join(', ')}; import the data without them, or under other names`,
    );
  return names.map((name) => {
    const path = literal(pointer(name));
    const value = `CASE json_type(attributes, ${path})
      WHEN 'ARRAY' THEN array_to_string(json_extract(attributes, ${path})::VARCHAR[], ' ')
      ELSE json_extract_string(attributes, ${path}) END`;
    return { name, value: oneLine(value) };
  });
}

/** SQL: a text with its tabs, line breaks and other control characters as spaces. */
const oneLine = (text: string) => `regexp_replace(${text}, '[[:cntrl:]]', ' ', 'g')`;

async function refuseIds(db: DuckDBConnection): Promise<void> {
  for (const table of ['users', 'items']) {
    const [bad] = await rows(
      db,
      `SELECT id, count(*) OVER () AS n FROM ${table} WHERE id = '' OR regexp_matches(id, '[[:cntrl:]]') LIMIT 1`,
    );
    if (bad)
      throw new Error(
        `data: ${bad.n} ids of ${table} are empty or hold tabs or line breaks, such as ${JSON.stringify(bad.id)}; RecBole's files cannot hold them`,
      );
  }
}
