// Folders with one side of a model that is cut: both together are the model, each computes its side of it, and what
// is damaged or missing is refused.
import { cpSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Float32Tensor, float32, type NamedTensors, nodeRuntime, random } from '@fellrec/graph';
import { beforeAll, describe, expect, test } from 'vitest';
import { ignoredLabel, type Sequence } from '../src/batch.ts';
import { type Checkpoint, openCheckpoint } from '../src/checkpoint/checkpoint.ts';
import { describePart, type ModelPart } from '../src/checkpoint/part.ts';
import { copySafetensors, readSafetensors, readSafetensorsIndex } from '../src/checkpoint/safetensors.ts';
import { cutCheckpoint } from '../src/cut.ts';
import { fuseAdapter } from '../src/fuse.ts';
import { languageModel } from '../src/language-model.ts';
import { llama } from '../src/llama.ts';
import { encoderProjections, freshAdapter, initialAdapter, ofLayers, projections } from '../src/lora.ts';
import { quantizeBase } from '../src/quantize.ts';
import { openRecformer, type RecformerCheckpoint, readParameters } from '../src/recformer/checkpoint.ts';
import { adaptedEncoderProjections } from '../src/recformer/config.ts';
import type { LabelledSequence } from '../src/recformer/contrast.ts';
import { encoderModel, unitRows } from '../src/recformer/model.ts';
import { splitEncoder } from '../src/split/encoder.ts';
import { splitLanguageModel } from '../src/split/language-model.ts';
import { type CutLayers, cutLayers } from '../src/split/layers.ts';
import { llamaCut } from '../src/split/llama.ts';
import { localMiddle } from '../src/split/local-middle.ts';
import { recformerCut } from '../src/split/recformer.ts';
import { bf16, bytesOf, f16, f32, safetensors, writeFolder } from './checkpoint-files.ts';
import { fixture, readJson, stories260k, temporaryFolder } from './shared.ts';

const folder = temporaryFolder();
const cacheDir = join(folder, 'cache');
const runtime = nodeRuntime({ threads: 1 });
const sides = ['client', 'server'] as const;
type Side = ModelPart['side'];

const architectures = {
  llama: { directory: stories260k, layerCount: 5, open: openCheckpoint },
  untied: { directory: fixture('llama-mha-untied'), layerCount: 3, open: openCheckpoint },
  recformer: { directory: fixture('recformer-tiny'), layerCount: 3, open: openRecformer },
};
type Architecture = keyof typeof architectures;
const names = Object.keys(architectures) as Architecture[];
const cutsOf = (name: Architecture) =>
  Array.from({ length: architectures[name].layerCount }, (_, k) => [name, k] as const);

const wholes = new Map<Architecture, Checkpoint | RecformerCheckpoint>();
const folderOf = (name: Architecture, side: Side, k: number) => join(folder, `${name}-${side}-${k}`);
beforeAll(async () => {
  for (const name of names) {
    const whole = await architectures[name].open(architectures[name].directory, { cacheDir });
    wholes.set(name, whole);
    for (const [, k] of cutsOf(name))
      for (const side of sides) await cutCheckpoint(whole, { side, k }, folderOf(name, side, k));
  }
});

const opened = (name: Architecture, side: Side, k: number) =>
  architectures[name].open(folderOf(name, side, k), { cacheDir });
const openedLlama = (side: Side, k: number) => openCheckpoint(folderOf('llama', side, k), { cacheDir });
const openedEncoder = (side: Side, k: number) => openRecformer(folderOf('recformer', side, k), { cacheDir });
const wholeLlama = () => wholes.get('llama') as Checkpoint;
const wholeEncoder = () => wholes.get('recformer') as RecformerCheckpoint;

