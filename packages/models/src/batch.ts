// Token sequences as the feeds of a program: padded on the right, rounded up so that few shapes occur.
import {
  type Feeds,
  type Float32Tensor,
  float32,
  int64,
  random,
  type Tensor,
  type Value,
} from '@fellrec/graph';
import type { LlamaConfig } from './checkpoint/config.ts';
import { rotaryTables } from './llama.ts';

/** Tokens and, at the same places, the labels that they are to be predicted as; -100 is not predicted. */
export interface Sequence extends Tokens {
  readonly labels: readonly number[];
}

export interface Tokens {
  readonly ids: readonly number[];
  /**
   * 1 for real tokens, 0 for padding that `ids` already holds. A batch padded by the caller is computed as it stands,
   * as transformers' eager attention does: a token that may see nothing sees everything alike.
   */
  readonly attention?: readonly number[];
}

export const ignoredLabel = -100;
/** Below any score, yet finite: a softmax gives these places exactly 0. */
const masked = -1e9;
const lengthStep = 16;

/** ids, positions, mask and rotary tables of a batch, as `sequenceContext` of `programs.ts` wants them. */
export function sequenceFeeds(
  config: LlamaConfig,
  sequences: readonly Tokens[],
): { readonly feeds: Record<string, Tensor> /** Padded length. */; readonly time: number } {
  const longest = Math.max(...sequences.map(({ ids }) => ids.length));
  const asItIs = sequences.some(({ attention }) => attention);
  const time = asItIs ? longest : Math.ceil(longest / lengthStep) * lengthStep;
  const batch = sequences.length;
  const ids = new BigInt64Array(batch * time);
  const positions = new BigInt64Array(batch * time);
  const mask = new Float32Array(batch * time * time);
  sequences.forEach((sequence, b) => {
    let before = 0;
    for (let t = 0; t < time; t++) {
      ids[b * time + t] = BigInt(sequence.ids[t] ?? 0);
      positions[b * time + t] = BigInt(before);
      if (t < sequence.ids.length && sequence.attention?.[t] !== 0) before++;
    }
    for (let query = 0; query < time; query++) {
      const row = (b * time + query) * time;
      mask.fill(masked, row + query + 1, row + time);
      sequence.attention?.forEach((real, key) => {
        if (real === 0) mask[row + key] = masked;
      });
    }
  });
  const feeds: Record<string, Tensor> = {
    ids: { dtype: 'int64', dims: [batch, time], data: ids },
    positions: { dtype: 'int64', dims: [batch, time], data: positions },
    mask: float32(mask, [batch, 1, 1, time, time]),
    ...rotaryTables(config, time),
  };
  return { feeds, time };
}

/** `rows` of the last token of each sequence. */
export function lastRows(sequences: readonly Tokens[], time: number): Tensor {
  return int64(
    sequences.map(({ ids }, b) => b * time + ids.length - 1),
    [sequences.length],
  );
}

/** Number of tokens of a batch that are predicted (the first of a sequence never is). */
export function labelCount(sequences: readonly Sequence[]): number {
  return sequences.reduce(
    (n, { labels }) => n + labels.slice(1).filter((label) => label !== ignoredLabel).length,
    0,
  );
}

/** Feeds of a loss: the labels with weight 1 / `total` each. */
export function labelFeeds(
  sequences: readonly Sequence[],
  time: number,
  total: number,
): Record<string, Tensor> {
  const rows: number[] = [];
  const labels: number[] = [];
  sequences.forEach((sequence, b) => {
    sequence.labels.forEach((label, t) => {
      if (t === 0 || label === ignoredLabel) return;
      rows.push(b * time + t - 1);
      labels.push(label);
    });
  });
  return {
    rows: int64(rows, [rows.length]),
    labels: int64(labels, [labels.length]),
    weights: float32(new Float32Array(labels.length).fill(1 / total), [labels.length]),
  };
}

/** 0 for a prompt's tokens, far below 0 for its padding. [users, 1, 1, time] */
export function promptMask(lengths: readonly number[], time: number): Float32Tensor {
  const mask = new Float32Array(lengths.length * time);
  lengths.forEach((length, user) => {
    mask.fill(masked, user * time + length, (user + 1) * time);
  });
  return float32(mask, [lengths.length, 1, 1, time]);
}

/** Seeded dropout masks of one step: 0 with probability `rate`, by the distance from one dropped element to the next. */
export function dropoutFeeds(
  masks: ReadonlyMap<string, Value>,
  rate: number,
  sizes: { readonly tokens: number; readonly labels: number },
  seed: readonly [number, ...(string | number)[]],
): Feeds {
  const logKeep = Math.log(1 - rate);
  return Object.fromEntries(
    [...masks].map(([name, { shape }]) => {
      const dims = [shape[0] === 'labels' ? sizes.labels : sizes.tokens, shape[1] as number];
      const data = new Uint8Array(dims[0]! * dims[1]!).fill(1);
      const { uniform } = random(...seed, name);
      const gap = () => Math.floor(Math.log(1 - uniform()) / logKeep);
      for (let i = gap(); i < data.length; i += 1 + gap()) data[i] = 0;
      return [name, { dtype: 'bool', dims, data }];
    }),
  );
}
