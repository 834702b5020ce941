// Small helpers over DuckDB's client.
import { type DuckDBConnection, DuckDBInstance, type DuckDBValue } from '@duckdb/node-api';

/** A string as an SQL literal. */
export function literal(text: string): string {
  return `'${text.replaceAll("'", "''")}'`;
}

/** A file's name as an SQL literal for what reads files, in which `*`, `?` and `[` would be a pattern of names. */
export function pathLiteral(file: string): string {
  return literal(file.replace(/[*?[]/g, '[$&]'));
}

/** A column's name as an SQL identifier. */
export function identifier(column: string): string {
  return `"${column.replaceAll('"', '""')}"`;
}

export async function rows(db: DuckDBConnection, sql: string): Promise<Record<string, DuckDBValue>[]> {
  return (await db.runAndReadAll(sql)).getRowObjects();
}

/** Runs `work` on a database in memory, which is closed afterwards. */
export async function withDatabase<T>(work: (db: DuckDBConnection) => Promise<T>): Promise<T> {
  const instance = await DuckDBInstance.create(':memory:');
  const db = await instance.connect();
  try {
    return await work(db);
  } finally {
    db.closeSync();
    instance.closeSync();
  }
}
