// An adapter merged into its base weights, W + (alpha / r) B A, as a checkpoint of its own; and taken out again.
import { copyFile, mkdir, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Checkpoint } from './checkpoint/checkpoint.ts';
import { configJson, type LlamaConfig } from './checkpoint/config.ts';
import { readJsonObject } from './checkpoint/json.ts';
import { assertWhole } from './checkpoint/part.ts';
import { readTensor, writeSafetensorsStream } from './checkpoint/safetensors.ts';
import type { Adapter } from './language-model.ts';
import { adaptedProjections, loraName } from './lora.ts';

/** Writes the fused checkpoint (float32 safetensors, with configuration and tokenizer) into `directory`. */
export async function fuseAdapter(
  checkpoint: Checkpoint,
  adapter: Adapter,
  directory: string,
): Promise<void> {
  await writeMerged(checkpoint, adapter, 1, directory);
}

/** The inverse: `checkpoint` is fused with `adapter`; what is written is its base, up to rounding. */
export async function unfuseAdapter(
  checkpoint: Checkpoint,
  adapter: Adapter,
  directory: string,
): Promise<void> {
  await writeMerged(checkpoint, adapter, -1, directory);
}

async function writeMerged(
  checkpoint: Checkpoint,
  adapter: Adapter,
  sign: 1 | -1,
  directory: string,
): Promise<void> {
  const { config, tensors, directory: source } = checkpoint;
  assertWhole(checkpoint, 'fusing');
  assertMadeFor(config, adapter);
  await mkdir(directory, { recursive: true });
  const names = await readdir(source);
  for (const name of names)
    if (name.endsWith('.json') && !name.startsWith('model.safetensors'))
      await copyFile(join(source, name), join(directory, name));
  // A GGUF file carries its own configuration; a config.json beside it may be missing, or hold only a part.
  if (!names.some((name) => name.startsWith('model.safetensors'))) {
    const beside = names.includes('config.json') ? await readJsonObject(join(source, 'config.json')) : {};
    const whole = { ...configJson(config), ...beside };
    await writeFile(join(directory, 'config.json'), `${JSON.stringify(whole, undefined, 2)}\n`);
  }
  const adapted = new Map(
    [...adaptedProjections(config, adapter.config).keys()].map((path) => [`model.${path}.weight`, path]),
  );
  const layout = new Map([...tensors].map(([name, { dims }]) => [name, { dtype: 'float32' as const, dims }]));
  await writeSafetensorsStream(join(directory, 'model.safetensors'), layout, async (name) => {
    const { data, dims } = await readTensor(tensors.get(name)!);
    const path = adapted.get(name);
    if (!path) return data;
    const a = adapter.tensors.get(loraName(path, 'A'))!.data;
    const b = adapter.tensors.get(loraName(path, 'B'))!.data;
    const { rank, alpha } = adapter.config;
    const [out, in_] = dims as [number, number];
    for (let o = 0; o < out; o++)
      for (let i = 0; i < in_; i++) {
        let product = 0;
        for (let r = 0; r < rank; r++) product += b[o * rank + r]! * a[r * in_ + i]!;
        data[o * in_ + i] = data[o * in_ + i]! + (sign * alpha * product) / rank;
      }
    return data;
  });
}

/** @throws listing every tensor of the adapter that the base model does not fit. */
function assertMadeFor(config: LlamaConfig, { config: lora, tensors }: Adapter): void {
  const problems: string[] = [];
  const projections = adaptedProjections(config, lora);
  for (const [path, [out, in_]] of projections)
    for (const [half, dims] of [
      ['A', [lora.rank, in_]],
      ['B', [out, lora.rank]],
    ] as const) {
      const name = loraName(path, half);
      const found = tensors.get(name)?.dims;
      if (found?.join() !== dims.join())
        problems.push(`"${name}" is ${found ? `[${found}]` : 'missing'}, the base model needs [${dims}]`);
    }
  if (tensors.size > 2 * projections.size)
    problems.push(`the adapter has ${tensors.size} tensors, the base model takes ${2 * projections.size}`);
  if (problems.length > 0)
    throw new Error(`adapter: it was made for another base model:\n  ${problems.join('\n  ')}`);
}