/** Types, shapes and bytes by name. */
function contentsOf({ tensors }: Pick<Checkpoint, 'tensors'>) {
  const files = new Map<string, Buffer>();
  return new Map(
    [...tensors].map(([name, { dtype, dims, file, byteOffset, byteLength }]) => {
      const bytes = files.get(file) ?? readFileSync(file);
      files.set(file, bytes);
      const own = bytes.subarray(byteOffset, byteOffset + byteLength);
      return [name, { dtype, dims, bytes: own.toString('latin1') }];
    }),
  );
}

/** What a client is to have, and a server is not, written down another way. */
function isClients(name: string, k: number, layerCount: number): boolean {
  const layers = Array.from({ length: layerCount }, (_, layer) => layer);
  const middle = layers.slice(k, -1);
  return !middle.some((layer) => name.includes(`layers.${layer}.`) || name.includes(`layer.${layer}.`));
}

describe('both sides together are the model', () => {
  test.each(names.flatMap(cutsOf))('%s, k = %i', async (name, k) => {
    const whole = wholes.get(name)!;
    const { layerCount } = architectures[name];
    const expected = contentsOf({
      tensors: new Map([...whole.tensors].filter(([tensor]) => !whole.unused.includes(tensor))),
    });
    const found = { client: await opened(name, 'client', k), server: await opened(name, 'server', k) };
    for (const side of sides) {
      const part = found[side];
      const own = [...expected].filter(
        ([tensor]) => isClients(tensor, k, layerCount) === (side === 'client'),
      );
      expect(contentsOf(part)).toEqual(new Map(own));
      expect(part).toMatchObject({ hash: whole.hash, config: whole.config, part: { side, k }, unused: [] });
    }
    expect(found.client.tensors.size + found.server.tensors.size).toBe(expected.size);
  });

  test('what belongs to no layer is the clients', async () => {
    const { tensors } = await opened('untied', 'client', 0);
    const outside = [...tensors.keys()].filter((name) => !name.includes('layers.'));
    expect(outside.sort()).toEqual(['lm_head.weight', 'model.embed_tokens.weight', 'model.norm.weight']);
    expect((await opened('untied', 'server', 2)).tensors.size).toBe(0);
  });

  test.each([
    ['client', 0, 'layer 4 of 5, and all that belongs to no layer'],
    ['client', 1, 'layers 0 and 4 of 5, and all that belongs to no layer'],
    ['client', 4, 'layers 0 to 3 and 4 of 5, and all that belongs to no layer'],
    ['server', 0, 'layers 0 to 3 of 5'],
    ['server', 3, 'layer 3 of 5'],
    ['server', 4, 'no layer of 5'],
  ] as const)('the %s at k = %i has %s', (side, k, text) => {
    expect(describePart({ side, k }, 5)).toBe(`the ${side}'s side of a cut at k = ${k}: ${text}`);
  });

  test('only a client gets the tokenizer', () => {
    const tokenizer = ['tokenizer.json', 'tokenizer_config.json'];
    for (const file of tokenizer)
      expect(readFileSync(join(folderOf('llama', 'client', 2), file))).toEqual(
        readFileSync(join(stories260k, file)),
      );
    for (const file of tokenizer)
      expect(() => readFileSync(join(folderOf('llama', 'server', 2), file))).toThrow('ENOENT');
  });

  test('types stay as they are, whatever others there are', async () => {
    const { directory } = architectures.untied;
    const tensors = (await readSafetensors(join(directory, 'model.safetensors'))) as Map<
      string,
      Float32Tensor
    >;
    const types = [bf16, f32, f16];
    const mixed = Object.fromEntries([...tensors].map(([name, tensor], i) => [name, types[i % 3]!(tensor)]));
    const source = writeFolder(join(folder, 'mixed'), {
      'config.json': readJson(join(directory, 'config.json')),
      'model.safetensors': safetensors({
        ...mixed,
        odd: { dtype: 'F16', shape: [1], bytes: bytesOf(Float16Array.of(1)) },
      }),
    });
    const whole = await openCheckpoint(source, { cacheDir });
    const expected = contentsOf(whole);
    for (const side of sides) {
      const target = join(folder, `mixed-${side}`);
      await cutCheckpoint(whole, { side, k: 1 }, target);
      const found = await openCheckpoint(target, { cacheDir });
      expect(found.hash).toBe(whole.hash);
      expect(found.tensors.has('odd')).toBe(false);
      for (const [name, content] of contentsOf(found)) expect(content, name).toEqual(expected.get(name));
    }
  });

  test('copies: a tensor in several pieces, and all aligned', async () => {
    const { normal } = random(7, 'pieces');
    const vector = (length: number) =>
      float32(
        Float32Array.from({ length }, () => normal()),
        [length],
      );
    const entries = {
      odd: f16(vector(3)),
      large: f32(vector(2 ** 18 + 3)),
      other: bf16(vector(1)),
      f32: f32(vector(2)),
    };
    const directory = writeFolder(join(folder, 'copies'), { source: safetensors(entries) });
    const { tensors } = await readSafetensorsIndex(join(directory, 'source'));
    await copySafetensors(join(directory, 'copy'), tensors);
    const copied = await readSafetensorsIndex(join(directory, 'copy'));
    expect(contentsOf(copied)).toEqual(contentsOf({ tensors }));
    for (const [name, { dtype, byteOffset }] of copied.tensors)
      expect(byteOffset % (dtype === 'float32' ? 4 : 2), name).toBe(0);
  });

  test('the start of a RecFormer is cut as the RecFormer that it becomes', async () => {
    const source = fixture('recformer-tiny');
    const { token_type_size: _, ...json } = readJson<Record<string, unknown>>(join(source, 'config.json'));
    const longformer = writeFolder(join(folder, 'start'), {
      'config.json': { ...json, type_vocab_size: 4 },
    });
    cpSync(join(source, 'model.safetensors'), join(longformer, 'model.safetensors'));
    const start = await openRecformer(longformer, { cacheDir });
    expect(start.family).toBe('longformer');
    const found = new Map();
    for (const side of sides) {
      await cutCheckpoint(start, { side, k: 1 }, join(folder, `start-${side}`));
      const part = await openRecformer(join(folder, `start-${side}`), { cacheDir });
      expect(part).toMatchObject({ family: 'recformer', hash: start.hash, config: start.config });
      for (const [name, content] of contentsOf(part)) found.set(name, content);
    }
    expect(found).toEqual(contentsOf(start));
  });
});

