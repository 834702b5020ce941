// RecBole's atomic files (https://recbole.io/docs/user_guide/data/atomic_files.html): tab-separated, read by pandas,
// every column with its type in the header: `user_id:token`, `timestamp:float`, `title:token_seq`.
import { identifier } from './duckdb.ts';

const type = /:(token|token_seq|float|float_seq)$/;

export const isTyped = (column: string): boolean => type.test(column);

/** A column's name without its type: `item_id` for `item_id:token`. */
export const untyped = (column: string): string => column.replace(type, '');

/** Whether a header has types. @throws if only some of its columns do, or if an atomic file's types are none of RecBole's. */
export function hasTypes(file: string, header: readonly string[]): boolean {
  const meant = header.some(isTyped) || (/\.(inter|item|user)(\.gz)?$/.test(file) && /:/.test(header.join()));
  const wrong = header.filter((column) => !isTyped(column));
  if (meant && wrong.length > 0)
    throw new Error(
      `its header has RecBole's types, but not for ${wrong.map((column) => `"${column}"`).join(', ')}; write name:type with token, token_seq, float or float_seq`,
    );
  return meant;
}

/**
 * SQL: the values of a column as pandas reads them, which takes a value in quotation marks out of them. Only where they
 * surely stand around it: what begins with a quotation mark and goes on after the second one stays as it is.
 */
export function unquoted(column: string): string {
  const value = identifier(column);
  return `CASE WHEN regexp_full_match(${value}, '"([^"]|"")*"')
    THEN replace(${value}[2:-2], '""', '"') ELSE ${value} END AS ${value}`;
}
