// A RecFormer that has learned nothing: for examples and tests.
import { elementCount, float32, random } from '@fellrec/graph';
import { writeRecformer } from './checkpoint.ts';
import { type RecformerConfig, recformerTensors } from './config.ts';

/** BERT's spread of initial weights. */
const deviation = 0.02;

/** Writes a checkpoint with normal weights, biases of 0 and norms that change nothing. It still needs a tokenizer. */
export async function writeRandomRecformer(
  directory: string,
  config: RecformerConfig,
  seed: number,
): Promise<void> {
  const tensors = [...recformerTensors(config)].map(([name, dims]) => {
    const { normal } = random(seed, 'recformer', name);
    const value = name.endsWith('.bias')
      ? () => 0
      : name.endsWith('LayerNorm.weight')
        ? () => 1
        : () => deviation * normal();
    return [name, float32(Float32Array.from({ length: elementCount(dims) }, value), dims)] as const;
  });
  await writeRecformer(directory, config, new Map(tensors));
}
