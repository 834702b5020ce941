// The data folder: items.parquet, users.parquet, interactions.parquet and dataset.json.
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { type DuckDBConnection, DuckDBInstance } from '@duckdb/node-api';
import { z } from 'zod';
import { catalogue, type Item } from '../catalogue.ts';
import type { Dataset, SplitName, User } from '../dataset.ts';
import { literal, rows } from './duckdb.ts';

const schema = z.object({
  format: z.literal(1, 'the folder was written by another version; import the data again'),
  name: z.string(),
  split: z.enum(['leave-one-out', 'global-time']),
  kCore: z.number().int().nonnegative(),
  users: z.number().int().positive(),
  items: z.number().int().positive(),
  interactions: z.number().int().positive(),
  sources: z.object({ interactions: z.string(), items: z.string(), users: z.string().optional() }),
});

interface Sources {
  readonly interactions: string;
  readonly items: string;
  readonly users?: string;
  readonly output: string;
}

/** Writes the tables `split`, `items` and `users` beside the target and renames: the folder appears whole or not at all. */
export async function writeFolder(
  db: DuckDBConnection,
  { output, ...sources }: Sources,
  { kCore, split, name }: { kCore: number; split: SplitName; name: string },
): Promise<void> {
  const temporary = join(dirname(output), `.${basename(output)}.${process.pid}.tmp`);
  await rm(temporary, { recursive: true, force: true });
  await mkdir(temporary, { recursive: true });
  try {
    await db.run(`CREATE TABLE item_index AS SELECT row_number() OVER (ORDER BY place) - 1 AS index, id, title, attributes
      FROM items WHERE id IN (SELECT item FROM split)`);
    await db.run(`CREATE TABLE user_index AS SELECT row_number() OVER (ORDER BY place) - 1 AS index, u.user AS id,
      users.attributes AS attributes FROM (SELECT user, min(place) AS place FROM kept GROUP BY user) u
      LEFT JOIN users ON users.id = u.user`);
    const copy = (query: string, file: string) =>
      db.run(`COPY (${query}) TO ${literal(join(temporary, file))} (FORMAT parquet, COMPRESSION zstd)`);
    await copy('SELECT * FROM item_index ORDER BY index', 'items.parquet');
    await copy('SELECT * FROM user_index ORDER BY index', 'users.parquet');
    await copy(
      `SELECT u.index::INTEGER AS user, i.index::INTEGER AS item, position::INTEGER AS position, part::TINYINT AS part FROM split
       JOIN user_index u ON u.id = user JOIN item_index i ON i.id = item ORDER BY u.index, position`,
      'interactions.parquet',
    );
    const [counts] = await rows(
      db,
      'SELECT (SELECT count(*) FROM user_index) AS users, (SELECT count(*) FROM item_index) AS items, (SELECT count(*) FROM split) AS interactions',
    );
    const dataset: z.infer<typeof schema> = {
      format: 1,
      name,
      split,
      kCore,
      users: Number(counts!.users),
      items: Number(counts!.items),
      interactions: Number(counts!.interactions),
      sources: {
        interactions: basename(sources.interactions),
        items: basename(sources.items),
        ...(sources.users && { users: basename(sources.users) }),
      },
    };
    await writeFile(join(temporary, 'dataset.json'), `${JSON.stringify(dataset, undefined, 2)}\n`);
    await rm(output, { recursive: true, force: true });
    await rename(temporary, output);
  } catch (cause) {
    await rm(temporary, { recursive: true, force: true });
    throw new Error(`data: cannot write ${output}: ${(cause as Error).message}`, { cause });
  }
}

/** Reads a data folder. @throws if a file is missing or damaged. */
export async function readDataset(directory: string): Promise<Dataset> {
  const file = join(directory, 'dataset.json');
  if (!existsSync(file))
    throw new Error(
      `data: ${directory} is no data folder (it has no dataset.json); make one with "fellrec data import"`,
    );
  const text = await readFile(file, 'utf8');
  let parsed: z.infer<typeof schema>;
  try {
    parsed = schema.parse(JSON.parse(text));
  } catch (cause) {
    const reason = cause instanceof z.ZodError ? z.prettifyError(cause) : (cause as Error).message;
    throw new Error(`data: ${file} is damaged: ${reason}`, { cause });
  }
  const instance = await DuckDBInstance.create(':memory:');
  const db = await instance.connect();
  const read = async (name: string) => {
    const path = join(directory, `${name}.parquet`);
    if (!existsSync(path)) throw new Error(`data: ${path} is missing; import the data again`);
    return (await db.runAndReadAll(`SELECT * FROM read_parquet(${literal(path)})`)).getColumnsObject();
  };
  try {
    const itemTable = await read('items');
    const items = itemTable.id!.map(
      (id, i): Item => ({
        id: String(id),
        title: String(itemTable.title![i]),
        attributes: attributesOf(itemTable.attributes![i]),
      }),
    );
    const userTable = await read('users');
    const users = userTable.id!.map((id, i) => ({
      id: String(id),
      parts: [[], [], []] as [number[], number[], number[]],
      attributes: attributesOf(userTable.attributes![i]),
    }));
    const table = await read('interactions');
    const [userColumn, itemColumn, partColumn] = [table.user!, table.item!, table.part!];
    const hash = createHash('sha256');
    for (let i = 0; i < userColumn.length; i++)
      users[Number(userColumn[i])]!.parts[Number(partColumn[i]) as 0 | 1 | 2].push(Number(itemColumn[i]));
    const known = catalogue(items);
    hash.update(known.hash).update(JSON.stringify(users.map(({ id, parts }) => [id, parts])));
    return {
      name: parsed.name,
      split: parsed.split,
      catalogue: known,
      users: users.map(
        ({ id, parts: [train, validation, test], attributes }): User => ({
          id,
          train,
          validation,
          test,
          attributes,
        }),
      ),
      hash: hash.digest('hex'),
    };
  } catch (cause) {
    throw new Error(`data: ${directory} cannot be read: ${(cause as Error).message}`, { cause });
  } finally {
    db.closeSync();
    instance.closeSync();
  }
}

function attributesOf(json: unknown): Record<string, string> {
  if (typeof json !== 'string') return {};
  const parsed = JSON.parse(json) as Record<string, unknown>;
  return Object.fromEntries(
    Object.entries(parsed).flatMap(([key, value]) =>
      value === null ? [] : [[key.split(':')[0]!, String(value)]],
    ),
  );
}
