import { execFile } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { expect, onTestFinished, test } from 'vitest';

test('the example trains two clients and prints five titles', { timeout: 300_000 }, async () => {
  const example = fileURLToPath(new URL('train-and-recommend.ts', import.meta.url));
  // What it leaves behind goes with this folder.
  const folder = await mkdtemp(join(tmpdir(), 'fellrec-test-'));
  onTestFinished(() => rm(folder, { recursive: true, force: true }));
  const { stdout } = await promisify(execFile)(process.execPath, ['--conditions=source', example], {
    env: { ...process.env, TMPDIR: folder },
  });
  expect(stdout).toMatch(/\nclient-0 .*\nclient-1 .*\nall users +296 +32 +8 /);
  const titles = stdout.split('After Titanfall 2 - PlayStation 4:\n')[1]!.trimEnd().split('\n');
  expect(new Set(titles).size).toBe(5);
  for (const title of titles) expect(title).toMatch(/^- (?!Titanfall 2 - PlayStation 4$)./);
});
