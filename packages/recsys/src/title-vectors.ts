// Vectors of a catalogue's titles by a model that does not learn: computed once, then read from the cache.
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { float32 } from '@fellrec/graph';
import { readSafetensors, writeSafetensors } from '@fellrec/models';
import type { Catalogue } from './catalogue.ts';

interface Computed {
  readonly catalogue: Catalogue;
  /** Hashes of what computes them: a model, and how it reads titles. */
  readonly computedBy: readonly string[];
  readonly cacheDir: string;
}

/** One of each item, in their order. */
export async function cachedVectors(
  { catalogue, computedBy, cacheDir }: Computed,
  compute: (titles: readonly string[]) => Promise<Float32Array[]>,
): Promise<Float32Array[]> {
  const key = createHash('sha256')
    .update([...computedBy, catalogue.hash].join(' '))
    .digest('hex')
    .slice(0, 32);
  const file = join(cacheDir, `titles-${key}.safetensors`);
  if (existsSync(file)) {
    const { data, dims } = (await readSafetensors(file)).get('vectors')!;
    const d = dims[1]!;
    return Array.from({ length: dims[0]! }, (_, i) => (data as Float32Array).subarray(i * d, (i + 1) * d));
  }
  const vectors = await compute(catalogue.items.map(({ title }) => title));
  const d = vectors[0]!.length;
  const flat = new Float32Array(vectors.length * d);
  vectors.forEach((vector, i) => {
    flat.set(vector, i * d);
  });
  await mkdir(cacheDir, { recursive: true });
  await writeSafetensors(file, new Map([['vectors', float32(flat, [vectors.length, d])]]));
  return vectors;
}
