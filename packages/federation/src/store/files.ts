// Files and folders that are there whole or not at all: written aside, flushed to the disk, renamed.
import { cp, mkdir, open, readdir, rename, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';

/** What ends like this was being written when its process died. */
export const asideSuffix = '.tmp';

export function toJson(value: unknown): string {
  return `${JSON.stringify(value, undefined, 2)}\n`;
}

/** Writes a file whole. */
export async function writeWhole(file: string, text: string): Promise<void> {
  const aside = file + asideSuffix;
  try {
    const handle = await open(aside, 'w');
    try {
      await handle.writeFile(text);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(aside, file);
  } catch (error) {
    await rm(aside, { force: true });
    throw error;
  }
  await flush(dirname(file));
}

/** Puts a folder in its place whole, filled by `fill`. What stood there goes just before. */
export async function placeWhole(directory: string, fill: (aside: string) => Promise<void>): Promise<void> {
  const aside = directory + asideSuffix;
  await rm(aside, { recursive: true, force: true });
  try {
    await mkdir(aside, { recursive: true });
    await fill(aside);
    await flushTree(aside);
    await rm(directory, { recursive: true, force: true });
    await rename(aside, directory);
  } catch (error) {
    await rm(aside, { recursive: true, force: true });
    throw error;
  }
  await flush(dirname(directory));
}

export async function copyInto(source: string, target: string): Promise<void> {
  await cp(source, target, { recursive: true });
}

/** The names in a folder, sorted; none if it is not there. */
export async function namesIn(directory: string): Promise<string[]> {
  try {
    return (await readdir(directory)).sort();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  }
}

async function flushTree(directory: string): Promise<void> {
  for (const entry of await readdir(directory, { withFileTypes: true })) {
    const path = join(directory, entry.name);
    await (entry.isDirectory() ? flushTree(path) : flush(path));
  }
  await flush(directory);
}

async function flush(path: string): Promise<void> {
  // Windows opens no folders; there a rename is as durable as it gets.
  if (process.platform === 'win32') return;
  const handle = await open(path, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}
