// The quantised base beside the float32 one: near, faster to be used than to be made, and never silently the same.
import { readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { type Float32Tensor, type NamedTensors, nodeRuntime, type Runtime, random } from '@fellrec/graph';
import { describe, expect, test } from 'vitest';
import { ignoredLabel, type Sequence } from '../src/batch.ts';
import { openCheckpoint } from '../src/checkpoint/checkpoint.ts';
import { readSafetensors, readTensor } from '../src/checkpoint/safetensors.ts';
import { type Adapter, languageModel } from '../src/language-model.ts';
import { foldName } from '../src/llama.ts';
import { initialAdapter, type LoraConfig, projections } from '../src/lora.ts';
import { type QuantizeOptions, quantizeBase } from '../src/quantize.ts';
import { norm } from './numbers.ts';
import { fixture, temporaryFolder } from './shared.ts';

const cacheDir = temporaryFolder();
const runtime = nodeRuntime();
const draw = random(4, 'sequences');
const tokens = (length: number) => [1, ...Array.from({ length: length - 1 }, () => 3 + draw.integer(60))];
const calibration = Array.from({ length: 8 }, () => tokens(40));
const batch: Sequence[] = [30, 22, 41, 17].map((length) => {
  const ids = tokens(length);
  return { ids, labels: ids.map((id, t) => (t < 10 ? ignoredLabel : id)) };
});
const lora: LoraConfig = { rank: 3, alpha: 6, dropout: 0, targetModules: projections };
const quantize = async (name: string, base: QuantizeOptions['base'], sequences = calibration) => {
  const checkpoint = await openCheckpoint(fixture(name), { cacheDir });
  return {
    checkpoint,
    base: await quantizeBase(checkpoint, { base, calibration: sequences, runtime, cacheDir }),
  };
};

function cosine(a: NamedTensors, b: NamedTensors): number {
  let [dot, aa, bb] = [0, 0, 0];
  for (const [name, { data }] of a)
    data.forEach((x, i) => {
      const y = b.get(name)!.data[i]!;
      dot += x * y;
      aa += x * x;
      bb += y * y;
    });
  return dot / Math.sqrt(aa * bb);
}

describe.each(['llama-gqa-tied', 'llama-mha-untied'])('%s', (name) => {
  test.each([
    ['int8', 0.99],
    ['int8-fast', 0.98],
  ] as const)('%s: gradients of all seven projections point where float32 points', async (kind, least) => {
    const { checkpoint, base } = await quantize(name, kind);
    const tensors: NamedTensors = new Map(
      [...initialAdapter(checkpoint.config, lora, 3)].map(([key, { dims, data, dtype }]) => {
        const { normal } = random(3, 'perturb', key);
        return [key, { dtype, dims, data: data.map(() => 0.2 * normal()) }];
      }),
    );
    const adapter: Adapter = { config: lora, tensors };
    const [exact, quantized] = [languageModel(checkpoint, runtime), languageModel(checkpoint, runtime, base)];
    const expected = await exact.gradients(batch, adapter);
    const found = await quantized.gradients(batch, adapter);
    expect(found.loss).not.toBe(expected.loss);
    expect(Math.abs(found.loss - expected.loss)).toBeLessThan(0.06);
    expect(cosine(found.gradients, expected.gradients)).toBeGreaterThan(least);
    for (const [key, { data }] of found.gradients) {
      const only = (of: NamedTensors) => new Map([[key, of.get(key)!]]);
      expect(cosine(only(found.gradients), only(expected.gradients)), key).toBeGreaterThan(0.9);
      expect(Math.abs(norm(data) / norm(expected.gradients.get(key)!.data) - 1), key).toBeLessThan(0.2);
    }
    // Grounding's vectors do not depend on it.
    const ids = batch.map((sequence) => sequence.ids);
    expect(await quantized.vectors(ids)).toEqual(await exact.vectors(ids));
    await Promise.all([exact.release(), quantized.release()]);
  });
});

test('integers times steps are the folded weights within half a step, and folds cancel', async () => {
  const { checkpoint, base } = await quantize('llama-gqa-tied', 'int8');
  const stored = async (name: string) => {
    const tensor = base.tensors.get(name) ?? checkpoint.tensors.get(name)!;
    const zero = tensor.dtype === 'uint8' ? 128 : 0;
    return { dims: tensor.dims, data: (await readTensor(tensor)).data.map((value) => value - zero) };
  };
  const path = 'layers.1.mlp.up_proj';
  const { data: w, dims } = { ...(await readTensor(checkpoint.tensors.get(`model.${path}.weight`)!)) };
  const [out, in_] = dims as [number, number];
  const columns = (await stored(foldName(1, 'mlp'))).data;
  const rows = (await stored(foldName(1, 'down'))).data;
  for (const pass of ['forward', 'backward'] as const) {
    const values = (await stored(`${path}.${pass}.values`)).data;
    const scales = (await stored(`${path}.${pass}.scales`)).data;
    expect(Math.max(...values.map(Math.abs))).toBe(127);
    for (let o = 0; o < out; o++)
      for (let i = 0; i < in_; i++) {
        const step = scales[pass === 'forward' ? o : i]!;
        const value = values[pass === 'forward' ? i * out + o : o * in_ + i]! * step;
        const expected = (w[o * in_ + i]! * columns[i]!) / rows[o]!;
        expect(Math.abs(value - expected)).toBeLessThan(0.5001 * step);
      }
  }
  const norms = (await stored('model.layers.1.post_attention_layernorm.weight')).data;
  const original = await readTensor(
    checkpoint.tensors.get('model.layers.1.post_attention_layernorm.weight')!,
  );
  norms.forEach((folded, i) => {
    expect(folded * columns[i]!).toBeCloseTo(original.data[i]!, 5);
  });
});

test('is made once for a checkpoint, a kind and a calibration', async () => {
  const files = () => readdirSync(cacheDir).filter((name) => name.startsWith('int8-'));
  await quantize('llama-gqa-tied', 'int8');
  const made = files();
  const written = made.map((name) => statSync(join(cacheDir, name)).mtimeMs);
  await quantize('llama-gqa-tied', 'int8');
  expect(files()).toEqual(made);
  expect(made.map((name) => statSync(join(cacheDir, name)).mtimeMs)).toEqual(written);
  await quantize('llama-gqa-tied', 'int8', [tokens(12)]);
  expect(files()).toHaveLength(made.length + 1);
  await expect(quantize('llama-gqa-tied', 'int8', [])).rejects.toThrow('needs sequences to calibrate on');
});

/** Of a processor whose products of some integers are wrong. */
const inexact = (wrong: readonly string[]): Runtime => ({
  async compile(outputs, options) {
    const program = await runtime.compile(outputs, options);
    const operation = outputs.y?.operation;
    if (operation?.kind !== 'quantizedLinear' || !wrong.includes(operation.forward.values.dtype))
      return program;
    const run: typeof program.run = async (feeds) => {
      const found = await program.run(feeds);
      const { y } = found as Record<string, Float32Tensor>;
      return { ...found, y: { ...y, data: y!.data.map((sum) => 0.9 * sum) } };
    };
    return { ...program, run };
  },
});

test('has unsigned integers where products of signed ones saturate: the same to the bit', async () => {
  const { checkpoint, base } = await quantize('llama-gqa-tied', 'int8');
  const options = { base: 'int8', calibration, runtime: inexact(['int8']), cacheDir } as const;
  const unsigned = await quantizeBase(checkpoint, options);
  const dtypes = (of: typeof base) => new Set([...of.tensors.values()].map(({ dtype }) => dtype));
  expect(dtypes(unsigned)).toEqual(new Set(['float32', 'uint8']));
  const models = [base, unsigned].map((one) => languageModel(checkpoint, runtime, one));
  const [expected, found] = await Promise.all(models.map((model) => model.loss(batch)));
  expect(found).toBe(expected);
  await Promise.all(models.map((model) => model.release()));
});

test('is refused where no products are exact', async () => {
  const checkpoint = await openCheckpoint(fixture('llama-gqa-tied'), { cacheDir });
  const options = { base: 'int8', calibration, runtime: inexact(['int8', 'uint8']), cacheDir } as const;
  await expect(quantizeBase(checkpoint, options)).rejects.toThrow(
    '8-bit products are not exact on this processor',
  );
});

test('is no checkpoint: 8-bit weights are refused as one', async () => {
  const { base } = await quantize('llama-gqa-tied', 'int8');
  const [tensor] = base.tensors.values();
  await expect(readSafetensors(tensor!.file)).rejects.toThrow(/unsupported type [IU]8/);
});
