// Small helpers over DuckDB's client.
import type { DuckDBConnection, DuckDBValue } from '@duckdb/node-api';

/** A string as an SQL literal. */
export function literal(text: string): string {
  return `'${text.replaceAll("'", "''")}'`;
}

/** A column's name as an SQL identifier. */
export function name(column: string): string {
  return `"${column.replaceAll('"', '""')}"`;
}

export async function rows(db: DuckDBConnection, sql: string): Promise<Record<string, DuckDBValue>[]> {
  return (await db.runAndReadAll(sql)).getRowObjects();
}
