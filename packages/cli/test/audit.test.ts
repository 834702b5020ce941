import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { AuditResult } from '@fellrec/audit';
import { readSafetensors } from '@fellrec/models';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { embeddedModel, fellrec, type Workspace, workspace } from './shared.ts';

let place: Workspace;
beforeAll(async () => {
  place = await workspace();
});
afterAll(() => place.remove());

const audit = (...flags: string[]) =>
  fellrec(
    'audit',
    ...[
      '--model',
      embeddedModel,
      '--data',
      join(place.folder, 'data'),
      '--cache',
      join(place.folder, 'cache'),
    ],
    ...[
      '--threads',
      '1',
      '--users',
      '4',
      '--auxiliary-users',
      '16',
      '--titles',
      '40',
      '--quality-users',
      '2',
    ],
    ...flags,
  );

async function titleVectors(cache: string): Promise<Float32Array> {
  const [file, ...others] = readdirSync(cache).filter((name) => name.startsWith('titles-'));
  expect(others).toEqual([]);
  return (await readSafetensors(join(cache, file!))).get('vectors')!.data as Float32Array;
}

describe('fellrec audit', () => {
  test('a table, a report, a recommendation', async () => {
    const report = join(place.folder, 'audit.html');
    const { stdout, code } = await audit('--layers', '0,2,5', '-o', report);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^2 {2}search +1\.000 \[1\.000, 1\.000\]/m);
    expect(stdout).toContain('No k meets the threshold');
    expect(readFileSync(report, 'utf8')).toContain('Audit of');
  });

  test('as JSON, with what defences cost', async () => {
    const cache = join(place.folder, 'defended');
    const { stdout, code } = await audit(
      ...['--layers', '1', '--attacks', 'inverter,catalogue', '--cache', cache],
      ...['--defences', 'int8,none', '--defence-layers', '1', '--json'],
    );
    expect(code).toBe(0);
    const { attacks, defences, costs, recommendation } = JSON.parse(stdout) as AuditResult;
    expect(attacks.map(({ attack, depth }) => [attack, depth])).toEqual([
      ['inverter', 1],
      ['catalogue', 1],
    ]);
    expect(defences.map(({ defence, depth }) => [defence, depth])).toEqual([
      ['int8', 1],
      ['none', 1],
    ]);
    // What other runs read of titles is of states as they are.
    const run = { name: 'plain', cache: join(place.folder, 'plain') };
    expect((await fellrec('train', '-c', await place.config(run))).code).toBe(0);
    const [found, expected] = await Promise.all([cache, run.cache].map(titleVectors));
    expect(found!.length).toBe(expected!.length);
    for (const [i, value] of expected!.entries()) expect(found![i]).toBeCloseTo(value, 4);
    expect(defences[0]!.quality).toMatchObject({ users: 2 });
    expect(costs.map(({ k }) => k)).toEqual([0, 1, 2, 3, 4]);
    expect(recommendation).toMatchObject({ metric: 'items', threshold: 0.1 });
  });

  test.each([
    [['--attacks', 'magic'], 'no attack "magic"; there are head, embedding-cosine'],
    [['--metric', 'luck'], 'no metric "luck"; there are tokenAccuracy'],
    [['--layers', '3,9'], '--layers 9: the model has 5 layers, so depths 0 (embeddings) to 5'],
    [['--defences', 'bits:1'], '"bits:1" is no defence; there are none, float16, int8, bits:2 to bits:8'],
    [['--defences', 'withheld'], 'needs an adapter; give --adapter'],
    [['--threshold', '2'], '2 is no share'],
    [['--defences', 'int8', '--defence-layers', '5'], 'clients of this model keep 0 to 4 layers'],
  ])('%s is used wrongly', async (flags, message) => {
    const report = join(place.folder, 'never.html');
    const { stderr, code } = await audit('--layers', '0', '-o', report, ...flags);
    expect(stderr).toContain(message);
    expect(code).toBe(2);
    expect(existsSync(report)).toBe(false);
  });

  test('more users than there are', async () => {
    const { stderr, code } = await audit('--users', '5000');
    expect(code).toBe(1);
    expect(stderr).toMatch(/has \d+ users with a history and a test item that fit; --users 5000 needs more/);
  });
});
