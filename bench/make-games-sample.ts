// Draws the embedded samples from the full Games data: users whose short histories lie within a dense set of items.
//
//   node bench/make-games-sample.ts <folder with sequences.tsv and items.tsv> <output folder> [word ...]
//
// With words, of the items that have one of them in the title only, numbered anew: a shop with a catalogue of its own.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const [source, output, ...words] = process.argv.slice(2) as [string, string, ...string[]];
const lines = (file: string) => readFileSync(join(source, file), 'utf8').trimEnd().split('\n').slice(1);
const sequences = lines('sequences.tsv').map((line) => {
  const [user, items] = line.split('\t') as [string, string];
  return { user, items: items.split(' ') };
});
const titles = new Map(lines('items.tsv').map((line) => line.split('\t') as [string, string]));

// A shop's users have less in common, so there are fewer items and more users to begin with.
const {
  items: most,
  shortest,
  drawn,
} = words.length === 0 ? { items: 500, shortest: 7, drawn: 330 } : { items: 120, shortest: 6, drawn: 400 };
const isSold = (title: string) =>
  words.length === 0 || words.some((word) => title.toLowerCase().includes(word.toLowerCase()));

// The most popular items with titles of at most 60 characters, and users with up to 20 interactions among them.
const popularity = new Map<string, number>();
for (const { items } of sequences)
  for (const item of items) popularity.set(item, (popularity.get(item) ?? 0) + 1);
const dense = new Set(
  [...popularity]
    .filter(([item]) => titles.get(item)!.trim().length <= 60 && isSold(titles.get(item)!))
    .sort(([a, x], [b, y]) => y - x || Number(a) - Number(b))
    .slice(0, most)
    .map(([item]) => item),
);
let kept = sequences
  .map(({ user, items }) => ({ user, items: items.filter((item) => dense.has(item)) }))
  .filter(({ items }) => items.length >= shortest && items.length <= 20);
// Every n-th of them, so that all parts of the data are met; the 5-core leaves about 300.
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

const used = [...new Set(kept.flatMap(({ items }) => items))].sort((a, b) => Number(a) - Number(b));
const id = (item: string) => (words.length === 0 ? item : String(used.indexOf(item)));
mkdirSync(output, { recursive: true });
writeFileSync(
  join(output, 'sequences.tsv'),
  `user\titems\n${kept.map(({ user, items }) => `${user}\t${items.map(id).join(' ')}`).join('\n')}\n`,
);
const rows = used.map((item) => `${id(item)}\t${titles.get(item)}`);
writeFileSync(join(output, 'items.tsv'), `item\ttitle\n${rows.join('\n')}\n`);
process.stdout.write(`${kept.length} users, ${used.length} items, ${total(kept)} interactions\n`);

function total(users: readonly { readonly items: readonly string[] }[]): number {
  return users.reduce((n, { items }) => n + items.length, 0);
}
