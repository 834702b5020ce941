// Adapters as PEFT folders: adapter_config.json and adapter_model.safetensors, which transformers and peft load.
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Float32Tensor } from '@fellrec/graph';
import { z } from 'zod';
import { readSafetensors, writeSafetensors } from './checkpoint/safetensors.ts';
import type { Adapter } from './language-model.ts';
import { encoderProjections, type LoraConfig, layerOf, loraName, projections } from './lora.ts';

const targets = [...projections, ...encoderProjections] as const;

const schema = z.looseObject({
  peft_type: z.literal('LORA', 'only LoRA adapters are supported'),
  r: z.number().int().positive().max(4096),
  lora_alpha: z.number().positive(),
  lora_dropout: z.number().min(0).lt(1).default(0),
  target_modules: z.array(z.enum(targets), `a list of ${targets.join(', ')} is supported`).min(1),
  bias: z.literal('none').default('none'),
  fan_in_fan_out: z.literal(false).default(false),
  use_dora: z.literal(false, 'DoRA is not supported').default(false),
  use_rslora: z.literal(false, 'rank-stabilised LoRA is not supported').default(false),
  use_qalora: z.literal(false, 'QALoRA is not supported').nullish(),
  // The others replace the base weights by a residual.
  init_lora_weights: z
    .union(
      [z.boolean(), z.enum(['gaussian', 'eva', 'orthogonal'])],
      'adapters that change the base weights (PiSSA, OLoRA, CorDA, LoftQ, ...) are not supported',
    )
    .nullish(),
  kasa_config: z.null('KaSA is not supported').optional(),
  layers_to_transform: z
    .union([z.number().int().nonnegative(), z.array(z.number().int().nonnegative()).min(1)])
    .nullish(),
  layers_pattern: z.union([z.null(), z.array(z.string()).length(0)], 'is not supported').nullish(),
  exclude_modules: z.union([z.null(), z.array(z.string()).length(0)], 'is not supported').nullish(),
  use_bdlora: z.literal(false, 'BD-LoRA is not supported').nullish(),
  alora_invocation_tokens: z.null('activated LoRA is not supported').optional(),
  layer_replication: z.null('is not supported').optional(),
  modules_to_save: z.union([z.null(), z.array(z.string()).length(0)], 'is not supported').nullish(),
  rank_pattern: z.record(z.string(), z.never(), 'is not supported').nullish(),
  alpha_pattern: z.record(z.string(), z.never(), 'is not supported').nullish(),
});

/** @throws if a file is missing, asks for what LoRA here does not compute, or halves are missing or of the wrong rank. */
export async function readAdapter(directory: string): Promise<Adapter> {
  const file = join(directory, 'adapter_config.json');
  const text = await readFile(file, 'utf8').catch((cause) => {
    throw new Error(`adapter: cannot read ${file}; is this a PEFT folder?`, { cause });
  });
  const parsed = schema.safeParse(parseJson(text, file));
  if (!parsed.success) throw new Error(`adapter: ${file}:\n${z.prettifyError(parsed.error)}`);
  const { r: rank, lora_alpha: alpha, lora_dropout: dropout, target_modules: targetModules } = parsed.data;
  const chosen = parsed.data.layers_to_transform;
  const layers = typeof chosen === 'number' ? [chosen] : chosen;
  const found = await readSafetensors(join(directory, 'adapter_model.safetensors'));
  const problems: string[] = [];
  const tensors = new Map<string, Float32Tensor>();
  const adapted = new Set<string>();
  for (const [name, tensor] of found) {
    const match =
      /^base_model\.model\.(?:model\.)?((?:layers|encoder\.layer)\.\d+\.[\w.]+)\.lora_([AB])\.weight$/.exec(
        name,
      );
    if (!match || loraName(match[1]!, match[2] as 'A' | 'B') !== name || tensor.dtype !== 'float32') {
      problems.push(`"${name}" is no LoRA tensor`);
      continue;
    }
    const [, path, half] = match as unknown as [string, string, 'A' | 'B'];
    const projection = path.split('.').at(-1)!;
    adapted.add(projection);
    if (!targetModules.some((target) => target === projection))
      problems.push(`"${name}" is there, but target_modules is ${targetModules.join(', ')}`);
    if (layers && !layers.includes(layerOf(name)!))
      problems.push(`"${name}" is there, but layers_to_transform is ${layers.join(', ')}`);
    const other = loraName(path, half === 'A' ? 'B' : 'A');
    if (!found.has(other)) problems.push(`"${name}" has no "${other}"`);
    if (tensor.dims.length !== 2 || tensor.dims[half === 'A' ? 0 : 1] !== rank)
      problems.push(`"${name}" is [${tensor.dims}], r is ${rank}`);
    tensors.set(name, tensor);
  }
  for (const target of targetModules)
    if (!adapted.has(target)) problems.push(`target_modules has ${target}, but there is no tensor of it`);
  if (problems.length > 0) throw new Error(`adapter: ${directory}:\n  ${problems.join('\n  ')}`);
  return { config: { rank, alpha, dropout, targetModules, ...(layers && { layers }) }, tensors };
}

function parseJson(text: string, file: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new Error(`adapter: ${file} is not valid JSON: ${(cause as Error).message}`, { cause });
  }
}

/** Writes (or replaces) an adapter's two files. `baseModel` is what transformers will look for. */
export async function writeAdapter(
  directory: string,
  { config, tensors }: Adapter,
  baseModel: string,
): Promise<void> {
  await mkdir(directory, { recursive: true });
  await writeSafetensors(join(directory, 'adapter_model.safetensors'), tensors);
  await writeFile(
    join(directory, 'adapter_config.json'),
    `${JSON.stringify(peftConfig(config, baseModel), undefined, 2)}\n`,
  );
}

function peftConfig({ rank, alpha, dropout, targetModules, layers }: LoraConfig, baseModel: string): object {
  return {
    peft_type: 'LORA',
    task_type: encoderProjections.some((name) => targetModules.includes(name))
      ? 'FEATURE_EXTRACTION'
      : 'CAUSAL_LM',
    base_model_name_or_path: baseModel,
    r: rank,
    lora_alpha: alpha,
    lora_dropout: dropout,
    target_modules: targetModules,
    ...(layers && { layers_to_transform: layers }),
    bias: 'none',
    fan_in_fan_out: false,
    inference_mode: true,
  };
}
