// A folder of golden values, recomputed, of whatever it holds them.
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { holdsEncoder } from './recformer/checkpoint.ts';
import { verifyRecformer } from './recformer/verify.ts';
import { verifySentences } from './recformer/verify-sentences.ts';
import type { VerifiedGroup } from './verified.ts';
import { verifyLlama } from './verify.ts';

/** How far everything that a fixture's folder holds is from what we compute. @throws if a file of it is missing. */
export async function verifyFixture(directory: string, cacheDir: string): Promise<VerifiedGroup[]> {
  const file = join(directory, 'cases.json');
  const text = await readFile(file, 'utf8').catch((cause) => {
    throw new Error(`verify: cannot read ${file}; give a folder of golden values`, { cause });
  });
  if (!(await holdsEncoder(directory))) return verifyLlama(directory, cacheDir);
  return text.trimStart().startsWith('[')
    ? verifySentences(directory, cacheDir)
    : verifyRecformer(directory, cacheDir);
}
