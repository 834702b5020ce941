// Where the checkpoints lie that the tests compare with: small ones in the repository, larger ones beside it.
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll } from 'vitest';

const here = import.meta.dirname;
const beside = process.env.FELLREC_SHARED ?? join(here, '../../../../shared');

/** A folder of larger checkpoints, from FELLREC_SHARED or beside the repository; undefined where there is none. */
export function sharedModel(name: string): string | undefined {
  const folder = join(beside, 'models', name);
  return existsSync(folder) ? folder : undefined;
}

/** A folder of `fixtures`. */
export const fixture = (name: string): string => join(here, 'fixtures', name);
export const llamaFixtures = ['llama-gqa-tied', 'llama-mha-untied', 'llama-rope3'] as const;
export const stories260k: string = join(here, '../../cli/quickstart/stories260k');

export const readJson = <T>(file: string): T => JSON.parse(readFileSync(file, 'utf8')) as T;

/** An empty folder, removed when the file's tests are done. */
export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'fellrec-models-'));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}
