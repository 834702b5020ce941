import { execFile } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, it } from 'vitest';

it('trains and recommends as the README says', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'fellrec-example-'));
  try {
    const script = join(import.meta.dirname, 'train-and-recommend.ts');
    const { stdout } = await promisify(execFile)(process.execPath, ['--conditions=source', script, folder]);
    const lines = stdout.trim().split('\n');
    expect(lines[0]).toMatch(/^client +users +train +test +first loss +last loss +R@10/);
    expect(lines.filter((line) => /^client-[0-4] /.test(line))).toHaveLength(5);
    // Three titles at the end.
    expect(lines.slice(-4)[0]).toMatch(/^R@10 over clients/);
    expect(lines.slice(-3).every((title) => title.length > 0)).toBe(true);
  } finally {
    await rm(folder, { recursive: true });
  }
});
