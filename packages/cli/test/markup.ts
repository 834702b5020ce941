// What tests look for in a report's markup.
import { expect } from 'vitest';

/** The charts by their label. */
export function charts(markup: string): Map<string, string> {
  const found = markup.matchAll(/<svg [^>]*aria-label="([^"]*)"[^>]*>.*?<\/svg>/gs);
  return new Map([...found].map(([svg, label]) => [label!, svg]));
}

/** A table's rows as their cells' text, the header first. */
export function rowsOf(markup: string, caption: string): string[][] {
  const table = markup.split('</table>').find((part) => part.includes(`<caption>${caption}`));
  if (!table) throw new Error(`no table "${caption}"`);
  return [...table.matchAll(/<tr>(.*?)<\/tr>/gs)].map(([, row]) =>
    [...row!.matchAll(/<t[hd][^>]*>(.*?)<\/t[hd]>/gs)].map(([, cell]) => cell!),
  );
}

/** Tags that are opened and closed in order; throws where they are not. */
export function expectBalanced(svg: string): void {
  const open: string[] = [];
  for (const [, closing, name, alone] of svg.matchAll(/<(\/?)([\w-]+)(?:\s+[\w:-]+="[^"<]*")*\s*(\/?)>/g)) {
    if (closing) expect(open.pop()).toBe(name);
    else if (!alone) open.push(name!);
  }
  expect(open).toEqual([]);
  // Nothing but tags and escaped text.
  expect(svg.replace(/<\/?[\w-]+(?:\s+[\w:-]+="[^"<]*")*\s*\/?>/g, '')).not.toMatch(/[<>]/);
}
