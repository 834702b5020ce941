// Strategies that change how clients train, end to end.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { readAdapter } from '@fellrec/models';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { type Config, loadConfig } from '../src/config.ts';
import { proximalOf } from '../src/strategy.ts';
import type { RunResult } from '../src/train.ts';
import { fellrec, type Workspace, workspace } from './shared.ts';

vi.setConfig({ testTimeout: 120_000, hookTimeout: 120_000 });

let place: Workspace;
beforeAll(async () => {
  place = await workspace();
});
afterAll(() => place?.remove());

async function trained(name: string, federation: Record<string, unknown>): Promise<RunResult> {
  const config = await place.config({
    name,
    // Steps enough for a pull back: AdamW's first one has the same length whatever the gradient.
    training: { epochs: 6, batchSize: 4, learningRate: 0.003 },
    federation: { rounds: 2, ...federation },
  });
  const { stdout, stderr, code } = await fellrec('train', '-c', config, '--json');
  expect(stderr).not.toContain('fellrec:');
  expect(code).toBe(0);
  return JSON.parse(stdout);
}

const adapter = async (name: string, ...folder: string[]) =>
  (await readAdapter(join(place.run(name), ...folder))).tensors;

test('fedprox without a pull is fedavg, and with a strong one stays where the round began', async () => {
  const fedavg = await trained('fedavg', { strategy: 'fedavg' });
  const free = await trained('free', { strategy: 'fedprox', mu: 0 });
  await trained('held', { strategy: 'fedprox', mu: 1e4 });
  const losses = ({ clients }: RunResult) => clients.map(({ firstLoss, lastLoss }) => [firstLoss, lastLoss]);
  expect(losses(free)).toEqual(losses(fedavg));
  expect(await adapter('free', 'best', 'client-0')).toEqual(await adapter('fedavg', 'best', 'client-0'));
  const moved = (name: string) => adapter(name, 'best', 'client-0').then(largestOfB);
  expect(await moved('held')).toBeLessThan((await moved('fedavg')) / 2);
});

test("fedamp pulls its clients towards their mixtures: lambda/(2 alpha) |w - u|^2 is half of lambda/alpha's pull", async () => {
  const { federation } = await loadConfig(
    await place.config({ federation: { strategy: 'fedamp', fedamp: { alpha: 4, lambda: 6 } } }),
  );
  expect(proximalOf({ federation } as Config)).toEqual({ weight: 1.5 });
  const moved = async (name: string, lambda: number) => {
    await trained(name, { strategy: 'fedamp', fedamp: { alpha: 0.01, sigma: 1, lambda } });
    return largestOfB(await adapter(name, 'best', 'client-0'));
  };
  expect(await moved('amp-held', 1e2)).toBeLessThan((await moved('amp-free', 0)) / 2);
});

/** B starts at 0. */
function largestOfB(tensors: Awaited<ReturnType<typeof adapter>>): number {
  const all = [...tensors].filter(([name]) => name.includes('lora_B')).flatMap(([, { data }]) => [...data]);
  return Math.max(...all.map(Math.abs));
}

test('ditto keeps a model of its own beside that of fedavg, and recommends with it', async () => {
  await trained('fedavg-again', { strategy: 'fedavg' });
  await trained('ditto', { strategy: 'ditto', lambda: 0.5 });
  const shared = await adapter('ditto', 'rounds', '0001', 'client-1', 'global');
  expect(shared).toEqual(await adapter('fedavg-again', 'rounds', '0001', 'client-1'));
  const own = await adapter('ditto', 'rounds', '0001', 'client-1');
  expect([...own.keys()]).toEqual([...shared.keys()]);
  expect(own).not.toEqual(shared);
  const asked = await fellrec(
    ...[
      'recommend',
      place.run('ditto'),
      '--client',
      'client-1',
      '--history',
      'Titanfall 2 - PlayStation 4',
      '-k',
      '2',
      '--json',
    ],
  );
  expect(asked.stderr).not.toContain('fellrec:');
  expect(JSON.parse(asked.stdout).items).toHaveLength(2);
});

test('ditto and fedfomo say where they cannot be', async () => {
  const config = await place.config({
    name: 'cut',
    split: { k: 1, adapters: 'all-layers' },
    federation: { strategy: 'ditto' },
  });
  const cut = await fellrec('train', '-c', config);
  expect(cut.code).toBe(2);
  expect(cut.stderr).toContain('ditto needs two models in each client');
  expect(existsSync(place.run('cut'))).toBe(false);
  const whole = await place.config({ name: 'served', federation: { strategy: 'ditto' } });
  const served = await fellrec('serve', '-c', whole, '--names', 'a');
  expect(served.code).toBe(2);
  expect(served.stderr).toContain('clients keep a model of their own');
  const showing = await place.config({ name: 'showing', federation: { strategy: 'fedfomo' } });
  const refused = await fellrec('serve', '-c', showing, '--names', 'a');
  expect(refused.code).toBe(2);
  expect(refused.stderr).toContain("every client gets all others' adapters as they are");
});
