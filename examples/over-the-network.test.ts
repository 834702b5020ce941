import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, it } from 'vitest';

it('ends over the network with the table of one process', async () => {
  const script = join(import.meta.dirname, 'over-the-network.ts');
  const { stdout } = await promisify(execFile)(process.execPath, ['--conditions=source', script]);
  const lines = stdout.trim().split('\n');
  expect(lines.filter((line) => /^client-[0-2] /.test(line))).toHaveLength(6);
  expect(lines.at(-1)).toBe('The metrics are equal.');
}, 300_000);
