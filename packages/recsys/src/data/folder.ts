// The data folder: items.parquet, users.parquet, interactions.parquet and dataset.json.
import { createHash } from 'node:crypto';
import { existsSync, readdirSync } from 'node:fs';
import { mkdir, mkdtemp, open, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import type { DuckDBConnection } from '@duckdb/node-api';
import { z } from 'zod';
import { type Catalogue, catalogue } from '../catalogue.ts';
import type { Dataset, SplitName, User } from '../dataset.ts';
import { literal, pathLiteral, rows, withDatabase } from './duckdb.ts';

const schema = z.strictObject({
  format: z.literal(2, 'the folder was written by another version; import the data again'),
  name: z.string(),
  split: z.enum(['leave-one-out', 'global-time']),
  kCore: z.number().int().nonnegative(),
  users: z.number().int().positive(),
  items: z.number().int().positive(),
  interactions: z.number().int().positive(),
  /** File names, without their folders. */
  sources: z.strictObject({ interactions: z.string(), items: z.string(), users: z.string().optional() }),
  /** sha256 of all that is read: catalogue, interactions and attributes; checked on reading. */
  hash: z.string(),
});
type Description = z.infer<typeof schema>;

interface Content {
  /** Whether a data folder in its place goes. */
  readonly force: boolean;
  readonly name: string;
  readonly kCore: number;
  readonly split: SplitName;
  readonly sources: {
    readonly interactions: string;
    readonly items: string;
    readonly users: string | undefined;
  };
}

const descriptionFile = 'dataset.json';

/** Whether a folder says that it is a data folder. */
export function isDataset(directory: string): boolean {
  return existsSync(join(directory, descriptionFile));
}

/** @throws if something is at `output` that may not be replaced: `force` replaces data folders only. */
export function refuseExisting(output: string, force: boolean): void {
  if (!existsSync(output)) return;
  if (!force) throw new Error(`data: ${output} exists; choose another folder or pass --force`);
  if (!isDataset(output) && readdirSync(output).length > 0)
    throw new Error(`data: ${output} is no data folder and is not replaced; choose another folder`);
}

/** Writes the tables `split`, `items` and `users` beside the target and renames: the folder appears whole or not at all. */
export async function writeFolder(db: DuckDBConnection, output: string, content: Content): Promise<void> {
  const { name, kCore, split, sources } = content;
  const described = {
    name,
    split,
    kCore,
    sources: {
      interactions: basename(sources.interactions),
      items: basename(sources.items),
      ...(sources.users && { users: basename(sources.users) }),
    },
  };
  await place(db, output, content.force, described, (folder) => writeTables(db, folder));
}

/**
 * Writes a data folder with some of the users of another one and its whole catalogue: what a client of its own has.
 * @throws if a user is not there, or if something is at `output` that may not be replaced.
 */
export async function writeUsers(
  directory: string,
  output: string,
  { name, users, force = false }: { name: string; users: readonly string[]; force?: boolean },
): Promise<void> {
  refuseExisting(output, force);
  const { split, kCore, sources } = await readDescription(directory);
  const table = (file: string) => `read_parquet(${pathLiteral(join(directory, `${file}.parquet`))})`;
  await withDatabase(async (db) => {
    const list = users.map((id) => `(${literal(id)})`).join(', ');
    await db.run(`CREATE TABLE user_index AS SELECT row_number() OVER (ORDER BY index) - 1 AS index, index AS before,
      id, attributes FROM ${table('users')} WHERE id IN (SELECT * FROM (VALUES ${list}))`);
    const found = Number((await rows(db, 'SELECT count(*) AS n FROM user_index'))[0]!.n);
    if (found !== new Set(users).size)
      throw new Error(`data: ${directory} has ${found} of the ${users.length} users`);
    await place(db, output, force, { name, split, kCore, sources }, async (folder) => {
      const copy = (query: string, file: string) => copyTo(db, query, join(folder, `${file}.parquet`));
      await copy(`SELECT * FROM ${table('items')} ORDER BY index`, 'items');
      await copy('SELECT index, id, attributes FROM user_index ORDER BY index', 'users');
      await copy(
        `SELECT u.index::INTEGER AS user, i.* EXCLUDE (user) FROM ${table('interactions')} i
         JOIN user_index u ON u.before = i.user ORDER BY u.index, position`,
        'interactions',
      );
      return Number(
        (
          await rows(
            db,
            `SELECT count(*) AS n FROM read_parquet(${pathLiteral(join(folder, 'interactions.parquet'))})`,
          )
        )[0]!.n,
      );
    });
  });
}

/** `write` makes the tables in a folder and returns the number of interactions. */
async function place(
  db: DuckDBConnection,
  output: string,
  force: boolean,
  described: Pick<Description, 'name' | 'split' | 'kCore' | 'sources'>,
  write: (folder: string) => Promise<number>,
): Promise<void> {
  await writeWhole(output, force, async (folder) => {
    const interactions = await write(folder);
    const { items, users, hash } = await readTables(db, folder);
    const { sources, ...rest } = described;
    const description: Description = {
      format: 2,
      ...rest,
      users: users.length,
      items: items.items.length,
      interactions,
      sources,
      hash,
    };
    await writeFile(join(folder, descriptionFile), `${JSON.stringify(description, undefined, 2)}\n`);
  });
}

/** `write` fills a folder beside the target, which it then becomes: it appears whole or not at all. */
export async function writeWhole(
  output: string,
  force: boolean,
  write: (folder: string) => Promise<void>,
): Promise<void> {
  await mkdir(dirname(output), { recursive: true });
  const temporary = await mkdtemp(join(dirname(output), `.${basename(output)}-`));
  try {
    await write(temporary);
    for (const file of readdirSync(temporary)) await flush(join(temporary, file));
    await (force ? replace(temporary, output) : rename(temporary, output));
    await flush(dirname(output));
  } catch (cause) {
    throw new Error(`data: cannot write ${output}: ${(cause as Error).message}`, { cause });
  } finally {
    await rm(temporary, { recursive: true, force: true });
  }
}

/** Reads a data folder. @throws if a file is missing or damaged. */
export async function readDataset(directory: string): Promise<Dataset> {
  const { name, split, hash } = await readDescription(directory);
  for (const table of ['items', 'users', 'interactions'])
    if (!existsSync(join(directory, `${table}.parquet`)))
      throw new Error(`data: ${join(directory, `${table}.parquet`)} is missing; import the data again`);
  const tables = await withDatabase((db) => readTables(db, directory)).catch((cause: Error) => {
    throw new Error(`data: ${directory} cannot be read: ${cause.message}; import the data again`, { cause });
  });
  if (tables.hash !== hash)
    throw new Error(
      `data: the files in ${directory} do not belong to its ${descriptionFile}: sha256 ${tables.hash}, expected ${hash}; import the data again`,
    );
  return { name, split, catalogue: tables.items, users: tables.users, hash };
}

/** The hash that identifies a data folder's content, as its description says; reading the data checks it. */
export async function datasetHash(directory: string): Promise<string> {
  return (await readDescription(directory)).hash;
}

async function readDescription(directory: string): Promise<Description> {
  const file = join(directory, descriptionFile);
  if (!existsSync(file))
    throw new Error(
      `data: ${directory} is no data folder (it has no ${descriptionFile}); make one with "fellrec data import"`,
    );
  try {
    return schema.parse(JSON.parse(await readFile(file, 'utf8')));
  } catch (cause) {
    const reason = cause instanceof z.ZodError ? z.prettifyError(cause) : (cause as Error).message;
    throw new Error(`data: ${file} is damaged: ${reason}`, { cause });
  }
}

/** The three tables as Parquet files. Returns the number of interactions. */
async function writeTables(db: DuckDBConnection, folder: string): Promise<number> {
  await db.run(`CREATE TABLE item_index AS SELECT row_number() OVER (ORDER BY place) - 1 AS index, id, title, attributes
    FROM items WHERE id IN (SELECT item FROM split)`);
  await db.run(`CREATE TABLE user_index AS SELECT row_number() OVER (ORDER BY place) - 1 AS index, user AS id, attributes
    FROM (SELECT user, min(place) AS place FROM kept GROUP BY user) LEFT JOIN users ON users.id = user`);
  const copy = (query: string, table: string) => copyTo(db, query, join(folder, `${table}.parquet`));
  await copy('SELECT * FROM item_index ORDER BY index', 'items');
  await copy('SELECT * FROM user_index ORDER BY index', 'users');
  await copy(
    `SELECT u.index::INTEGER AS user, i.index::INTEGER AS item, position::INTEGER AS position,
      CASE part WHEN 0 THEN 'train' WHEN 1 THEN 'validation' ELSE 'test' END AS part, time
     FROM split JOIN user_index u ON u.id = user JOIN item_index i ON i.id = item ORDER BY u.index, position`,
    'interactions',
  );
  return Number((await rows(db, 'SELECT count(*) AS n FROM split'))[0]!.n);
}

async function copyTo(db: DuckDBConnection, query: string, file: string): Promise<void> {
  await db.run(`COPY (${query}) TO ${literal(file)} (FORMAT parquet, COMPRESSION zstd)`);
}

async function readTables(
  db: DuckDBConnection,
  folder: string,
): Promise<{ items: Catalogue; users: User[]; hash: string }> {
  // In the order in which they were written; the hash would tell.
  const read = async (table: string, ...columns: readonly string[]) => {
    const file = pathLiteral(join(folder, `${table}.parquet`));
    const found = await db.runAndReadAll(`SELECT ${columns.join(', ')} FROM read_parquet(${file})`);
    return found.getColumns();
  };
  const [itemIds, titles, itemAttributes] = await read('items', 'id', 'title', 'attributes');
  const items = catalogue(
    itemIds!.map((id, i) => ({
      id: String(id),
      title: String(titles![i]),
      attributes: parseAttributes(itemAttributes![i]),
    })),
  );
  const [userIds, userAttributes] = await read('users', 'id', 'attributes');
  const users = userIds!.map((id, i) => ({
    id: String(id),
    train: [] as number[],
    validation: [] as number[],
    test: [] as number[],
    attributes: parseAttributes(userAttributes![i]),
  }));
  const [user, item, part] = await read('interactions', '"user"', 'item', 'part');
  for (let i = 0; i < user!.length; i++)
    users[Number(user![i])]![part![i] as 'train' | 'validation' | 'test'].push(Number(item![i]));
  const parts = users.map(({ id, train, validation, test }) => [id, train, validation, test]);
  const attributes = [items.items, users].map((all) => all.map(sortedAttributes));
  const hash = createHash('sha256')
    .update(items.hash)
    .update(JSON.stringify([parts, attributes]));
  return { items, users, hash: hash.digest('hex') };
}

const sortedAttributes = ({ attributes }: Pick<User, 'attributes'>) =>
  Object.entries(attributes).sort(([a], [b]) => (a < b ? -1 : 1));

function parseAttributes(json: unknown): Record<string, string> {
  if (typeof json !== 'string') return {};
  const entries = Object.entries(JSON.parse(json) as Record<string, unknown>);
  return Object.fromEntries(entries.flatMap(([key, value]) => (value === null ? [] : [[key, text(value)]])));
}

function text(value: unknown): string {
  if (Array.isArray(value)) return value.map(text).join(' ');
  return typeof value === 'object' ? JSON.stringify(value) : String(value);
}

/** Writes a file's or folder's pages to the disk, so that a rename after it never shows an empty file. */
async function flush(path: string): Promise<void> {
  const handle = await open(path, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** Puts `folder` in the place of `output`, whose old content goes only afterwards. */
async function replace(folder: string, output: string): Promise<void> {
  const old = `${folder}.old`;
  if (existsSync(output)) await rename(output, old);
  await rename(folder, output);
  await rm(old, { recursive: true, force: true });
}
