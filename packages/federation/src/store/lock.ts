// One process at a time works in a run's folder.
import { randomUUID } from 'node:crypto';
import { link, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

/** Takes the folder and returns what gives it back. A dead process's lock is taken over. @throws if its owner lives. */
export async function lock(directory: string): Promise<() => Promise<void>> {
  const file = join(directory, 'lock');
  const own = `${process.pid} ${await startOf(process.pid)}\n`;
  const draft = asideOf(file);
  for (;;) {
    await writeFile(draft, own);
    try {
      // A link appears with its content, or fails because someone else's is there.
      await link(draft, file);
      await removeDrafts(directory);
      return () => rm(file, { force: true });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    } finally {
      await rm(draft, { force: true });
    }
    const found = await readFile(file, 'utf8').catch(() => undefined);
    if (found === undefined) continue;
    const [pid, started] = found.trim().split(' ') as [string, string | undefined];
    if (isAlive(Number(pid)) && (await startOf(Number(pid))) === (started ?? ''))
      throw new Error(`run: process ${pid} is working in ${directory}; wait for it or end it`);
    await removeStale(file, found);
  }
}

/** What processes left that died while they were taking the lock. */
async function removeDrafts(directory: string): Promise<void> {
  for (const name of await readdir(directory)) {
    const pid = /^lock\.(\d+)\./.exec(name)?.[1];
    if (pid && !isAlive(Number(pid))) await rm(join(directory, name), { force: true });
  }
}

/** Another process may have taken the dead one's lock over meanwhile: what is removed must still be the dead one's. */
async function removeStale(file: string, found: string): Promise<void> {
  const aside = asideOf(file);
  try {
    await rename(file, aside);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return;
    throw error;
  }
  if ((await readFile(aside, 'utf8')) !== found) await link(aside, file);
  await rm(aside, { force: true });
}

/** Its name says which process it is of. */
function asideOf(file: string): string {
  return `${file}.${process.pid}.${randomUUID()}`;
}

function isAlive(pid: number): boolean {
  if (!(pid > 0)) return false;
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

/**
 * When a process started, in ticks since boot, so that a new process with a dead one's id (always so in a container
 * that starts again) is not taken for it; empty where the system does not tell.
 */
async function startOf(pid: number): Promise<string> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '');
  // Fields are counted from behind the program's name, which may hold spaces and brackets.
  return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? '';
}
