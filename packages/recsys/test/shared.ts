// Data for the tests: small sets made by hand, the embedded sample, and larger files beside the repository.
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll } from 'vitest';
import { catalogue } from '../src/catalogue.ts';
import { readDataset } from '../src/data/folder.ts';
import { type ImportOptions, importDataset } from '../src/data/import.ts';
import type { Dataset, User } from '../src/dataset.ts';

const here = import.meta.dirname;
const beside = process.env.FELLREC_SHARED ?? join(here, '../../../../shared');

/** Larger data and models, from FELLREC_SHARED or beside the repository; undefined where there is none. */
export const sharedData = (name: string): string | undefined => found('data', name);
export const sharedModel = (name: string): string | undefined => found('models', name);
function found(kind: string, name: string): string | undefined {
  const folder = join(beside, kind, name);
  return existsSync(folder) ? folder : undefined;
}

export const gamesSample: string = join(here, '../../cli/quickstart/games-sample');

/** An empty folder, removed when the file's tests are done. */
export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'fellrec-recsys-'));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

export interface Importing {
  /** A new folder. */
  fresh(): string;
  /** Imports into a new folder, without k-core unless said otherwise, and reads the result. */
  imported(options: Omit<ImportOptions, 'output'>): Promise<Dataset>;
}

/** Folders for imports, removed when the file's tests are done. */
export function importing(): Importing {
  const folder = temporaryFolder();
  let made = 0;
  const fresh = () => {
    const path = join(folder, `case-${made++}`);
    mkdirSync(path);
    return path;
  };
  return {
    fresh,
    async imported(options) {
      const output = join(fresh(), 'data');
      await importDataset({ kCore: 0, ...options, output });
      return readDataset(output);
    },
  };
}

/** Writes a file of these lines and returns its path. */
export function write(folder: string, name: string, ...lines: readonly string[]): string {
  const file = join(folder, name);
  writeFileSync(file, `${lines.join('\n')}\n`);
  return file;
}

export function user(id: string, parts: Partial<Omit<User, 'id'>>): User {
  return { id, train: [], validation: [], test: [], attributes: {}, ...parts };
}

/** A data set of `itemCount` items called item 0, item 1, ... */
export function dataset(users: readonly User[], itemCount: number): Dataset {
  const items = Array.from({ length: itemCount }, (_, i) => ({
    id: String(i),
    title: `item ${i}`,
    attributes: {},
  }));
  return { name: 'made', split: 'leave-one-out', catalogue: catalogue(items), users, hash: 'made' };
}

/** Users whose parts are disjoint pieces of one sequence of different items, as a split leaves them. */
export const arbitraryUser: fc.Arbitrary<User> = fc
  .tuple(
    fc.uniqueArray(fc.nat(99), { maxLength: 30 }),
    fc.double({ min: 0, max: 1, noNaN: true }),
    fc.double({ min: 0, max: 1, noNaN: true }),
  )
  .map(([items, a, b]) => {
    const first = Math.round(Math.min(a, b) * items.length);
    const second = Math.round(Math.max(a, b) * items.length);
    return user('u', {
      train: items.slice(0, first),
      validation: items.slice(first, second),
      test: items.slice(second),
    });
  });
