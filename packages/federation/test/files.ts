// What a run left on the disk.
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';

/** Every file's text by path, without what clocks say. */
export async function filesOf(directory: string): Promise<Record<string, string>> {
  const entries = await readdir(directory, { recursive: true, withFileTypes: true });
  const files = entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
  const texts = await Promise.all(
    files
      .sort()
      .map(async (file) => [file.slice(directory.length + 1), withoutSeconds(await readFile(file, 'utf8'))]),
  );
  return Object.fromEntries(texts);
}

function withoutSeconds(text: string): string {
  return text.replaceAll(/"seconds":\s*(\{[^{}]*(\{[^{}]*\}[^{}]*)*\}|[^,}]*)/g, '"seconds":0');
}
