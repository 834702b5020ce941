import { elementCount } from '@fellrec/graph';
import {
  type Checkpoint,
  holdsEncoder,
  openCheckpoint,
  openRecformer,
  type RecformerCheckpoint,
  verifyFixture,
} from '@fellrec/models';
import { exitCodes } from '../exit-codes.ts';
import { print } from '../output.ts';
import { table } from '../table.ts';

interface Options {
  readonly cache: string;
  readonly json?: boolean;
}

export async function runInfo(path: string, { cache, json }: Options): Promise<void> {
  const { config, tensors, hash, unused, directory } = await openAny(path, cache);
  const parameters = [...tensors].reduce(
    (n, [name, { dims }]) => n + (unused.includes(name) ? 0 : elementCount(dims)),
    0,
  );
  const info = { directory, hash, parameters, config, unused };
  const settings = Object.entries(config).map(([key, value]) => [
    key,
    typeof value === 'object' ? JSON.stringify(value) : String(value),
  ]);
  const rows = [
    ['parameters', String(parameters)],
    ['hash', hash.slice(0, 16)],
    ...settings,
    ['unused tensors', unused.join(', ') || 'none'],
  ];
  print(info, rows.map(([key, value]) => `${key!.padEnd(20)} ${value}`).join('\n'), { json: json ?? false });
}

/** An encoder if its config.json says so, else a LLaMA. */
async function openAny(path: string, cacheDir: string): Promise<Checkpoint | RecformerCheckpoint> {
  return (await holdsEncoder(path)) ? openRecformer(path, { cacheDir }) : openCheckpoint(path, { cacheDir });
}

export async function runVerify(folder: string, { cache, json }: Options): Promise<void> {
  const groups = await verifyFixture(folder, cache);
  const rows = groups.map((g) => [
    g.group,
    g.difference.toExponential(2),
    g.tolerance.toExponential(0),
    g.pass ? 'pass' : 'FAIL',
  ]);
  print(groups, table(['group', 'largest difference', 'tolerance', ''], rows), { json: json ?? false });
  if (groups.some(({ pass }) => !pass)) process.exitCode = exitCodes.failed;
}
