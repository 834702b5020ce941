// A folder of golden values, recomputed, of whatever it holds them.
import { z } from 'zod';
import { holdsEncoder } from './recformer/checkpoint.ts';
import { verifyRecformer } from './recformer/verify.ts';
import { verifySentences } from './recformer/verify-sentences.ts';
import { readCases, type VerifiedGroup } from './verified.ts';
import { verifyLlama } from './verify.ts';

/** How far everything that a fixture's folder holds is from what we compute. @throws if a file of it is missing. */
export async function verifyFixture(directory: string, cacheDir: string): Promise<VerifiedGroup[]> {
  const cases = await readCases(directory, z.unknown());
  if (!(await holdsEncoder(directory))) return verifyLlama(directory, cacheDir);
  return Array.isArray(cases) ? verifySentences(directory, cacheDir) : verifyRecformer(directory, cacheDir);
}
