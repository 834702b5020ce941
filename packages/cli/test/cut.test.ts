// fellrec model cut: the folders of both sides, and a run whose server and client have nothing but theirs.
import { readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { writeRandomRecformer } from '@fellrec/models';
import { createKeys, writeKeys } from '@fellrec/network';
import { importDataset } from '@fellrec/recsys';
import { beforeEach, describe, expect, test } from 'vitest';
import { loadConfig } from '../src/config.ts';
import { join as joinRun } from '../src/join.ts';
import { tinyEncoder } from './recformer-config.ts';
import { servedHere } from './served.ts';
import { embeddedModel, fellrec, filesOf, interactions, items, readJson, scratch } from './shared.ts';

let folder: string;
beforeEach(async () => {
  folder = await scratch();
});
const inside = (...path: string[]) => join(folder, ...path);

const cutting = (model: string, side: string, k: number, output: string, ...more: string[]) =>
  fellrec('model', 'cut', model, '--k', String(k), '--side', side, '-o', output, ...more);

/** A side's folder. */
async function cut(model: string, side: string, k: number): Promise<string> {
  const output = inside(`${side}-${k}`);
  const { code, stderr } = await cutting(model, side, k, output);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  return output;
}

/** An encoder of three layers. */
async function encoder(): Promise<string> {
  const path = inside('encoder');
  await writeRandomRecformer(path, { ...tinyEncoder, layerCount: 3, attentionWindows: [16, 16, 16] }, 1);
  await writeFile(join(path, 'tokenizer.json'), await readFile(join(embeddedModel, 'tokenizer.json')));
  return path;
}

describe('the command', () => {
  test('says what it wrote', async () => {
    const { code, stdout, stderr } = await cutting(embeddedModel, 'client', 2, inside('client'));
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout.replace(folder, '')).toMatchInlineSnapshot(`
      "/client: the client's side of a cut at k = 2: layers 0 to 1 and 4 of 5, and all that belongs to no layer
      29 of 47 tensors, 676608 of 1040128 bytes
      "
    `);
    expect(Object.keys(await filesOf(folder))).toEqual(
      ['config.json', 'model.safetensors', 'part.json', 'tokenizer.json', 'tokenizer_config.json'].map(
        (name) => join('client', name),
      ),
    );
    await cut(embeddedModel, 'server', 2);
    expect(Object.keys(await filesOf(inside('server-2')))).toEqual([
      'config.json',
      'model.safetensors',
      'part.json',
    ]);
  });

  test('the sizes of both sides add up', async () => {
    const { hash, parameters } = JSON.parse((await fellrec('model', 'info', embeddedModel, '--json')).stdout);
    for (const k of [0, 2, 4]) {
      const found = [];
      for (const side of ['client', 'server']) {
        const output = inside(`${side}-${k}`);
        const { stdout } = await cutting(embeddedModel, side, k, output, '--json');
        const result = JSON.parse(stdout);
        expect(result).toMatchObject({ folder: output, side, k, layerCount: 5, hash });
        expect(result.wholeBytes).toBe(4 * parameters);
        // What it says is what there is, and a header.
        const { length } = await readFile(join(output, 'model.safetensors'));
        expect(length - result.bytes).toBeGreaterThan(0);
        expect(length - result.bytes).toBeLessThan(10_000);
        found.push(result);
      }
      expect(found[0].bytes + found[1].bytes).toBe(4 * parameters);
      expect(found[0].tensors + found[1].tensors).toBe(47);
      expect(found[1].tensors).toBe(9 * (4 - k));
    }
  });

  test('model info says which part it is', async () => {
    const part = await cut(embeddedModel, 'server', 2);
    const { stdout } = await fellrec('model', 'info', part);
    expect(stdout).toMatch(/^part +the server's side of a cut at k = 2: layers 2 to 3 of 5$/m);
    const found = JSON.parse((await fellrec('model', 'info', part, '--json')).stdout);
    const whole = JSON.parse((await fellrec('model', 'info', embeddedModel, '--json')).stdout);
    expect(found).toMatchObject({
      part: { side: 'server', k: 2 },
      hash: whole.hash,
      config: whole.config,
    });
    expect(whole).not.toHaveProperty('part');
  });

  test('what is there is replaced only with --force, and only if it is a part', async () => {
    const output = await cut(embeddedModel, 'client', 2);
    const before = await filesOf(output);
    const refused = await cutting(embeddedModel, 'client', 1, output);
    expect(refused).toMatchObject({ code: 1, stdout: '' });
    expect(refused.stderr).toContain(`model: ${output} exists; choose another folder or pass --force`);
    expect(await filesOf(output)).toEqual(before);
    expect((await cutting(embeddedModel, 'server', 1, output, '--force')).code).toBe(0);
    expect(await readJson(output, 'part.json')).toMatchObject({ format: 1, side: 'server', k: 1 });
    expect(Object.keys(await filesOf(output))).not.toContain('tokenizer.json');
    const foreign = await cutting(embeddedModel, 'client', 1, folder, '--force');
    expect(foreign.stderr).toContain(`model: ${folder} is no part of a model and is not replaced`);
    expect(foreign.code).toBe(1);
  });

  test('of a cut that fails nothing is left', async () => {
    const far = await cutting(embeddedModel, 'client', 5, inside('far'));
    expect(far.stderr).toContain('model: k is 5; of 5 layers it can be 0 to 4');
    const part = await cut(embeddedModel, 'client', 2);
    const again = await cutting(part, 'client', 1, inside('again'));
    expect(again.stderr).toContain(`model: cutting needs the whole model; ${part} is the client's side`);
    expect([far.code, again.code]).toEqual([1, 1]);
    await rm(part, { recursive: true });
    expect(await filesOf(folder)).toEqual({});
  });

  test.each([
    [['--k', '1'], "required option '--side <side>' not specified"],
    [['--side', 'client'], "required option '--k <count>' not specified"],
    [['--k', '1', '--side', 'both'], 'Allowed choices are client, server'],
    [['--k', '-1', '--side', 'client'], '"-1" is not a whole number'],
  ])('%j is wrong usage', async (argv, message) => {
    const { code, stderr } = await fellrec('model', 'cut', embeddedModel, '-o', inside('x'), ...argv);
    expect(stderr).toContain(message);
    expect(code).toBe(2);
  });
});

describe('a run', () => {
  /** Six users' data, and keys. */
  async function prepare(): Promise<void> {
    const lines = (await readFile(interactions, 'utf8')).split('\n');
    await writeFile(inside('sequences.tsv'), lines.slice(0, 7).join('\n'));
    await importDataset({
      interactions: inside('sequences.tsv'),
      items,
      columns: { sequence: 'items' },
      kCore: 0,
      output: inside('data'),
    });
    const keys = await createKeys({ clients: ['client-0'], hosts: ['127.0.0.1'], days: 1 });
    await writeKeys(inside('keys'), keys, { force: false });
  }

  async function configOf(name: string, model: string, more: Record<string, unknown>) {
    await writeFile(
      inside(`${name}.json`),
      JSON.stringify({
        name,
        runs: inside('runs'),
        cache: inside(name, 'cache'),
        threads: 1,
        data: { path: inside('data') },
        model: { path: model, maxTokens: 288 },
        lora: { rank: 2, alpha: 4 },
        training: { batchSize: 2, learningRate: 0.003 },
        generation: { beams: 1, maxNewTokens: 2, batch: 8 },
        federation: { rounds: 1 },
        split: { adapters: 'all-layers' },
        ...more,
      }),
    );
    return loadConfig(inside(`${name}.json`), [], { remote: true });
  }

  /** A server on its model, and a client on its own with k layers: what came out of the run. */
  async function together(
    name: string,
    models: { readonly server: string; readonly client: string; readonly k?: number },
    more: Record<string, unknown> = {},
  ) {
    const config = await configOf(name, models.server, more);
    const stop = new AbortController();
    const { served, address } = await servedHere(config, inside('keys', 'tokens.json'), {
      signal: stop.signal,
    });
    try {
      const joined = await joinRun({
        server: address,
        data: inside('data'),
        model: models.client,
        k: models.k,
        activations: 'float32',
        token: inside('keys', 'client-0.token'),
        cache: inside(name, 'cache'),
        threads: 1,
        giveUpSeconds: 10,
      });
      const { pooled } = await served;
      const { client, ...result } = joined;
      return { client, result, pooled, best: await filesOf(inside('runs', name, 'best')) };
    } catch (error) {
      stop.abort();
      await served.catch(() => {});
      throw error;
    }
  }

  const adapters = ({ best }: Awaited<ReturnType<typeof together>>) =>
    Object.entries(best).filter(([file]) => file.endsWith('.safetensors'));

  test.each([
    ['bigrec', async () => embeddedModel, 2],
    ['recformer', encoder, 1],
  ] as const)('%s: of two parts is that of whole models, bit for bit', async (recommender, model, k) => {
    await prepare();
    const whole = await model();
    const more = { recommender };
    const expected = await together('whole', { server: whole, client: whole, k }, more);
    const client = await cut(whole, 'client', k);
    const server = await cut(whole, 'server', k);
    const found = await together('parts', { server, client }, more);
    expect(adapters(found)).toEqual(adapters(expected));
    expect(adapters(found)).toHaveLength(1);
    expect(found.result).toEqual(expected.result);
    expect(found.pooled).toEqual(expected.pooled);
  });

  test('an encoder trained in full: the client has its part, the server all tensors', async () => {
    await prepare();
    const more = {
      recommender: 'recformer',
      recformer: { tune: 'full' },
      split: { adapters: 'client-layers' },
    };
    const server = await encoder();
    const expected = await together('whole', { server, client: server, k: 1 }, more);
    const client = await cut(server, 'client', 1);
    expect(adapters(await together('parts', { server, client }, more))).toEqual(adapters(expected));
  });

  test('clients that keep fewer layers than the server lacks are refused', async () => {
    await prepare();
    const server = await cut(embeddedModel, 'server', 2);
    const client = await cut(embeddedModel, 'client', 1);
    const message = 'layers_kept is 1, but the server holds layers from 2 on; keep 2';
    await expect(together('refused', { server, client })).rejects.toThrow(message);
  });

  test('folders without what the work needs are refused at the start', async () => {
    await prepare();
    const client = await cut(embeddedModel, 'client', 2);
    const server = await cut(embeddedModel, 'server', 2);
    await expect(together('refused', { server: client, client })).rejects.toThrow(
      `serve: ${client} is the client's side of a cut at k = 2`,
    );
    await expect(together('refused', { server, client, k: 3 })).rejects.toThrow(
      `join: a client that keeps 3 layers and the last one cannot work with ${client}: it is the client's side`,
    );
    await expect(together('refused', { server, client: server })).rejects.toThrow(
      `cannot work with ${server}: it is the server's side`,
    );
    const part = await cut(await encoder(), 'server', 1);
    const full = { recommender: 'recformer', recformer: { tune: 'full' } };
    await expect(together('refused', { server: part, client }, full)).rejects.toThrow(
      `handing out all tensors needs the whole model; ${part} is the server's side`,
    );
  });

  test('in one process takes the whole model', async () => {
    await prepare();
    const client = await cut(embeddedModel, 'client', 2);
    await configOf('one', client, { split: { k: 2 } });
    const { code, stderr } = await fellrec('train', '-c', inside('one.json'));
    expect(stderr).toContain(`model: a run in one process needs the whole model; ${client} is the client's`);
    expect(code).toBe(1);
    expect(Object.keys(await filesOf(folder)).filter((file) => file.startsWith('runs'))).toEqual([]);
  });
});
