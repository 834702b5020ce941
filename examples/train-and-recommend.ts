// Trains two clients on the embedded sample with the embedded toy model, then recommends with one client's adapter.
//   node --conditions=source examples/train-and-recommend.ts
import { mkdtemp } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { clientTable, loadConfig, recommend, train } from '@fellrec/cli';
import { importDataset } from '@fellrec/recsys';

const folder = await mkdtemp(join(tmpdir(), 'fellrec-example-'));
const embedded = fileURLToPath(new URL('../packages/cli/quickstart/', import.meta.url));
await importDataset({
  interactions: join(embedded, 'games-sample/sequences.tsv'),
  items: join(embedded, 'games-sample/items.tsv'),
  columns: { sequence: 'items' },
  output: join(folder, 'data'),
});
const config = await loadConfig(join(embedded, 'config.yaml'), [
  ...[`data.path=${folder}/data`, `runs=${folder}/runs`, `cache=${folder}/cache`, 'partition.clients=2'],
  ...['data.trainSamples=32', 'data.validationSamples=8', 'data.testUsers=8', 'federation.rounds=2'],
]);
const result = await train(config);
console.log(clientTable(result));
const history = ['Titanfall 2 - PlayStation 4'];
const { items } = await recommend(result.directory, { client: 'client-0', history, k: 5 });
console.log(`\nAfter ${history}:`);
for (const { title } of items) console.log(`- ${title}`);
