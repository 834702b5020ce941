// The main job on an embedded default: a tiny model, real users, three strategies beside each other.
import { copyFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type RecformerConfig, writeRandomRecformer } from '@fellrec/models';
import { importDataset } from '@fellrec/recsys';
import { type Config, loadConfig } from '../config.ts';
import { openExperiment } from '../experiment.ts';
import { print } from '../output.ts';
import { progressOn } from '../progress.ts';
import { clientTable, comparisonTable } from '../table.ts';
import { type RunResult, train } from '../train.ts';
import { droppedHistory } from './train.ts';

const strategies = ['fellrec', 'fedavg', 'local'] as const;

interface Options {
  readonly backend: Config['recommender'];
  readonly runs: string;
  readonly json?: boolean;
}

export async function run({ backend, runs, json }: Options): Promise<void> {
  const progress = progressOn(process.stderr);
  const folder = join(fileURLToPath(import.meta.resolve('@fellrec/cli/quickstart/config.yaml')), '..');
  const output = resolve(runs, backend === 'bigrec' ? 'quickstart' : 'quickstart-recformer');
  const data = join(output, 'data');
  const sample = join(folder, 'games-sample');
  await importDataset({
    interactions: join(sample, 'sequences.tsv'),
    items: join(sample, 'items.tsv'),
    columns: { sequence: 'items' },
    output: data,
    force: true,
  });
  const base =
    backend === 'bigrec'
      ? await loadConfig(join(folder, 'config.yaml'), [`data.path=${data}`])
      : await loadConfig(join(folder, 'recformer.yaml'), [
          `data.path=${data}`,
          `model.path=${await randomEncoder(folder, output)}`,
        ]);
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
    const experiment = opened.sharing(chosen, opened.partition);
    results.push(await train(chosen, { force: true, progress, experiment }));
  }
  await opened.dispose();
  print(results, describe(results, backend), { json: json ?? false });
}

const tinyEncoder: RecformerConfig = {
  vocabularySize: 512,
  hiddenSize: 64,
  intermediateSize: 128,
  layerCount: 2,
  headCount: 4,
  headDim: 16,
  positionCount: 514,
  tokenTypeCount: 4,
  itemPositionCount: 51,
  attentionWindows: [32, 32],
  normEpsilon: 1e-5,
  pooling: 'avg',
  startId: 1,
  padId: 0,
  limits: { maxAttributes: 3, maxAttributeLength: 32, maxItems: 50, maxTokens: 256 },
};

/** A folder with an untrained encoder and the embedded model's tokenizer. */
async function randomEncoder(folder: string, output: string): Promise<string> {
  const directory = join(output, 'encoder');
  await writeRandomRecformer(directory, tinyEncoder, 1);
  await copyFile(join(folder, 'stories260k', 'tokenizer.json'), join(directory, 'tokenizer.json'));
  return directory;
}

const models = {
  bigrec:
    'The model is a toy of 260,000 parameters that only shows how the parts work together; expect floor-level numbers.',
  recformer:
    'The encoder is a toy of 160,000 parameters that starts from nothing and only shows how the parts work together.',
} as const;

const next = {
  bigrec: `A real model: put SmolLM2-135M-Instruct (or any LLaMA-architecture checkpoint) and the Games data beside you, then
  npx fellrec data import --interactions sequences.tsv --sequence-column items --items items.tsv -o data/games
  npx fellrec train --config configs/games-smollm2.yaml --set model.path=FOLDER --set data.path=data/games`,
  recformer: `A real model: put all-MiniLM-L6-v2 (or any RecFormer, RoBERTa, Longformer or BERT) and the Office data beside you, then
  npx fellrec data import --interactions Office_Products.inter.json --items Office_Products.item.json -o data/office
  npx fellrec train --config configs/office-recformer.yaml --set model.path=FOLDER --set data.path=data/office`,
} as const;

function describe(results: readonly RunResult[], backend: Config['recommender']): string {
  const [fellrec] = results;
  return `FELLRec, per client (five clients, each with its own users and its own mixture of ${backend === 'bigrec' ? 'adapters' : 'encoders'}):

${clientTable(fellrec!)}

All methods, same users, same start; random and popularity rankings as the floor:

${comparisonTable(results)}

R@K: share of a user's next items among the first K of all items. N@K: the same, higher for better places (NDCG).
${models[backend]}
${droppedHistory(fellrec!)}

Files of the runs: ${join(fellrec!.directory, '..')}
Ask one of them: npx fellrec recommend ${fellrec!.directory} --client client-0 --history "Titanfall 2 - PlayStation 4"
${next[backend]}`;
}
