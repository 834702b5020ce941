// Files that this process holds open below a folder, deleted ones too (Linux tells; elsewhere none are seen).
import { existsSync, readdirSync, readlinkSync } from 'node:fs';
import { join } from 'node:path';

export const seesOpenFiles: boolean = existsSync('/proc/self/fd');

export function openFilesBelow(folder: string): string[] {
  if (!seesOpenFiles) return [];
  return readdirSync('/proc/self/fd').flatMap((descriptor) => {
    try {
      const file = readlinkSync(join('/proc/self/fd', descriptor));
      return file.startsWith(folder) ? [file] : [];
    } catch {
      // The descriptor of the listing itself is closed by now.
      return [];
    }
  });
}
