// A round's parameters in memory and on disk.
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { type Products, plainProducts } from '../src/index.ts';
import { onDisk } from '../src/parameters/disk.ts';
import { inMemory } from '../src/parameters/memory.ts';
import { openFilesBelow, seesOpenFiles } from './open-files.ts';
import { describeRoundParameters } from './round-parameters-contract.ts';
import { tensors } from './toy.ts';

const folder = mkdtempSync(join(tmpdir(), 'parameters-'));
afterAll(() => rmSync(folder, { recursive: true }));

describeRoundParameters('in memory', inMemory);
describeRoundParameters('on disk', (options) => onDisk(folder, options));

const [first, second] = [tensors({ x: [1, 2] }), tensors({ x: [3, 4] })];
const options = {
  like: first,
  starts: [first, second].map((start) => async () => start),
  products: plainProducts,
};

describe('in memory', () => {
  it('shares one result between equal rows, and gives who keeps its own the same values', async () => {
    const parameters = await inMemory(options);
    await parameters.keep(0, second);
    await parameters.keep(1, first);
    const half = [0.5, 0.5];
    await parameters.mix([half, [...half]]);
    const [one, other] = await Promise.all(parameters.starts().map((read) => read()));
    expect(one).toBe(other);
    await parameters.keep(0, first);
    await parameters.keep(1, second);
    await parameters.mix([
      [1, 0],
      [0, 1],
    ]);
    const [own] = await Promise.all(parameters.starts().map((read) => read()));
    expect(own!.get('x')).toBe(first.get('x'));
  });

  it('takes results that lie in one buffer apart', async () => {
    const products: Products = {
      ...plainProducts,
      async *mix(matrix, blocks) {
        for await (const mixed of plainProducts.mix(matrix, blocks)) {
          const buffer = Float32Array.from(mixed.flatMap((row) => [...row]));
          yield mixed.map(({ length }, c) => buffer.subarray(c * length, (c + 1) * length));
        }
      },
    };
    const parameters = await inMemory({ ...options, products });
    await parameters.keep(0, first);
    await parameters.keep(1, second);
    await parameters.mix([
      [0.5, 0.5],
      [0.25, 0.75],
    ]);
    const mixed = await Promise.all(parameters.starts().map((read) => read()));
    expect(mixed).toEqual([tensors({ x: [2, 3] }), tensors({ x: [2.5, 3.5] })]);
    for (const own of mixed) expect(own.get('x')!.data.buffer.byteLength).toBe(8);
  });

  it('keeps earlier starts for whoever still reads them', async () => {
    const parameters = await inMemory(options);
    const before = parameters.starts();
    await parameters.keep(0, second);
    await parameters.keep(1, second);
    await parameters.mix([
      [0, 1],
      [0, 1],
    ]);
    expect(await before[0]!()).toEqual(first);
  });
});

describe('on disk', () => {
  it('leaves nothing in its folder, not even while it is open', async () => {
    const parameters = await onDisk(folder, options);
    expect(readdirSync(folder)).toEqual([]);
    if (seesOpenFiles) expect(openFilesBelow(folder)).toHaveLength(2);
    await parameters.close();
    expect(openFilesBelow(folder)).toEqual([]);
  });

  it('holds more clients than one write takes rows', async () => {
    const many = Array.from({ length: 2500 }, (_, c) => tensors({ x: [c, -c] }));
    const parameters = await onDisk(folder, { ...options, starts: many.map((own) => async () => own) });
    for (const [c, own] of many.entries()) await parameters.keep(c, own);
    const row = many.map((_, j) => (j < 2 ? 0.5 : 0));
    const other = many.map((_, j) => (j === 2499 ? 1 : 0));
    await parameters.mix(many.map((_, c) => (c === 2000 ? other : row)));
    const mixed = await Promise.all(parameters.starts().map((read) => read()));
    const expected = (c: number) => tensors({ x: c === 2000 ? [2499, -2499] : [0.5, -0.5] });
    expect(mixed).toEqual(many.map((_, c) => expected(c)));
    await parameters.close();
  });

  it('refuses to read what has been written over, or is closed', async () => {
    const parameters = await onDisk(folder, options);
    const before = parameters.starts();
    await parameters.keep(0, second);
    await parameters.keep(1, first);
    await parameters.mix([
      [0, 1],
      [0.5, 0.5],
    ]);
    await expect(before[0]!()).rejects.toThrow("read a round's before the next one is mixed");
    const after = parameters.starts();
    expect(await after[1]!()).toEqual(tensors({ x: [2, 3] }));
    await parameters.close();
    await expect(after[1]!()).rejects.toThrow("read a round's before");
  });

  it('has a file for mixtures until the round ends, and refuses to read it later', async () => {
    const parameters = await onDisk(folder, options);
    await parameters.keep(0, second);
    await parameters.keep(1, first);
    const [half, own] = await parameters.mixtures([
      [0.5, 0.5],
      [1, 0],
    ]);
    if (seesOpenFiles) expect(openFilesBelow(folder)).toHaveLength(3);
    expect([await half!(), await own!()]).toEqual([tensors({ x: [2, 3] }), second]);
    await parameters.mix([
      [0, 1],
      [1, 0],
    ]);
    if (seesOpenFiles) expect(openFilesBelow(folder)).toHaveLength(2);
    for (const read of [half!, own!]) await expect(read()).rejects.toThrow("read a round's before");
    await parameters.mixtures([[0.5, 0.5]]);
    await parameters.close();
    expect(openFilesBelow(folder)).toEqual([]);
  });

  it('names the folder where there is no room', async () => {
    await expect(onDisk(join(folder, 'none'), options)).rejects.toThrow('none');
    const failing = { ...options, starts: [() => Promise.reject(new Error('unreadable'))] };
    await expect(onDisk(folder, failing)).rejects.toThrow('unreadable');
    expect(openFilesBelow(folder)).toEqual([]);
  });
});
