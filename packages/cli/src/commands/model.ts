import { existsSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { resolve } from 'node:path';
import { placeWhole } from '@fellrec/federation';
import { elementCount, type StoredTensor } from '@fellrec/graph';
import { cutCheckpoint, describePart, holdsPart, type ModelPart, verifyFixture } from '@fellrec/models';
import { openAny } from '../backends.ts';
import { exitCodes } from '../exit-codes.ts';
import { print } from '../output.ts';
import { table } from '../table.ts';

interface Options {
  readonly cache: string;
  readonly json?: boolean;
}

export async function runInfo(path: string, { cache, json }: Options): Promise<void> {
  const { config, tensors, hash, unused, directory, part } = await openAny(path, cache);
  const parameters = [...tensors].reduce(
    (n, [name, { dims }]) => n + (unused.includes(name) ? 0 : elementCount(dims)),
    0,
  );
  const info = { directory, hash, ...(part && { part }), parameters, config, unused };
  const settings = Object.entries(config).map(([key, value]) => [
    key,
    typeof value === 'object' ? JSON.stringify(value) : String(value),
  ]);
  const rows = [
    ['parameters', String(parameters)],
    ['hash', hash.slice(0, 16)],
    ...(part ? [['part', describePart(part, config.layerCount)]] : []),
    ...settings,
    ['unused tensors', unused.join(', ') || 'none'],
  ];
  print(info, rows.map(([key, value]) => `${key!.padEnd(20)} ${value}`).join('\n'), { json: json ?? false });
}

interface CutOptions extends Options, ModelPart {
  readonly output: string;
  readonly force?: boolean;
}

export async function runCut(
  path: string,
  { k, side, output, force = false, cache, json }: CutOptions,
): Promise<void> {
  const folder = resolve(output);
  const checkpoint = await openAny(path, cache);
  await assertFree(folder, force);
  let tensors: ReadonlyMap<string, StoredTensor> = new Map();
  await placeWhole(folder, async (aside) => {
    await cutCheckpoint(checkpoint, { side, k }, aside);
    // What does not open does not come into its place.
    ({ tensors } = await openAny(aside, cache));
  });
  const { layerCount } = checkpoint.config;
  const bytes = bytesOf([...tensors.values()]);
  const used = [...checkpoint.tensors].filter(([name]) => !checkpoint.unused.includes(name));
  const wholeBytes = bytesOf(used.map(([, stored]) => stored));
  const { hash } = checkpoint;
  print(
    { folder, side, k, layerCount, hash, tensors: tensors.size, bytes, wholeBytes },
    `${folder}: ${describePart({ side, k }, layerCount)}
${tensors.size} of ${used.length} tensors, ${bytes} of ${wholeBytes} bytes`,
    { json: json ?? false },
  );
}

/** @throws if the folder holds anything but a part that may be replaced. */
async function assertFree(folder: string, force: boolean): Promise<void> {
  if (!existsSync(folder) || (holdsPart(folder) && force)) return;
  if (holdsPart(folder)) throw new Error(`model: ${folder} exists; choose another folder or pass --force`);
  if ((await readdir(folder)).length > 0)
    throw new Error(`model: ${folder} is no part of a model and is not replaced; choose another folder`);
}

function bytesOf(tensors: readonly StoredTensor[]): number {
  return tensors.reduce((n, { byteLength }) => n + byteLength, 0);
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