/** All halves random: nothing has a gradient of 0. */
function moved(fresh: NamedTensors): NamedTensors {
  return new Map(
    [...fresh].map(([name, { dims, data }]) => {
      const { normal } = random(5, name);
      return [
        name,
        float32(
          data.map(() => 0.1 * normal()),
          dims,
        ),
      ];
    }),
  );
}

/** A middle that learns, on the layers of a checkpoint. */
function middleOf(layers: CutLayers, k: number, trained: Parameters<typeof localMiddle>[0]['trained']) {
  const range = { from: k, to: layers.model.layerCount - 1 };
  return localMiddle({ layers, range, ...(trained && trained.tensors.size > 0 && { trained }) });
}

const llamaLayers = (checkpoint: Checkpoint) =>
  cutLayers(llamaCut(llama(checkpoint), checkpoint.config), runtime);
const encoderLayers = (checkpoint: RecformerCheckpoint) => cutLayers(recformerCut(checkpoint), runtime);

const draw = random(3, 'part');
const sequences = [6, 3, 9].map((length): Sequence => {
  const ids = [1, ...Array.from({ length }, () => 3 + draw.integer(500))];
  return { ids, labels: ids.map((id, t) => (t < 2 ? ignoredLabel : id)) };
});

/** What a language model of two sides computes: a step of both sides' adapters, and continuations. */
async function computed(client: Checkpoint, server: Checkpoint, k: number) {
  const lora = { rank: 2, alpha: 4, dropout: 0, targetModules: projections };
  const { layerCount } = client.config;
  const isMiddle = (layer: number) => layer >= k && layer < layerCount - 1;
  const all = moved(initialAdapter(client.config, lora, 1));
  const layers = [llamaLayers(client), llamaLayers(server)] as const;
  const middle = middleOf(layers[1], k, { lora, tensors: ofLayers(all, isMiddle) });
  const kept = [...Array(layerCount).keys()].filter((layer) => !isMiddle(layer));
  const own = {
    config: { ...lora, layers: kept },
    tensors: ofLayers(all, (layer) => !isMiddle(layer)),
  };
  const model = splitLanguageModel({ checkpoint: client, runtime, layers: layers[0], kept: k, middle });
  const { loss, gradients } = await model.gradients(sequences, own);
  const elsewhere = await model.updateElsewhere!(1, 0.01);
  const prompts = sequences.map(({ ids }) => ids);
  const generated = await model.generate(prompts, { beams: 2, maxNewTokens: 4, eosIds: [2] }, own);
  const vectors = await model.vectors(prompts);
  await model.release();
  for (const one of layers) await one.release();
  return { loss, gradients, elsewhere, middle: middle.parameters, generated, vectors };
}

