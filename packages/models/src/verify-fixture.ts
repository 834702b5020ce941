// A golden fixture of either architecture, recomputed.
import { holdsEncoder } from './recformer/checkpoint.ts';
import { verifyRecformer } from './recformer/verify.ts';
import type { VerifiedGroup } from './verified.ts';
import { verifyLlama } from './verify.ts';

/** How far everything that a fixture's folder holds is from what we compute. @throws if a file of it is missing. */
export async function verifyFixture(directory: string, cacheDir: string): Promise<VerifiedGroup[]> {
  return (await holdsEncoder(directory))
    ? verifyRecformer(directory, cacheDir)
    : verifyLlama(directory, cacheDir);
}
