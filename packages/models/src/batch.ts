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
/** Padded lengths are multiples of it. */
const lengthStep = 8;
/** Sequences computed at once. */
export const defaultBatch = 8;

/**
 * How many tokens all sequences begin with alike, so far as they need computing only once: every sequence keeps a token
 * of its own, and a token that predicts a label stays with it. 0 for a single sequence, or one padded by the caller.
 */
export function sharedPrefix(sequences: readonly (Tokens & Partial<Pick<Sequence, 'labels'>>)[]): number {
  const [first, ...others] = sequences;
  if (!first || others.length === 0 || sequences.some(({ attention }) => attention)) return 0;
  let length = Number.POSITIVE_INFINITY;
  for (const { ids, labels } of sequences) {
    const label = labels?.findIndex((label, t) => t > 0 && label !== ignoredLabel) ?? -1;
    length = Math.min(length, (label === -1 ? ids.length : label) - 1);
  }
  for (const { ids } of others) {
    let same = 0;
    while (same < length && ids[same] === first.ids[same]) same++;
    length = same;
  }
  return length;
}

/** Sequences side by side, padded to `time`, behind `prefix` tokens that are computed elsewhere. */
export interface Batch {
  /** ids, positions, mask and rotary tables, as `sequenceContext` of `programs.ts` wants them. */
  readonly feeds: Record<string, Tensor>;
  readonly time: number;
  readonly prefix: number;
}

/** @throws if a sequence has no token or more labels than tokens, or one of either that the model does not know. */
export function batchOf(
  config: LlamaConfig,
  sequences: readonly (Tokens & Partial<Pick<Sequence, 'labels'>>)[],
  { prefix = 0, step = lengthStep, time: given }: { prefix?: number; step?: number; time?: number } = {},
): Batch {
  for (const { ids, labels = [] } of sequences) {
    if (ids.length === 0) throw new Error('model: a sequence has no token');
    if (labels.length > ids.length)
      throw new Error(`model: a sequence has ${labels.length} labels for ${ids.length} tokens`);
    assertKnown(config, 'token', ids);
    assertKnown(
      config,
      'label',
      labels.filter((label) => label !== ignoredLabel),
    );
  }
  const longest = Math.max(...sequences.map(({ ids }) => ids.length)) - prefix;
  const asItIs = sequences.some(({ attention }) => attention);
  const time = given ?? (asItIs ? longest : Math.ceil(longest / step) * step);
  const batch = sequences.length;
  const ids = new BigInt64Array(batch * time);
  const positions = new BigInt64Array(batch * time);
  const groups = config.headCount / config.keyValueHeadCount;
  const maskSize = time * (prefix + time);
  const mask = new Float32Array(batch * groups * maskSize);
  sequences.forEach((sequence, b) => {
    let before = prefix;
    for (let t = 0; t < time; t++) {
      ids[b * time + t] = BigInt(sequence.ids[prefix + t] ?? 0);
      positions[b * time + t] = BigInt(before);
      if (prefix + t < sequence.ids.length && sequence.attention?.[t] !== 0) before++;
    }
    for (let query = 0; query < time; query++) {
      const row = b * groups * maskSize + query * (prefix + time);
      mask.fill(masked, row + prefix + query + 1, row + prefix + time);
      sequence.attention?.forEach((real, key) => {
        if (real === 0) mask[row + key] = masked;
      });
    }
    // Every head of a group sees the same.
    const first = b * groups * maskSize;
    for (let group = 1; group < groups; group++)
      mask.copyWithin(first + group * maskSize, first, first + maskSize);
  });
  const feeds: Record<string, Tensor> = {
    ids: { dtype: 'int64', dims: [batch, time], data: ids },
    positions: { dtype: 'int64', dims: [batch, time], data: positions },
    mask: float32(mask, [batch, 1, groups * time, prefix + time]),
    ...rotaryTables(config, prefix + time),
  };
  return { feeds, time, prefix };
}

function assertKnown({ vocabularySize }: LlamaConfig, what: string, ids: readonly number[]): void {
  const outside = ids.find((id) => !(Number.isInteger(id) && id >= 0 && id < vocabularySize));
  if (outside !== undefined)
    throw new Error(
      `model: there is no ${what} ${outside}, the model has ${vocabularySize}; is this its tokenizer?`,
    );
}

/** `rows` of the last token of each sequence. */
export function lastRows(sequences: readonly Tokens[], { time, prefix }: Batch): Tensor {
  return int64(
    sequences.map(({ ids }, b) => b * time + ids.length - 1 - prefix),
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
  { time, prefix }: Batch,
  total: number,
): Record<string, Tensor> {
  const rows: number[] = [];
  const labels: number[] = [];
  sequences.forEach((sequence, b) => {
    sequence.labels.forEach((label, t) => {
      if (t === 0 || label === ignoredLabel) return;
      rows.push(b * time + t - 1 - prefix);
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

/** Rows of a dropout mask that draw from a stream of their own, so that no result depends on what else is in a batch. */
export interface MaskedRows {
  readonly stream: string | number;
  /** Tokens that it has in a batch, and how many rows lie between its first and the next one's. */
  readonly tokens: number;
  readonly stride: number;
  readonly labels: number;
}

/** Seeded dropout masks: 0 with probability `rate`, by the distance from one dropped element to the next. */
export function dropoutFeeds(
  masks: ReadonlyMap<string, Value>,
  rate: number,
  sequences: readonly MaskedRows[],
  seed: readonly [number, ...(string | number)[]],
): Feeds {
  const logKeep = Math.log(1 - rate);
  return Object.fromEntries(
    [...masks].map(([name, { shape }]) => {
      const width = shape[1] as number;
      const ofLabels = shape[0] === 'labels';
      const rows = sequences.reduce((n, { stride, labels }) => n + (ofLabels ? labels : stride), 0);
      const data = new Uint8Array(rows * width).fill(1);
      let from = 0;
      for (const { stream, tokens, stride, labels } of sequences) {
        const { uniform } = random(...seed, stream, name);
        const gap = () => Math.floor(Math.log(1 - uniform()) / logKeep);
        const end = from + (ofLabels ? labels : tokens) * width;
        for (let i = from + gap(); i < end; i += 1 + gap()) data[i] = 0;
        from += (ofLabels ? labels : stride) * width;
      }
      return [name, { dtype: 'bool', dims: [rows, width], data }];
    }),
  );
}

/** Parts of at most `size`, in order. */
export function chunks<T>(items: readonly T[], size: number): T[][] {
  if (!(size >= 1)) throw new Error(`model: batches of ${size} sequences; at least 1`);
  return Array.from({ length: Math.ceil(items.length / size) }, (_, i) =>
    items.slice(i * size, (i + 1) * size),
  );
}

/** Adds a gradient to the sum of its name, in the memory of the first one. */
export function addTo(sums: Map<string, Float32Tensor>, name: string, tensor: Tensor): void {
  const known = sums.get(name);
  if (!known) sums.set(name, tensor as Float32Tensor);
  else {
    const added = tensor.data as Float32Array;
    for (let i = 0; i < known.data.length; i++) known.data[i]! += added[i]!;
  }
}