interface Cases {
  readonly built: readonly Record<'input_ids' | 'token_type_ids' | 'item_position_ids', number[]>[];
  readonly labels: readonly number[];
  readonly temperature: number;
}

/** What an encoder of two sides computes. */
async function encoded(client: RecformerCheckpoint, server: RecformerCheckpoint, k: number) {
  const directory = fixture('recformer-tiny');
  const cases: Cases = readJson(join(directory, 'cases.json'));
  const items = (await readSafetensors(join(directory, 'expected.safetensors'))).get('items');
  const batch = cases.built.map(
    (built, b): LabelledSequence => ({
      sequence: {
        ids: built.input_ids,
        tokenTypes: built.token_type_ids,
        itemPositions: built.item_position_ids,
      },
      label: cases.labels[b]!,
    }),
  );
  const lora = { rank: 2, alpha: 4, dropout: 0, targetModules: encoderProjections };
  const { layerCount } = client.config;
  const isMiddle = (layer: number) => layer >= k && layer < layerCount - 1;
  const all = moved(freshAdapter(adaptedEncoderProjections(client.config, lora), lora, 1));
  const layers = [encoderLayers(client), encoderLayers(server)] as const;
  const middle = middleOf(layers[1], k, { lora, tensors: ofLayers(all, isMiddle) });
  const kept = [...Array(layerCount).keys()].filter((layer) => !isMiddle(layer));
  const own = {
    lora: { ...lora, layers: kept },
    tensors: ofLayers(all, (layer) => !isMiddle(layer)),
  };
  const model = splitEncoder({ checkpoint: client, runtime, layers: layers[0], kept: k, middle });
  const { loss, gradients } = await model.gradients(batch, own, {
    items: unitRows(items as Float32Tensor),
    temperature: cases.temperature,
    microBatch: 2,
  });
  const vectors = await model.encode(
    batch.map(({ sequence }) => sequence),
    own,
  );
  const elsewhere = await model.updateElsewhere!(1, 0.01);
  await model.release();
  for (const one of layers) await one.release();
  return { loss, gradients, vectors, elsewhere, middle: middle.parameters };
}

describe('a model of two parts is the model, bit for bit', () => {
  test.each(cutsOf('llama'))('%s, k = %i', async (_, k) => {
    const expected = await computed(wholeLlama(), wholeLlama(), k);
    expect(await computed(await openedLlama('client', k), await openedLlama('server', k), k)).toEqual(
      expected,
    );
    expect(expected.gradients.size).toBeGreaterThan(0);
  });

  test.each(cutsOf('recformer'))('%s, k = %i', async (_, k) => {
    const expected = await encoded(wholeEncoder(), wholeEncoder(), k);
    expect(await encoded(await openedEncoder('client', k), await openedEncoder('server', k), k)).toEqual(
      expected,
    );
    expect(expected.gradients.size).toBeGreaterThan(0);
  });

  test('parts that overlap: a client with more layers than it keeps, a server with more than it computes', async () => {
    const expected = await computed(wholeLlama(), wholeLlama(), 2);
    expect(await computed(await openedLlama('client', 3), await openedLlama('server', 1), 2)).toEqual(
      expected,
    );
  });
});

