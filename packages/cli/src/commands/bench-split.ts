import { openCheckpoint } from '@fellrec/models';
import { ConfigError } from '../config.ts';
import { print } from '../output.ts';
import { type SplitBench, type SplitBenchOptions, splitBench } from '../split-bench.ts';
import { table } from '../table.ts';

type Flags = SplitBenchOptions & { readonly k: readonly number[]; readonly json?: boolean };

export async function run({ k, json, ...options }: Flags): Promise<void> {
  if (options.labels >= options.length)
    throw new ConfigError(
      `bench: ${options.labels} labels need sequences longer than ${options.length} tokens`,
    );
  const { config } = await openCheckpoint(options.model, { cacheDir: options.cache });
  const wrong = k.filter((one) => one >= config.layerCount);
  if (wrong.length > 0)
    throw new ConfigError(
      `bench: --k ${wrong.join(', ')}: the model has ${config.layerCount} layers, so 0 to ${config.layerCount - 1} are possible`,
    );
  const found = await splitBench(k, options, (text) => process.stderr.write(`${text}\n`));
  print(found, describe(found), { json: json ?? false });
}

const percent = (share: number) => `${(100 * share).toFixed(0)} %`;
const kilobytes = ({ up, down }: { up: number; down: number }) =>
  `${(up / 1000).toFixed(0)} / ${(down / 1000).toFixed(0)}`;

function describe({ unsplit, splits }: SplitBench): string {
  const rows = splits.map((s) => [
    String(s.k),
    s.tokensPerSecond.toFixed(0),
    s.stepRatio.toFixed(2),
    String(s.clientMiB),
    percent(s.memoryBelow),
    percent(s.weightsElsewhere),
    String(s.serverMiB),
    kilobytes(s.stepBytes),
    kilobytes(s.recommendationBytes),
    s.recommendationSeconds.toFixed(2),
  ]);
  rows.push([
    'unsplit',
    unsplit.tokensPerSecond.toFixed(0),
    '1.00',
    String(unsplit.peakMiB),
    '',
    '',
    '',
    '',
    '',
    unsplit.recommendationSeconds.toFixed(2),
  ]);
  const header = [
    'k',
    'tokens/s',
    'step',
    'client MiB',
    'below',
    'weights away',
    'server MiB',
    'step kB up/down',
    'item kB up/down',
    'item s',
  ];
  return table(header, rows);
}
