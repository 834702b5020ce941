// Draws the embedded sample from the full Games data: users whose short histories lie within a dense set of items.
//
//   node bench/make-games-sample.ts <folder with sequences.tsv and items.tsv> <output folder>
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const [source, output] = process.argv.slice(2) as [string, string];
const lines = (file: string) => readFileSync(join(source, file), 'utf8').trimEnd().split('\n').slice(1);
const sequences = lines('sequences.tsv').map((line) => {
  const [user, items] = line.split('\t') as [string, string];
  return { user, items: items.split(' ') };
});
const titles = new Map(lines('items.tsv').map((line) => line.split('\t') as [string, string]));

// The most popular items with titles of at most 60 characters, and users with 7 to 20 interactions among them.
const popularity = new Map<string, number>();
for (const { items } of sequences)
  for (const item of items) popularity.set(item, (popularity.get(item) ?? 0) + 1);
const dense = new Set(
  [...popularity]
    .filter(([item]) => titles.get(item)!.trim().length <= 60)
    .sort(([a, x], [b, y]) => y - x || Number(a) - Number(b))
    .slice(0, 500)
    .map(([item]) => item),
);
let kept = sequences
  .map(({ user, items }) => ({ user, items: items.filter((item) => dense.has(item)) }))
  .filter(({ items }) => items.length >= 7 && items.length <= 20);
// Every n-th of them, so that all parts of the data are met; the 5-core leaves about 300.
const drawn = 330;
const stride = Math.max(1, Math.floor(kept.length / drawn));
kept = kept.filter((_, i) => i % stride === 0).slice(0, drawn);
for (let before = -1; before !== kept.length * 1e6 + total(kept); ) {
  before = kept.length * 1e6 + total(kept);
  const counts = new Map<string, number>();
  for (const { items } of kept) for (const item of items) counts.set(item, (counts.get(item) ?? 0) + 1);
  kept = kept
    .map(({ user, items }) => ({ user, items: items.filter((item) => counts.get(item)! >= 5) }))
    .filter(({ items }) => items.length >= 5);
}

const used = new Set(kept.flatMap(({ items }) => items));
mkdirSync(output, { recursive: true });
writeFileSync(
  join(output, 'sequences.tsv'),
  `user\titems\n${kept.map((s) => `${s.user}\t${s.items.join(' ')}`).join('\n')}\n`,
);
const rows = [...used].sort((a, b) => Number(a) - Number(b)).map((item) => `${item}\t${titles.get(item)}`);
writeFileSync(join(output, 'items.tsv'), `item\ttitle\n${rows.join('\n')}\n`);
process.stdout.write(`${kept.length} users, ${used.size} items, ${total(kept)} interactions\n`);

function total(users: readonly { readonly items: readonly string[] }[]): number {
  return users.reduce((n, { items }) => n + items.length, 0);
}
