// Trains five clients on the embedded sample and asks one of them for recommendations.
//   npx node --conditions=source examples/train-and-recommend.ts [folder to work in]
import { join } from 'node:path';
import { clientTable, loadConfig, recommend, train } from '@fellrec/cli';
import { importDataset } from '@fellrec/recsys';

const folder = process.argv[2] ?? 'runs/example';
const quickstart = join(import.meta.dirname, '../packages/cli/quickstart');
const sample = join(quickstart, 'games-sample');
await importDataset({
  interactions: join(sample, 'sequences.tsv'),
  items: join(sample, 'items.tsv'),
  columns: { sequence: 'items' },
  output: join(folder, 'data'),
  force: true,
});
const config = await loadConfig(join(quickstart, 'config.yaml'), [
  ...[`data.path=${folder}/data`, `runs=${folder}`, `cache=${folder}/cache`, 'name=example'],
  ...['federation.rounds=1', 'data.trainSamples=100', 'data.testUsers=50'],
]);
const result = await train(config, { force: true });
console.log(clientTable(result));

const { items } = await recommend(result.directory, { client: 'client-0', history: ['0'], k: 3 });
for (const { title } of items) console.log(title);