const clients =
  "is the client's side of a cut at k = 2: layers 0 to 1 and 4 of 5, and all that belongs to no";
const servers = "is the server's side of a cut at k = 2: layers 2 to 3 of 5";

describe('what needs other tensors is refused', () => {
  test.each([
    ['client', '"model.layers.2.input_layernorm.weight"', clients],
    ['server', '"model.embed_tokens.weight"', servers],
  ] as const)("a whole language model of the %s's side", async (side, name, part) => {
    const loss = languageModel(await openedLlama(side, 2), runtime).loss(sequences);
    await expect(loss).rejects.toThrow(`${folderOf('llama', side, 2)} does not hold ${name}; it ${part}`);
  });

  test.each([
    ['client', '"encoder.layer.1.attention.self.query.weight"', 'layers 0 and 2 of 3'],
    ['server', '"embeddings.word_embeddings.weight"', 'layer 1 of 3'],
  ] as const)("a whole encoder of the %s's side", async (side, name, layers) => {
    const checkpoint = await openedEncoder(side, 1);
    const encode = encoderModel(checkpoint, runtime).encode([
      { ids: [0, 5, 9], tokenTypes: [0, 1, 2], itemPositions: [0, 1, 1] },
    ]);
    await expect(encode).rejects.toThrow(name);
    await expect(encode).rejects.toThrow(layers);
    await expect(readParameters(checkpoint)).rejects.toThrow(
      `training all tensors needs the whole model; ${folderOf('recformer', side, 1)} is the ${side}'s side`,
    );
  });

  test('a client that keeps more layers than its part has', async () => {
    const found = computed(await openedLlama('client', 2), wholeLlama(), 3);
    await expect(found).rejects.toThrow(`"model.layers.2.input_layernorm.weight"; it ${clients}`);
  });

  test('a server that computes from before its part', async () => {
    const found = computed(wholeLlama(), await openedLlama('server', 2), 1);
    await expect(found).rejects.toThrow(`"model.layers.1.input_layernorm.weight"; it ${servers}`);
  });

  test('fusing, quantising and cutting', async () => {
    const part = await openedLlama('client', 2);
    const lora = { rank: 2, alpha: 4, dropout: 0, targetModules: projections };
    const adapter = { config: lora, tensors: initialAdapter(part.config, lora, 1) };
    await expect(fuseAdapter(part, adapter, join(folder, 'fused'))).rejects.toThrow(
      `fusing needs the whole model; ${part.directory} ${clients}`,
    );
    const options = { base: 'int8', calibration: [[1, 2]], runtime, cacheDir } as const;
    await expect(quantizeBase(part, options)).rejects.toThrow(
      `a quantised base needs the whole model; ${part.directory} ${clients}`,
    );
    await expect(cutCheckpoint(part, { side: 'client', k: 1 }, join(folder, 'again'))).rejects.toThrow(
      `cutting needs the whole model; ${part.directory} ${clients}`,
    );
  });

  test.each([-1, 5])('a cut at k = %i', async (k) => {
    await expect(cutCheckpoint(wholeLlama(), { side: 'client', k }, join(folder, 'never'))).rejects.toThrow(
      `k is ${k}; of 5 layers it can be 0 to 4`,
    );
  });
});

let copies = 0;
/** A copy of a part to be damaged. */
function copyOf(name: Architecture, side: Side, k: number): string {
  const copy = join(folder, `copy-${copies++}`);
  cpSync(folderOf(name, side, k), copy, { recursive: true });
  return copy;
}

