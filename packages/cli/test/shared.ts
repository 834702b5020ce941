// What the tests share: the embedded sample as a data folder, a configuration that trains in a second, the command.
import { spawn } from 'node:child_process';
import { cp, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { importDataset } from '@fellrec/recsys';
import { onTestFinished, vi } from 'vitest';
import { main } from '../src/main.ts';

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));

export const root = here('../../..');
export const embeddedModel = here('../quickstart/stories260k');
const sample = here('../quickstart/games-sample');
export const interactions = join(sample, 'sequences.tsv');
export const items = join(sample, 'items.tsv');

/** Settings by section; what a test gives replaces single keys. */
type Settings = Record<string, Record<string, unknown> | string | number>;

export interface Workspace {
  readonly folder: string;
  /** Writes a configuration and returns its file. */
  config(settings?: Settings): Promise<string>;
  /** Folder of the run of that name. */
  run(name: string): string;
  remove(): Promise<void>;
}

/** A folder with the embedded sample imported as `data`; runs go to `runs`. */
export async function workspace(): Promise<Workspace> {
  const folder = await mkdtemp(join(tmpdir(), 'fellrec-test-'));
  await importDataset({ interactions, items, columns: { sequence: 'items' }, output: join(folder, 'data') });
  const base = {
    name: 'tiny',
    runs: join(folder, 'runs'),
    cache: join(folder, 'cache'),
    // One thread: tests run beside each other.
    threads: 1,
    data: { path: 'data', trainSamples: 12, validationSamples: 6, testUsers: 4 },
    model: { path: embeddedModel, maxTokens: 288 },
    partition: { method: 'random', clients: 2 },
    lora: { rank: 2, alpha: 4 },
    training: { batchSize: 4, learningRate: 0.003 },
    generation: { beams: 1, maxNewTokens: 8, batch: 1 },
    federation: { rounds: 2 },
  };
  let files = 0;
  return {
    folder,
    async config(settings = {}) {
      const merged: Record<string, unknown> = { ...base };
      for (const [key, value] of Object.entries(settings))
        merged[key] =
          typeof value === 'object' && key !== 'partition'
            ? { ...(merged[key] as object | undefined), ...value }
            : value;
      const file = join(folder, `config-${files++}.json`);
      await writeFile(file, JSON.stringify(merged));
      return file;
    },
    run: (name) => join(folder, 'runs', name),
    remove: () => rm(folder, { recursive: true, force: true }),
  };
}

/** A folder that goes when the test ends. */
export async function scratch(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'fellrec-test-'));
  onTestFinished(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

/** A copy of the embedded model that a test may damage. */
export async function modelCopy(): Promise<string> {
  const folder = await scratch();
  await cp(embeddedModel, folder, { recursive: true });
  return folder;
}

export interface Outcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a command line in this process. */
export async function fellrec(...argv: string[]): Promise<Outcome> {
  let stdout = '';
  let stderr = '';
  const out = vi.spyOn(process.stdout, 'write').mockImplementation((text) => {
    stdout += String(text);
    return true;
  });
  const err = vi.spyOn(process.stderr, 'write').mockImplementation((text) => {
    stderr += String(text);
    return true;
  });
  const { exitCode } = process;
  process.exitCode = undefined;
  try {
    return { code: await main(argv), stdout, stderr };
  } finally {
    process.exitCode = exitCode;
    out.mockRestore();
    err.mockRestore();
  }
}

/** Runs a command line in a process of its own, and kills it as soon as `when` holds of its standard error. */
export function fellrecKilled(
  argv: readonly string[],
  when: (stderr: string) => boolean,
  by: NodeJS.Signals = 'SIGKILL',
): Promise<{ code: number | null; signal: NodeJS.Signals | null; stderr: string }> {
  const child = spawn(process.execPath, ['--conditions=source', here('fellrec.ts'), ...argv], {
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  let stderr = '';
  const check = () => {
    if (!child.killed && when(stderr)) child.kill(by);
  };
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
    check();
  });
  const poll = setInterval(check, 2);
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code, signal) => {
      clearInterval(poll);
      resolve({ code, signal, stderr });
    });
  });
}

/** Contents by path of all files below a folder: bytes as text, so that they compare and print. */
export async function filesOf(folder: string): Promise<Record<string, string>> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  const files = entries
    .filter((entry) => entry.isFile())
    .map(({ parentPath, name }) => join(parentPath, name));
  return Object.fromEntries(
    await Promise.all(
      files
        .sort()
        .map(async (file) => [relative(folder, file), await readFile(file, 'latin1')] as [string, string]),
    ),
  );
}

export const readJson = async (...path: string[]) => JSON.parse(await readFile(join(...path), 'utf8'));
