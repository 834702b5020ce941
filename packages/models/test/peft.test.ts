// PEFT folders: written as they were read, and refused by name where they ask for something else.
import { cpSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { float32 } from '@fellrec/graph';
import { describe, expect, test } from 'vitest';
import { openCheckpoint } from '../src/checkpoint/checkpoint.ts';
import { writeSafetensors } from '../src/checkpoint/safetensors.ts';
import { initialAdapter, projections } from '../src/lora.ts';
import { readAdapter, writeAdapter } from '../src/peft.ts';
import { fixture, llamaFixtures, readJson, temporaryFolder } from './shared.ts';

const folder = temporaryFolder();
const files = ['adapter_config.json', 'adapter_model.safetensors'];

test.each(llamaFixtures)("%s: PEFT's adapter is read", async (name) => {
  const { config, tensors } = await readAdapter(join(fixture(name), 'adapter'));
  const json = readJson<Record<string, unknown>>(join(fixture(name), 'adapter', 'adapter_config.json'));
  expect(config).toEqual({
    rank: json.r,
    alpha: json.lora_alpha,
    dropout: json.lora_dropout,
    targetModules: json.target_modules,
  });
  const { layerCount } = (await openCheckpoint(fixture(name), { cacheDir: folder })).config;
  expect(tensors.size).toBe(2 * layerCount * config.targetModules.length);
});

test('what is written is read again and written to the same bytes', async () => {
  const { config } = await openCheckpoint(fixture('llama-gqa-tied'), { cacheDir: folder });
  const lora = { rank: 4, alpha: 8.5, dropout: 0.1, targetModules: projections };
  const adapter = { config: lora, tensors: initialAdapter(config, lora, 1) };
  const [first, second] = [join(folder, 'first'), join(folder, 'second')];
  await writeAdapter(first, adapter, 'org/model');
  const read = await readAdapter(first);
  expect(read).toEqual(adapter);
  await writeAdapter(second, read, 'org/model');
  for (const file of files) expect(readFileSync(join(second, file))).toEqual(readFileSync(join(first, file)));
  expect(readJson(join(first, 'adapter_config.json'))).toMatchInlineSnapshot(`
    {
      "base_model_name_or_path": "org/model",
      "bias": "none",
      "fan_in_fan_out": false,
      "inference_mode": true,
      "lora_alpha": 8.5,
      "lora_dropout": 0.1,
      "peft_type": "LORA",
      "r": 4,
      "target_modules": [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
      ],
      "task_type": "CAUSAL_LM",
    }
  `);
});

test('an adapter of some layers says which', async () => {
  const { config } = await openCheckpoint(fixture('llama-gqa-tied'), { cacheDir: folder });
  const lora = { rank: 2, alpha: 4, dropout: 0, targetModules: projections, layers: [0, 3] };
  const adapter = { config: lora, tensors: initialAdapter(config, lora, 1) };
  expect([...adapter.tensors.keys()].every((name) => /layers\.[03]\./.test(name))).toBe(true);
  const directory = join(folder, 'some');
  await writeAdapter(directory, adapter, 'org/model');
  expect(await readAdapter(directory)).toEqual(adapter);
  expect(readJson(join(directory, 'adapter_config.json'))).toMatchObject({ layers_to_transform: [0, 3] });
});

test('a configuration as peft 0.21 writes it is read', async () => {
  const directory = join(folder, 'complete');
  cpSync(join(fixture('llama-gqa-tied'), 'adapter'), directory, { recursive: true });
  const absent = [
    [
      'alora_invocation_tokens',
      'arrow_config',
      'auto_mapping',
      'corda_config',
      'eva_config',
      'exclude_modules',
    ],
    ['layer_replication', 'layers_pattern', 'layers_to_transform', 'megatron_config', 'modules_to_save'],
    ['revision', 'target_parameters', 'trainable_token_indices', 'use_bdlora'],
  ].flat();
  const settings = {
    ...Object.fromEntries(absent.map((name) => [name, null])),
    alpha_pattern: {},
    rank_pattern: {},
    loftq_config: {},
    init_lora_weights: true,
    lora_bias: false,
    megatron_core: 'megatron.core',
    peft_version: '0.21.2',
    qalora_group_size: 16,
    use_dora: false,
    use_qalora: false,
    use_rslora: false,
  };
  const file = join(directory, 'adapter_config.json');
  writeFileSync(file, JSON.stringify({ ...settings, ...readJson<object>(file) }));
  expect(await readAdapter(directory)).toEqual(await readAdapter(join(fixture('llama-gqa-tied'), 'adapter')));
});

test("tensors of PEFT's own file survive byte by byte", async () => {
  const source = join(fixture('llama-gqa-tied'), 'adapter');
  const target = join(folder, 'again');
  await writeAdapter(target, await readAdapter(source), '..');
  // Behind the header, whose spaces differ.
  const data = (directory: string) => {
    const bytes = readFileSync(join(directory, 'adapter_model.safetensors'));
    return bytes.subarray(8 + Number(bytes.readBigUInt64LE()));
  };
  expect(data(target)).toEqual(data(source));
});

describe('refused', () => {
  const changed = (change: Record<string, unknown>) => {
    const directory = join(folder, `config-${Object.keys(change).join()}-${Object.values(change).join()}`);
    cpSync(join(fixture('llama-gqa-tied'), 'adapter'), directory, { recursive: true });
    const file = join(directory, 'adapter_config.json');
    writeFileSync(file, JSON.stringify({ ...readJson<object>(file), ...change }));
    return directory;
  };

  test.each([
    [{ use_dora: true }, 'DoRA is not supported'],
    [{ use_rslora: true }, 'rank-stabilised LoRA is not supported'],
    [{ use_qalora: true }, 'QALoRA is not supported'],
    [{ use_bdlora: { nblocks: 2 } }, 'BD-LoRA is not supported'],
    [{ alora_invocation_tokens: [1, 2] }, 'activated LoRA is not supported'],
    [{ layer_replication: [[0, 2]] }, '→ at layer_replication'],
    [{ peft_type: 'IA3' }, 'only LoRA adapters are supported'],
    [{ modules_to_save: ['lm_head'] }, '→ at modules_to_save'],
    [{ rank_pattern: { q_proj: 2 } }, '→ at rank_pattern'],
    [{ alpha_pattern: { q_proj: 2 } }, '→ at alpha_pattern'],
    [{ bias: 'all' }, '→ at bias'],
    [{ init_lora_weights: 'pissa' }, 'adapters that change the base weights (PiSSA'],
    [{ kasa_config: { beta: 1 } }, 'KaSA is not supported'],
    [{ layers_to_transform: [0] }, 'is there, but layers_to_transform is 0'],
    [{ layers_to_transform: 'all' }, '→ at layers_to_transform'],
    [{ exclude_modules: ['v_proj'] }, '→ at exclude_modules'],
    [{ lora_dropout: 1 }, '→ at lora_dropout'],
    [{ fan_in_fan_out: true }, '→ at fan_in_fan_out'],
    [{ target_modules: ['lm_head'] }, '→ at target_modules'],
    [{ target_modules: 'all-linear' }, 'q_proj, k_proj, v_proj'],
    [{ r: 0 }, '→ at r'],
  ])('%j', async (change, message) => {
    await expect(readAdapter(changed(change))).rejects.toThrow(message);
  });

  test('several at once', async () => {
    const reading = readAdapter(changed({ use_dora: true, use_rslora: true }));
    await expect(reading).rejects.toThrow(/DoRA[\s\S]*rank-stabilised/);
  });

  test('a rank that its tensors do not have', async () => {
    await expect(readAdapter(changed({ r: 3 }))).rejects.toThrow(/lora_A.weight" is \[4,32\], r is 3/);
  });

  test('modules without tensors, and tensors of other modules', async () => {
    const more = readAdapter(changed({ target_modules: ['q_proj', 'v_proj', 'k_proj'] }));
    await expect(more).rejects.toThrow('target_modules has k_proj, but there is no tensor of it');
    const fewer = readAdapter(changed({ target_modules: ['q_proj'] }));
    await expect(fewer).rejects.toThrow(/v_proj.lora_A.weight" is there, but target_modules is q_proj/);
  });

  test('a half without the other, and what is no LoRA tensor', async () => {
    const directory = changed({ r: 2 });
    const name = 'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight';
    await writeSafetensors(
      join(directory, 'adapter_model.safetensors'),
      new Map([
        [name, float32([1, 2], [2, 1])],
        ['base_model.model.lm_head.weight', float32([1], [1])],
      ]),
    );
    const reading = readAdapter(directory);
    await expect(reading).rejects.toThrow(`"${name}" has no "${name.replace('lora_A', 'lora_B')}"`);
    await expect(reading).rejects.toThrow('"base_model.model.lm_head.weight" is no LoRA tensor');
  });

  test('a folder that is none', async () => {
    const empty = join(folder, 'empty');
    mkdirSync(empty);
    await expect(readAdapter(empty)).rejects.toThrow('is this a PEFT folder?');
    cpSync(join(fixture('llama-gqa-tied'), 'adapter', 'adapter_config.json'), join(empty, files[0]!));
    await expect(readAdapter(empty)).rejects.toThrow('adapter_model.safetensors: no such file');
    writeFileSync(join(empty, files[0]!), '{');
    await expect(readAdapter(empty)).rejects.toThrow('adapter_config.json is not valid JSON');
  });
});
