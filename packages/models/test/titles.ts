// Titles to rank after prompts, and their log-probabilities computed plainly: one sequence at a time, by its logits.
import { type Float32Tensor, float32, type NamedTensors, random } from '@fellrec/graph';
import type { LlamaConfig } from '../src/checkpoint/config.ts';
import type { Adapter, WholeLanguageModel } from '../src/language-model.ts';
import { initialAdapter, type LoraConfig } from '../src/lora.ts';

export const end = 2;

/** Titles of a few words that often begin alike, some equal, each with the end token. */
export function titles(count: number, seed: number): number[][] {
  const draw = random(seed, 'titles');
  return Array.from({ length: count }, () => [
    ...Array.from({ length: 1 + draw.integer(7) }, (_, t) => 259 + draw.integer(t < 2 ? 6 : 200)),
    end,
  ]);
}

/** Prompts that begin with the same tokens. */
export function prompts(count: number, seed: number): number[][] {
  const draw = random(seed, 'prompts');
  const tokens = (length: number) => Array.from({ length }, () => 259 + draw.integer(250));
  const beginning = [1, ...tokens(9)];
  return Array.from({ length: count }, () => [...beginning, ...tokens(1 + draw.integer(20))]);
}

/** All halves random: it changes what the model says. */
export function randomAdapter(config: LlamaConfig, lora: LoraConfig): Adapter {
  const tensors: NamedTensors = new Map(
    [...initialAdapter(config, lora, 1)].map(([name, { dims, data }]): [string, Float32Tensor] => {
      const { normal } = random(5, name);
      const values = Float32Array.from(data, () => 0.1 * normal());
      return [name, float32(values, dims)];
    }),
  );
  return { config: lora, tensors };
}

/** log p(continuation | prompt), in float64 from the logits. */
export async function plainLogProbability(
  model: WholeLanguageModel,
  prompt: readonly number[],
  continuation: readonly number[],
  adapter?: Adapter,
): Promise<number> {
  const { logits } = await model.trace([{ ids: [...prompt, ...continuation] }], adapter);
  const [, vocabulary] = logits!.dims as [number, number];
  return continuation.reduce((sum, token, t) => {
    const first = (prompt.length - 1 + t) * vocabulary;
    const row = Float64Array.from(logits!.data.subarray(first, first + vocabulary) as Float32Array);
    const largest = Math.max(...row);
    const normaliser = largest + Math.log(row.reduce((total, x) => total + Math.exp(x - largest), 0));
    return sum + row[token]! - normaliser;
  }, 0);
}