function edited(directory: string, file: string, changes: object): string {
  const json = { ...readJson<object>(join(directory, file)), ...changes };
  writeFileSync(join(directory, file), JSON.stringify(json));
  return directory;
}

describe('a damaged part is refused', () => {
  const fails = (directory: string, message: string | RegExp) =>
    expect(openCheckpoint(directory, { cacheDir })).rejects.toThrow(message);

  test.each([
    [{ format: 2 }, 'at format'],
    [{ side: 'both' }, 'at side'],
    [{ k: 5 }, 'expected less than layerCount'],
    [{ k: '2' }, 'at k'],
    [{ hash: 'abc' }, 'expected 64 hexadecimal digits'],
    [{ contents: undefined }, 'at contents'],
    [{ from: 2 }, 'Unrecognized key: "from"'],
  ])('part.json with %j', async (changes, message) => {
    const directory = edited(copyOf('llama', 'client', 2), 'part.json', changes);
    await fails(directory, `${directory}/part.json is damaged, or of another version; cut the model again`);
    await fails(directory, message);
  });

  test('part.json that is no JSON, or of a model of another size', async () => {
    const directory = copyOf('llama', 'client', 2);
    writeFileSync(join(directory, 'part.json'), '{"format": 1');
    await fails(directory, `${directory}/part.json is not valid JSON`);
    await fails(
      edited(copyOf('llama', 'client', 2), 'part.json', { layerCount: 6 }),
      /part\.json is of a model of 6 layers, the config\.json beside it of one of 5; cut the model again/,
    );
  });

  test('without part.json it is a whole model that lacks tensors', async () => {
    const directory = copyOf('llama', 'client', 2);
    rmSync(join(directory, 'part.json'));
    await fails(
      directory,
      /is this the right config\.json\?\n {2}"model\.layers\.2\.input_layernorm\.weight"/,
    );
  });

  test('part.json of another cut: tensors that are missing, or that nobody asked for', async () => {
    const more = edited(copyOf('llama', 'client', 2), 'part.json', { k: 3 });
    await fails(more, `weights, part.json and config.json of ${more} disagree; cut the model again`);
    await fails(more, '"model.layers.2.mlp.up_proj.weight" is missing, config says [172,64]');
    const other = edited(copyOf('llama', 'client', 2), 'part.json', { side: 'server' });
    await fails(other, '"model.layers.3.mlp.up_proj.weight" is missing');
    const fewer = edited(copyOf('llama', 'client', 2), 'part.json', { k: 1 });
    await fails(fewer, `${fewer} no longer holds what was cut; cut the model again`);
  });

  test.each(['llama', 'recformer'] as const)(
    '%s: weights or configuration of another model',
    async (name) => {
      const { open } = architectures[name];
      const message = /copy-\d+ no longer holds what was cut; cut the model again/;
      const setting = name === 'llama' ? { rope_theta: 12_345 } : { pooler_type: 'avg' };
      const configured = edited(copyOf(name, 'server', 1), 'config.json', setting);
      await expect(open(configured, { cacheDir })).rejects.toThrow(message);
      const weights = copyOf(name, 'server', 1);
      const file = join(weights, 'model.safetensors');
      const [stored] = (await readSafetensorsIndex(file)).tensors.values();
      const bytes = readFileSync(file);
      const at = stored!.byteOffset + Math.floor(stored!.byteLength / 2);
      bytes[at]! ^= 1;
      writeFileSync(file, bytes);
      await expect(open(weights, { cacheDir })).rejects.toThrow(message);
    },
  );

  test('an encoder of another family', async () => {
    const directory = edited(copyOf('recformer', 'server', 1), 'config.json', { token_type_size: undefined });
    await expect(openRecformer(directory, { cacheDir })).rejects.toThrow(
      `${directory} is a part of a RecFormer, its config.json of a longformer; cut it again`,
    );
  });
});
