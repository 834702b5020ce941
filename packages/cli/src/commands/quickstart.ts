// The main job on an embedded default: a tiny model, real users, three strategies beside each other.
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { importDataset } from '@fellrec/recsys';
import { type Config, loadConfig } from '../config.ts';
import { openExperiment } from '../experiment.ts';
import { print } from '../output.ts';
import { progressOn } from '../progress.ts';
import { clientTable, comparisonTable } from '../table.ts';
import { type RunResult, train } from '../train.ts';
import { droppedHistory } from './train.ts';

const strategies = ['fellrec', 'fedavg', 'local'] as const;

export async function run({ runs, json }: { runs: string; json?: boolean }): Promise<void> {
  const progress = progressOn(process.stderr);
  const embedded = fileURLToPath(import.meta.resolve('@fellrec/cli/quickstart/config.yaml'));
  const folder = join(embedded, '..');
  const output = resolve(runs, 'quickstart');
  const data = join(output, 'data');
  const sample = join(folder, 'games-sample');
  await importDataset({
    interactions: join(sample, 'sequences.tsv'),
    items: join(sample, 'items.tsv'),
    columns: { sequence: 'items' },
    output: data,
    force: true,
  });
  const base = await loadConfig(embedded, [`data.path=${data}`]);
  const config = (strategy: Config['federation']['strategy']): Config => ({
    ...base,
    name: strategy,
    runs: output,
    cache: join(output, 'cache'),
    federation: { ...base.federation, strategy },
  });
  const opened = await openExperiment(config('fellrec'), progress.report);
  const results: RunResult[] = [];
  for (const strategy of strategies) {
    progress.line(`== ${strategy}`);
    const chosen = config(strategy);
    const experiment = { ...opened, config: chosen };
    results.push(await train(chosen, { force: true, progress, experiment }));
  }
  await opened.recommender.dispose();
  print(results, describe(results), { json: json ?? false });
}

function describe(results: readonly RunResult[]): string {
  const [fellrec] = results;
  return `FELLRec, per client (five clients, each with its own users and its own mixture of adapters):

${clientTable(fellrec!)}

All methods, same users, same start; random and popularity rankings as the floor:

${comparisonTable(results)}

R@K: share of a user's next items among the first K of all items. N@K: the same, higher for better places (NDCG).
The model is a toy of 260,000 parameters that only shows how the parts work together; expect floor-level numbers.
${droppedHistory(fellrec!)}

Files of the runs: ${join(fellrec!.directory, '..')}
Ask one of them: npx fellrec recommend ${fellrec!.directory} --client client-0 --history "Titanfall 2 - PlayStation 4"
A real model: put SmolLM2-135M-Instruct (or any LLaMA-architecture checkpoint) and the Games data beside you, then
  npx fellrec data import --interactions sequences.tsv --sequence-column items --items items.tsv -o data/games
  npx fellrec train --config configs/games-smollm2.yaml --set model.path=FOLDER --set data.path=data/games`;
}
