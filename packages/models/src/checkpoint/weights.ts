// Where a checkpoint's tensors lie, whatever its architecture: one file or several, checked against what is expected.
import { createHash } from 'node:crypto';
import { open, readdir, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import type { StoredTensor } from '@fellrec/graph';
import { z } from 'zod';
import { readJsonObject } from './json.ts';
import { readSafetensorsIndex, type SafetensorsIndex, typeNames } from './safetensors.ts';

/** The names of a checkpoint's files. @throws if `path` is no folder. */
export async function filesOf(path: string, what: string): Promise<string[]> {
  const found = await stat(path).catch(() => undefined);
  if (!found) throw new Error(`model: ${path} does not exist; give ${what}`);
  if (found.isFile())
    throw new Error(
      path.endsWith('.safetensors')
        ? `model: ${path} is a file of a checkpoint; give the folder that it lies in`
        : `model: ${path} is a file; give ${what}`,
    );
  return readdir(path);
}

/** `model.safetensors` of a folder, or its shards; undefined if it has neither. */
export async function readWeights(
  path: string,
  names: readonly string[],
): Promise<SafetensorsIndex | undefined> {
  if (names.includes('model.safetensors')) return readSafetensorsIndex(join(path, 'model.safetensors'));
  return names.includes('model.safetensors.index.json') ? readShards(path) : undefined;
}

/** Problems that an error names. */
const listed = 50;

/** @throws listing every expected tensor that is missing, of another shape, or of an unsupported type. */
export function assertTensors(
  expected: ReadonlyMap<string, readonly number[]>,
  { tensors, others }: SafetensorsIndex,
  directory: string,
  isPart: boolean,
): void {
  const problems: string[] = [];
  for (const [name, dims] of expected) {
    const stored = tensors.get(name);
    const unsupported =
      stored?.dtype === 'int8' || stored?.dtype === 'uint8' ? typeNames[stored.dtype] : others.get(name);
    if (unsupported)
      problems.push(`"${name}" has the unsupported type ${unsupported} (supported: F32, F16, BF16)`);
    else if (!stored) problems.push(`"${name}" is missing, config says [${dims}]`);
    else if (stored.dims.join() !== dims.join())
      problems.push(`"${name}" is [${stored.dims}], config says [${dims}]`);
  }
  if (problems.length === 0) return;
  const rest = problems.length - listed;
  const lines = [...problems.slice(0, listed), ...(rest > 0 ? [`and ${rest} more`] : [])];
  const files = isPart ? 'weights, part.json and config.json' : 'weights and config.json';
  const advice = isPart ? 'cut the model again' : 'is this the right config.json?';
  throw new Error(`model: ${files} of ${directory} disagree; ${advice}\n  ${lines.join('\n  ')}`);
}

async function readShards(directory: string): Promise<SafetensorsIndex> {
  const file = join(directory, 'model.safetensors.index.json');
  const parsed = z
    .looseObject({ weight_map: z.record(z.string(), z.string()) })
    .safeParse(await readJsonObject(file));
  if (!parsed.success)
    throw new Error(`model: ${file} is not a shard index:\n${z.prettifyError(parsed.error)}`);
  const tensors = new Map<string, StoredTensor>();
  const others = new Map<string, string>();
  for (const shard of new Set(Object.values(parsed.data.weight_map))) {
    if (basename(shard) !== shard || shard === '..' || shard === '.')
      throw new Error(`model: ${file} names "${shard}", which is not a file of its folder`);
    const index = await readSafetensorsIndex(join(directory, shard));
    for (const [name, stored] of index.tensors) tensors.set(name, stored);
    for (const [name, type] of index.others) others.set(name, type);
  }
  return { tensors, others };
}

/**
 * Names the weights: sha256 over configuration, tensor layout and samples of the files' bytes; all of them would take a
 * minute at every start of a 13 GB model.
 */
export async function contentHash(
  config: object,
  tensors: ReadonlyMap<string, StoredTensor>,
): Promise<string> {
  const hash = createHash('sha256').update(JSON.stringify(config));
  const sample = Buffer.alloc(4096);
  const handles = new Map<string, Awaited<ReturnType<typeof open>>>();
  try {
    for (const [name, { dtype, dims, file, byteOffset, byteLength }] of [...tensors].sort(([a], [b]) =>
      a < b ? -1 : 1,
    )) {
      const handle = handles.get(file) ?? (await open(file));
      handles.set(file, handle);
      const middle = byteOffset + Math.max(0, Math.floor(byteLength / 2) - sample.length / 2);
      const { bytesRead } = await handle.read(sample, 0, Math.min(sample.length, byteLength), middle);
      hash.update(`${name} ${dtype} ${dims}`).update(sample.subarray(0, bytesRead));
    }
  } finally {
    for (const handle of handles.values()) await handle.close();
  }
  return hash.digest('hex');
}
