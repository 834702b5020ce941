// A run that is killed at any point and goes on leaves the same files as one that was not.
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { RoundRecord } from '../src/index.ts';
import { filesOf } from './files.ts';

const script = fileURLToPath(new URL('./toy-run.ts', import.meta.url));

function run(...args: string[]): Promise<{ signal: NodeJS.Signals | null; output: string; errors: string }> {
  return new Promise((resolve) => {
    const child = execFile(process.execPath, [script, ...args], (_, output, errors) =>
      resolve({ signal: child.signalCode, output, errors }),
    );
  });
}

describe('a run that is killed', () => {
  let scratch: string;
  let whole: Record<string, string>;
  let total: { file: number; step: number };
  beforeAll(async () => {
    scratch = await mkdtemp(join(tmpdir(), 'federation-'));
    const { output, errors } = await run(join(scratch, 'whole'), 'create');
    expect(errors).toBe('');
    total = JSON.parse(output);
    whole = await filesOf(join(scratch, 'whole'));
  });
  afterAll(() => rm(scratch, { recursive: true, force: true }));

  it('would have left the last two rounds, each best, and every round.json', () => {
    const last = JSON.parse(whole['rounds/0005/round.json']!) as RoundRecord;
    // One client's best is older than the rounds that are kept.
    expect(Math.min(...Object.values(last.best).map(({ round }) => round))).toBeLessThan(4);
    const folder = (path: string) => path.split('/').slice(0, -1).join('/');
    expect([...new Set(Object.keys(whole).map(folder))]).toEqual([
      'best/north',
      'best/south',
      'best/west',
      '',
      ...['0000', '0001', '0002', '0003'].map((round) => `rounds/${round}`),
      ...['0004', '0005'].flatMap((round) =>
        ['north', '', 'south', 'west'].map((client) => join('rounds', round, client).replace(/\/$/, '')),
      ),
    ]);
    expect(Object.keys(whole)).not.toContain('lock');
  });

  async function killAndResume(death: string): Promise<void> {
    const directory = join(scratch, death.replace(':', '-'));
    const killed = await run(directory, 'create', death);
    expect(killed.signal, `${death}: ${killed.errors}`).toBe('SIGKILL');
    // Before config.json is there it is no run yet: it starts again, without force.
    const isRun = existsSync(join(directory, 'config.json'));
    const resumed = await run(directory, isRun ? 'resume' : 'create');
    expect(resumed.errors, death).toBe('');
    expect(await filesOf(directory), death).toEqual(whole);
    await rm(directory, { recursive: true });
  }

  it('while a client trains', async () => {
    for (const step of [1, 8, total.step]) await killAndResume(`step:${step}`);
  });

  it('before any file operation', async () => {
    // All of them take minutes; a stride that is no divisor of a round's operations meets each kind.
    const all = Array.from({ length: total.file }, (_, i) => i + 1);
    const points = process.env['EVERY_POINT'] ? all : all.filter((n) => n % 13 === 0 || n === total.file);
    const queue = points.values();
    const work = async () => {
      for (const n of queue) await killAndResume(`file:${n}`);
    };
    await Promise.all([work(), work()]);
  }, 600_000);

  it('twice: once more while it goes on', async () => {
    const directory = join(scratch, 'twice');
    await run(directory, 'create', 'file:90');
    for (const n of [3, 12, 25]) expect((await run(directory, 'resume', `file:${n}`)).signal).toBe('SIGKILL');
    await run(directory, 'resume');
    expect(await filesOf(directory)).toEqual(whole);
  });
});
