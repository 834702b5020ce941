// How near the quantised bases are to float32 where it matters: the adapter's gradient on real prompts of a real model,
// calibrated on none of them. Skipped where model and data are absent.
import { join } from 'node:path';
import { float32, type NamedTensors, nodeRuntime, random } from '@fellrec/graph';
import {
  type Adapter,
  type Checkpoint,
  initialAdapter,
  languageModel,
  loadTokenizer,
  openCheckpoint,
  type QuantizedBase,
  quantizeBase,
  type Sequence,
} from '@fellrec/models';
import { beforeAll, describe, expect, test } from 'vitest';
import { calibrationSequences, trainingSequence } from '../src/bigrec/text.ts';
import { readDataset } from '../src/data/folder.ts';
import { importDataset } from '../src/data/import.ts';
import { videoGames } from '../src/prompt.ts';
import { subset, trainingSamples } from '../src/samples.ts';
import { sharedData, sharedModel, temporaryFolder } from './shared.ts';

const [games, folder] = [sharedData('games'), sharedModel('smollm2-135m-instruct')];

describe.skipIf(!games || !folder)('on SmolLM2 and Games', () => {
  const cacheDir = temporaryFolder();
  const runtime = nodeRuntime();
  let checkpoint: Checkpoint;
  let batch: Sequence[];
  let calibration: number[][];
  let adapter: Adapter;
  let expected: NamedTensors;

  const gradients = async (base?: QuantizedBase) => {
    const model = languageModel(checkpoint, runtime, base);
    const { gradients } = await model.gradients(batch, adapter, { microBatch: 2 });
    await model.release();
    return gradients;
  };

  beforeAll(async () => {
    const data = join(cacheDir, 'games');
    await importDataset({
      interactions: join(games!, 'sequences.tsv'),
      columns: { sequence: 'items' },
      items: join(games!, 'items.tsv'),
      output: data,
    });
    const { catalogue, users } = await readDataset(data);
    checkpoint = await openCheckpoint(folder!, { cacheDir });
    const tokenizer = await loadTokenizer(checkpoint.directory);
    const { eosIds } = checkpoint.config;
    const text = { catalogue, tokenizer, domain: videoGames, maxTokens: 512, eosIds };
    const samples = subset(
      users.flatMap((user) => trainingSamples(user)),
      4,
      1,
      'held out',
    );
    batch = samples.map((sample) => trainingSequence(sample, 'answer', text).value);
    calibration = calibrationSequences(text);
    const lora = { rank: 8, alpha: 16, dropout: 0, targetModules: ['q_proj', 'v_proj'] as const };
    const tensors = new Map(
      [...initialAdapter(checkpoint.config, lora, 1)].map(([name, { data, dims }]) => {
        const { normal } = random(7, name);
        const size = name.includes('lora_A') ? 0.04 : 0.02;
        return [
          name,
          float32(
            data.map(() => size * normal()),
            dims,
          ),
        ];
      }),
    );
    adapter = { config: lora, tensors };
    expected = await gradients();
  }, 300_000);

  test.each([
    ['int8', 0.99],
    ['int8-fast', 0.97],
  ] as const)(
    '%s: the gradient has a cosine of at least %f with float32',
    async (base, least) => {
      const quantized = await quantizeBase(checkpoint, { base, calibration, runtime, cacheDir });
      expect(cosineOf(await gradients(quantized), expected)).toBeGreaterThan(least);
    },
    300_000,
  );
});

function cosineOf(a: NamedTensors, b: NamedTensors): number {
  let [dot, aa, bb] = [0, 0, 0];
  for (const [name, { data }] of a) {
    const other = b.get(name)!.data;
    for (let i = 0; i < data.length; i++) {
      dot += data[i]! * other[i]!;
      aa += data[i]! ** 2;
      bb += other[i]! ** 2;
    }
  }
  return dot / Math.sqrt(aa * bb);
}
