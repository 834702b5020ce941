// The item table: every item of the catalogue as a unit vector, computed with given parameters and remembered by them.
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { type Float32Tensor, float32, type NamedTensors } from '@fellrec/graph';
import {
  addsNothing,
  type EncoderModel,
  type EncoderParameters,
  type ItemSequence,
  readSafetensors,
  unitRows,
  writeSafetensors,
} from '@fellrec/models';

/** Tokens of a batch, padding included. */
const batchTokens = 4096;
/** Tables that stay in memory. */
const memoryBytes = 512 * 2 ** 20;

export interface ItemTableOptions {
  readonly model: EncoderModel;
  readonly sequences: readonly ItemSequence[];
  readonly parameters: (tensors: NamedTensors) => EncoderParameters;
  /** None: nothing is remembered, for the parameters are not all that vectors are computed with. */
  readonly cacheDir: string | undefined;
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
}

export interface ItemTable {
  /** Unit vectors, [items, d]. With `store` they are kept on the disk as well: for parameters that will be asked again. */
  vectors(tensors: NamedTensors, options?: { readonly store: boolean }): Promise<Float32Tensor>;
}

export function itemTable({
  model,
  sequences,
  parameters,
  cacheDir,
  onProgress,
}: ItemTableOptions): ItemTable {
  const base = createHash('sha256').update(model.checkpoint.hash).update(model.pooling);
  for (const { ids, tokenTypes } of sequences) base.update(`${ids};${tokenTypes};`);
  const known = new Map<string, Float32Tensor>();

  /** Names the weights that a table is computed with, and what is encoded. */
  function key(tensors: NamedTensors): string {
    const { lora } = parameters(tensors);
    if (isBase(tensors)) return base.copy().digest('hex').slice(0, 32);
    const hash = base.copy().update(JSON.stringify([lora?.rank, lora?.alpha, lora?.targetModules]));
    for (const [name, { data }] of tensors)
      hash.update(name).update(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    return hash.digest('hex').slice(0, 32);
  }

  /** All runs begin with the base, so its table is computed once for all of them. */
  const isBase = (tensors: NamedTensors) => parameters(tensors).lora !== undefined && addsNothing(tensors);

  return {
    async vectors(tensors, { store: asked } = { store: false }) {
      const compute = async () =>
        unitRows(await encodeSorted(model, sequences, parameters(tensors), onProgress));
      if (cacheDir === undefined) return compute();
      const name = key(tensors);
      const store = asked || isBase(tensors);
      const file = join(cacheDir, `items-${name}.safetensors`);
      const stored = known.get(name) ?? (await readVectors(file));
      known.delete(name);
      const fits = stored?.dims.join() === [sequences.length, model.checkpoint.config.hiddenSize].join();
      const found = fits ? stored! : await compute();
      if (store && !(fits && existsSync(file))) {
        await mkdir(cacheDir, { recursive: true });
        await writeSafetensors(file, new Map([['vectors', found]]));
      }
      known.set(name, found); // the last one in is the last one out
      for (const oldest of known.keys()) {
        if (known.size === 1 || known.size * found.data.byteLength <= memoryBytes) break;
        known.delete(oldest);
      }
      return found;
    },
  };
}

/** What lies in a cache file; undefined if it is not there, or not whole. */
async function readVectors(file: string): Promise<Float32Tensor | undefined> {
  if (!existsSync(file)) return undefined;
  const found = await readSafetensors(file).catch(() => undefined);
  return found?.get('vectors') as Float32Tensor | undefined;
}

/** Vectors of sequences in their order, [sequences, d]; those of like length are computed together. */
export async function encodeSorted(
  model: EncoderModel,
  sequences: readonly ItemSequence[],
  parameters: EncoderParameters | undefined,
  onProgress?: (done: number, total: number) => void,
): Promise<Float32Tensor> {
  const d = model.checkpoint.config.hiddenSize;
  const vectors = new Float32Array(sequences.length * d);
  const byLength = sequences
    .map((sequence, index) => ({ sequence, index }))
    .sort((a, b) => b.sequence.ids.length - a.sequence.ids.length);
  for (let at = 0; at < byLength.length; ) {
    const rows = Math.max(1, Math.floor(batchTokens / byLength[at]!.sequence.ids.length));
    const part = byLength.slice(at, at + rows);
    const { data } = await model.encode(
      part.map(({ sequence }) => sequence),
      parameters,
    );
    for (const [row, { index }] of part.entries())
      vectors.set(data.subarray(row * d, (row + 1) * d), index * d);
    at += part.length;
    onProgress?.(at, byLength.length);
  }
  return float32(vectors, [sequences.length, d]);
}
