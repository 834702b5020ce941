// Tables that scripts write into docs/results.md.
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const page = join(fileURLToPath(new URL('..', import.meta.url)), 'docs', 'results.md');

/** Replaces what stands between `<!-- name -->` and `<!-- /name -->`. @throws if the page has no such place. */
export function place(name: string, text: string): void {
  const before = readFileSync(page, 'utf8');
  const [begin, end] = [`<!-- ${name} -->`, `<!-- /${name} -->`];
  const [from, to] = [before.indexOf(begin), before.indexOf(end)];
  if (from === -1 || to < from) throw new Error(`results: ${page} has no place "${begin} ... ${end}"`);
  writeFileSync(page, `${before.slice(0, from + begin.length)}\n${text}\n${before.slice(to)}`);
}

/** A line of a table. */
export const line = (cells: readonly string[]): string => `| ${cells.join(' | ')} |`;
