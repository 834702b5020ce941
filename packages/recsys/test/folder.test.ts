import { copyFileSync, cpSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { readDataset } from '../src/data/folder.ts';
import { importDataset } from '../src/data/import.ts';
import { gamesSample, temporaryFolder, write } from './shared.ts';

const folder = temporaryFolder();
const good = join(folder, 'good');
const other = join(folder, 'other');

beforeAll(async () => {
  const [interactions, items] = ['sequences.tsv', 'items.tsv'].map((name) => join(gamesSample, name)) as [
    string,
    string,
  ];
  await importDataset({ interactions, items, columns: { sequence: 'items' }, output: good, name: 'sample' });
  await importDataset({
    interactions: write(folder, 's.json', '{"u": ["a", "b", "c"]}'),
    items: write(folder, 't.json', '{"a": "A", "b": "B", "c": "C"}'),
    output: other,
    kCore: 0,
  });
});

describe('a data folder', () => {
  it('describes itself', () => {
    const description = JSON.parse(readFileSync(join(good, 'dataset.json'), 'utf8'));
    expect(description).toEqual({
      format: 2,
      name: 'sample',
      split: 'leave-one-out',
      kCore: 5,
      users: 296,
      items: 269,
      interactions: 2465,
      sources: { interactions: 'sequences.tsv', items: 'items.tsv' },
      hash: expect.stringMatching(/^[0-9a-f]{64}$/),
    });
  });

  it('has the same hash when it is made again, and another one for other data', async () => {
    const { hash } = await readDataset(good);
    expect(JSON.parse(readFileSync(join(good, 'dataset.json'), 'utf8')).hash).toBe(hash);
    expect((await readDataset(other)).hash).not.toBe(hash);
  });

  it('has another hash with other attributes of items or users', async () => {
    const hashOf = async (brand: string, region: string) => {
      const output = join(folder, `attributes-${brand}-${region}`);
      const [interactions, items, users] = [
        write(folder, 'i.csv', 'user,item', 'u,a', 'u,b'),
        write(folder, 'j.csv', 'item,title,brand,colour', `a,A,${brand},red`, 'b,B,,'),
        write(folder, 'k.csv', 'user,region', `u,${region}`),
      ];
      await importDataset({ interactions, items, users, output, kCore: 0 });
      return (await readDataset(output)).hash;
    };
    const hashes = [await hashOf('x', 'north'), await hashOf('y', 'north'), await hashOf('x', 'south')];
    expect(new Set(hashes).size).toBe(3);
  });

  it('is read as its parts never overlap', async () => {
    for (const { train, validation, test } of (await readDataset(good)).users) {
      const items = [...train, ...validation, ...test];
      expect(new Set(items).size).toBe(items.length);
      expect([validation.length, test.length]).toEqual([1, 1]);
    }
  });
});

describe('a damaged folder is refused', () => {
  const cases: Record<string, [(copy: string) => void, RegExp]> = {
    'without description': [
      (copy) => rmSync(join(copy, 'dataset.json')),
      /is no data folder .*make one with "fellrec data import"/,
    ],
    'with a description that is no JSON': [
      (copy) => writeFileSync(join(copy, 'dataset.json'), '{'),
      /dataset\.json is damaged/,
    ],
    'of another format': [
      (copy) => {
        const file = join(copy, 'dataset.json');
        writeFileSync(file, readFileSync(file, 'utf8').replace('"format": 2', '"format": 99'));
      },
      /written by another version; import the data again/,
    ],
    'with an unknown key': [
      (copy) => {
        const file = join(copy, 'dataset.json');
        writeFileSync(file, readFileSync(file, 'utf8').replace('"format": 2', '"format": 2, "extra": 2'));
      },
      /dataset\.json is damaged: .*extra/s,
    ],
    'without a table': [
      (copy) => rmSync(join(copy, 'interactions.parquet')),
      /interactions\.parquet is missing; import the data again/,
    ],
    'with a table that is no Parquet': [
      (copy) => writeFileSync(join(copy, 'users.parquet'), 'nothing'),
      /cannot be read: .*import the data again/s,
    ],
    'with a table of other columns': [
      (copy) => copyFileSync(join(copy, 'users.parquet'), join(copy, 'items.parquet')),
      /cannot be read: .*import the data again/s,
    ],
    'with interactions of other users': [
      (copy) => copyFileSync(join(good, 'interactions.parquet'), join(copy, 'interactions.parquet')),
      /cannot be read: .*import the data again/s,
    ],
    'with fewer interactions': [
      (copy) => copyFileSync(join(other, 'interactions.parquet'), join(copy, 'interactions.parquet')),
      /do not belong to its dataset\.json/,
    ],
  };
  it.each(Object.keys(cases))('%s', async (name) => {
    const copy = join(folder, name.replaceAll(' ', '-'));
    const [damage, message] = cases[name]!;
    cpSync(name === 'with interactions of other users' ? other : good, copy, { recursive: true });
    damage(copy);
    await expect(readDataset(copy)).rejects.toThrow(message);
  });
});
