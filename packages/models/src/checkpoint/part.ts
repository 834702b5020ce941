// Folders with one side of a model that is cut: its tensors, and part.json, which says which side they are.
import { existsSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { StoredTensor } from '@fellrec/graph';
import { z } from 'zod';
import { isMiddle } from '../lora.ts';
import { readJsonObject } from './json.ts';
import { contentHash } from './weights.ts';

/** Of n layers a server has k .. n - 2; a client has the others, and all that belongs to no layer. */
export interface ModelPart {
  readonly side: 'client' | 'server';
  /** 0 .. n - 1. */
  readonly k: number;
}

const fileName = 'part.json';
const sha256 = z.string().regex(/^[0-9a-f]{64}$/, 'expected 64 hexadecimal digits');

/**
 * part.json:
 * - `format`: 1; raised when it means something else
 * - `side`, `k`: which part
 * - `layerCount`: n, of the whole model
 * - `hash`: the whole model's, which both sides of a cut agree on
 * - `contents`: a hash of this folder's own configuration, side, k and tensors; where they have another one, they are
 *   no longer what was cut from the model of `hash`
 */
const schema = z
  .strictObject({
    format: z.literal(1),
    side: z.enum(['client', 'server']),
    k: z.number().int().nonnegative(),
    layerCount: z.number().int().positive(),
    hash: sha256,
    contents: sha256,
  })
  .refine(({ k, layerCount }) => k < layerCount, { path: ['k'], error: 'expected less than layerCount' });
type PartRecord = z.infer<typeof schema>;

export function holdsPart(directory: string): boolean {
  return existsSync(join(directory, fileName));
}

/** What part.json says; undefined if the folder has none. @throws if it is damaged, or of another model. */
export async function readPart(directory: string, layerCount: number): Promise<PartRecord | undefined> {
  if (!holdsPart(directory)) return undefined;
  const file = join(directory, fileName);
  const parsed = schema.safeParse(await readJsonObject(file));
  if (!parsed.success)
    throw new Error(
      `model: ${file} is damaged, or of another version; cut the model again:\n${z.prettifyError(parsed.error)}`,
    );
  if (parsed.data.layerCount !== layerCount)
    throw new Error(
      `model: ${file} is of a model of ${parsed.data.layerCount} layers, the config.json beside it of one of ${layerCount}; cut the model again`,
    );
  return parsed.data;
}

export async function writePart(directory: string, record: Omit<PartRecord, 'format'>): Promise<void> {
  const json = JSON.stringify({ format: 1, ...record }, undefined, 2);
  await writeFile(join(directory, fileName), `${json}\n`);
}

/** `contents` of part.json. */
export function partContents(
  config: object,
  { side, k }: ModelPart,
  tensors: ReadonlyMap<string, StoredTensor>,
): Promise<string> {
  return contentHash({ ...config, side, k }, tensors);
}

/** Names the whole model that the tensors are of. @throws if those of a part are not what was cut. */
export async function modelHash(
  config: object,
  tensors: ReadonlyMap<string, StoredTensor>,
  record: PartRecord | undefined,
  directory: string,
): Promise<string> {
  if (!record) return contentHash(config, tensors);
  if ((await partContents(config, record, tensors)) !== record.contents)
    throw new Error(`model: ${directory} no longer holds what was cut; cut the model again`);
  return record.hash;
}

/** What a part has of something that there is for every tensor; all of it if it is whole. */
export function ofPart<T>(
  named: ReadonlyMap<string, T>,
  part: ModelPart | undefined,
  layerCount: number,
): Map<string, T> {
  if (!part) return new Map(named);
  const { side, k } = part;
  return new Map([...named].filter(([name]) => isMiddle(name, k, layerCount) === (side === 'server')));
}

/** Such as "the server's side of a cut at k = 2: layers 2 to 3 of 5". */
export function describePart({ side, k }: ModelPart, layerCount: number): string {
  const last = layerCount - 1;
  const count = side === 'server' ? last - k : k + 1;
  const range = (from: number, to: number) =>
    from > to ? [] : [from === to ? `${from}` : `${from} to ${to}`];
  const layers = side === 'server' ? range(k, last - 1) : [...range(0, k - 1), `${last}`];
  const named = count === 0 ? 'no layer' : `${count === 1 ? 'layer' : 'layers'} ${layers.join(' and ')}`;
  const rest = side === 'client' ? ', and all that belongs to no layer' : '';
  return `the ${side}'s side of a cut at k = ${k}: ${named} of ${layerCount}${rest}`;
}

/** What of a checkpoint says whether it is a whole model. */
interface Opened {
  readonly config: { readonly layerCount: number };
  readonly directory: string;
  readonly part?: ModelPart;
}

/** A tensor that a graph reads. @throws if the checkpoint is a part without it. */
export function tensorOf(
  checkpoint: Opened & { readonly tensors: ReadonlyMap<string, StoredTensor> },
  name: string,
): StoredTensor {
  const stored = checkpoint.tensors.get(name);
  if (stored) return stored;
  const { config, directory, part } = checkpoint;
  const which = part ? `; it is ${describePart(part, config.layerCount)}` : '';
  throw new Error(`model: ${directory} does not hold "${name}"${which}`);
}

/** For what reads all tensors. `purpose`, such as "fusing", is for the message. @throws if the checkpoint is a part. */
export function assertWhole({ config, directory, part }: Opened, purpose: string): void {
  if (part)
    throw new Error(
      `model: ${purpose} needs the whole model; ${directory} is ${describePart(part, config.layerCount)}`,
    );
}
