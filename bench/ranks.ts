// Where runs of RecFormer rank the items of their test users, and how that goes with the loss, by group:
//   npx node --conditions=source bench/ranks.ts RUN... [--threads COUNT]
// Each client's best parameters, the whole catalogue but the user's earlier items; the loss is that of training, over the
// whole catalogue.
import { parseArgs } from 'node:util';
import { openRun } from '@fellrec/federation';
import { storeFormat } from '../packages/cli/src/experiment.ts';
import { openStored, readRun } from '../packages/cli/src/stored-run.ts';
import { trainedClients } from '../packages/cli/src/train.ts';
import { line } from './page.ts';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { threads: { type: 'string' } },
});
if (positionals.length === 0) throw new Error('ranks: name folders of runs');

interface Ranked {
  readonly rank: number;
  readonly loss: number;
}

const header = ['run', 'group', 'users', 'R@10', 'R@50', 'R@200', 'median rank', 'loss'];
const print = (cells: readonly string[]) => process.stdout.write(`${line(cells)}\n`);
print(header);
print(header.map(() => '---'));
for (const directory of positionals)
  for (const [group, found] of await rankedOf(directory)) {
    const within = (k: number) => (found.filter(({ rank }) => rank < k).length / found.length).toFixed(4);
    const ranks = found.map(({ rank }) => rank).sort((a, b) => a - b);
    const loss = found.reduce((sum, one) => sum + one.loss, 0) / found.length;
    print([
      directory,
      group,
      String(found.length),
      ...[10, 50, 200].map(within),
      String(1 + ranks[Math.floor(ranks.length / 2)]!),
      loss.toFixed(3),
    ]);
  }

async function rankedOf(directory: string): Promise<Map<string, Ranked[]>> {
  const run = await readRun(directory);
  const threads = values.threads === undefined ? {} : { threads: Number(values.threads) };
  const experiment = await openStored(directory, { ...run, config: { ...run.config, ...threads } }, () => {});
  const { seed, recformer } = run.config;
  try {
    const store = await openRun(directory, storeFormat(experiment));
    try {
      const groups = new Map<string, Ranked[]>();
      for await (const { client, parameters, items } of trainedClients(experiment, store)) {
        const { group, recommender, test } = client;
        const found = groups.get(group.name ?? '') ?? [];
        groups.set(group.name ?? '', found);
        const scored = recommender.score(test, parameters, { seed, ...(items && { items }) });
        let at = 0;
        for await (const { scores } of scored) {
          const { seen, targets } = test[at++]!;
          const target = scores[targets[0]!]!;
          const others = Array.from(scores).filter((_, item) => !seen.includes(item));
          const rank = others.filter((score) => score > target).length;
          found.push({ rank, loss: crossEntropy(scores, target, recformer.temperature) });
        }
      }
      return groups;
    } finally {
      await store.close();
    }
  } finally {
    await experiment.dispose();
  }
}

function crossEntropy(scores: ArrayLike<number>, target: number, temperature: number): number {
  const all = Array.from(scores);
  const most = Math.max(...all);
  const sum = all.reduce((total, score) => total + Math.exp((score - most) / temperature), 0);
  return Math.log(sum) - (target - most) / temperature;
}
