// Item sequences as the feeds of an encoder's program: padded on the right, with the masks of what each token may read.
import { float32, int64, type Tensor } from '@fellrec/graph';
import type { RecformerConfig } from './config.ts';

/** The input that a history, or one item, becomes. All three are as long as the sequence. */
export interface ItemSequence {
  readonly ids: readonly number[];
  readonly tokenTypes: readonly number[];
  readonly itemPositions: readonly number[];
}

/**
 * How tokens read each other: within the window by a mask over all pairs (`dense`) or in blocks (`blocks`), with the
 * first token reading everything; or every token everything, as a plain encoder (`full`).
 */
export type AttentionForm = 'dense' | 'blocks' | 'full';

/** Below any score, yet finite: a softmax gives these places exactly 0. */
const masked = -1e9;
/** From this length on blocks are faster than a dense mask: `bench/recformer.ts --attention`. */
const blocksFrom = 320;

/** Whether windows can be computed in blocks: those of one layer have to be parts of another's. */
export function blocksFit({ attentionWindows }: RecformerConfig): boolean {
  const widest = Math.max(...attentionWindows);
  return attentionWindows.every((window) => widest % window === 0);
}

/** Which form is faster for sequences of this length. */
export function attentionForm(length: number, config: RecformerConfig): AttentionForm {
  const long = length >= Math.max(blocksFrom, 3 * Math.max(...config.attentionWindows));
  return long && blocksFit(config) ? 'blocks' : 'dense';
}

/** The mask of layers with a window; 0 is that of `full`. */
export const maskName = (window: number): string => `mask.${window}`;

export interface EncoderBatch {
  /** ids, positions, tokenTypes, itemPositions, firstRows, firstMask, share and masks, as `programs.ts` wants them. */
  readonly feeds: Record<string, Tensor>;
  readonly time: number;
}

export function encoderBatch(
  config: RecformerConfig,
  sequences: readonly ItemSequence[],
  form: AttentionForm,
): EncoderBatch {
  const lengths = sequences.map(({ ids }) => ids.length);
  if (lengths.some((length) => length === 0)) throw new Error('model: a sequence has no token');
  for (const sequence of sequences) assertKnown(config, sequence);
  const longest = Math.max(...lengths);
  if (longest > config.positionCount - 2)
    throw new Error(
      `model: a sequence has ${longest} tokens, the position table is for ${config.positionCount - 2}`,
    );
  const step = lengthStepOf(config, form);
  const time = Math.ceil(longest / step) * step;
  const batch = sequences.length;
  const padded = (of: (sequence: ItemSequence) => readonly number[], padding: number) =>
    int64(
      sequences.flatMap((sequence) => [
        ...of(sequence),
        ...Array.from({ length: time - sequence.ids.length }, () => padding),
      ]),
      [batch, time],
    );
  return {
    time,
    feeds: {
      ids: padded(({ ids }) => ids, config.padId),
      // Padding reads the row before the first token's, as RoBERTa's.
      positions: padded(({ ids }) => ids.map((_, m) => m + 2), 1),
      tokenTypes: padded(({ tokenTypes }) => tokenTypes, config.tokenTypeCount - 1),
      itemPositions: padded(({ itemPositions }) => itemPositions, config.itemPositionCount - 1),
      ...layoutFeeds(config, lengths, time, form),
    },
  };
}

/** Padded lengths are multiples of it: blocks are whole ones. */
export function lengthStepOf({ attentionWindows }: RecformerConfig, form: AttentionForm): number {
  return form === 'blocks' ? Math.max(...attentionWindows) : 1;
}

/** What follows from the sequences' lengths alone: firstRows, firstMask, share and masks. */
export function layoutFeeds(
  config: RecformerConfig,
  lengths: readonly number[],
  time: number,
  form: AttentionForm,
): Record<string, Tensor> {
  const batch = lengths.length;
  const firstMask = new Float32Array(batch * time);
  const share = new Float32Array(batch * time);
  lengths.forEach((length, b) => {
    firstMask.fill(masked, b * time + length, (b + 1) * time);
    share.fill(1 / length, b * time, b * time + length);
  });
  return {
    firstRows: int64(
      lengths.map((_, b) => b * time),
      [batch],
    ),
    firstMask: float32(firstMask, [batch, 1, time]),
    share: float32(share, [batch, 1, time]),
    ...(form === 'full'
      ? { [maskName(0)]: denseMask(lengths, time, undefined) }
      : Object.fromEntries(
          [...new Set(config.attentionWindows)].map((window) => [
            maskName(window),
            form === 'blocks' ? windowMask(lengths, time, window) : denseMask(lengths, time, window),
          ]),
        )),
  };
}

/** @throws if a row of a table is asked for that it does not have. */
export function assertKnown(config: RecformerConfig, { ids, tokenTypes, itemPositions }: ItemSequence): void {
  for (const [what, values, rows] of [
    ['token', ids, config.vocabularySize],
    ['token type', tokenTypes, config.tokenTypeCount],
    ['item position', itemPositions, config.itemPositionCount],
  ] as const) {
    const outside = values.find((row) => !(Number.isInteger(row) && row >= 0 && row < rows));
    if (outside !== undefined)
      throw new Error(`model: there is no ${what} ${outside}, the model has ${rows}; is this its tokenizer?`);
  }
}

/** [batch, 1, time, time]; without a window every token may read every real one. */
function denseMask(lengths: readonly number[], time: number, window: number | undefined): Tensor {
  const mask = new Float32Array(lengths.length * time * time).fill(masked);
  lengths.forEach((length, b) => {
    for (let t = 0; t < time; t++) {
      const row = (b * time + t) * time;
      const [from, to] = window === undefined ? [0, length] : [t - window / 2, t + window / 2 + 1];
      mask.fill(0, row + Math.max(0, from), row + Math.max(0, Math.min(length, to)));
      mask[row] = 0;
    }
  });
  return float32(mask, [lengths.length, 1, time, time]);
}

/**
 * [batch, 1, blocks, window, 2 window + 1]: of the 2 window tokens around a block and of the first token, which sits in
 * the last place and is left out of the others.
 */
function windowMask(lengths: readonly number[], time: number, window: number): Tensor {
  const blocks = time / window;
  const width = 2 * window + 1;
  const mask = new Float32Array(lengths.length * time * width).fill(masked);
  lengths.forEach((length, b) => {
    for (let t = 0; t < time; t++) {
      const row = (b * time + t) * width;
      const begin = t - (t % window) - window / 2; // of the tokens around the block
      const from = Math.max(1, t - window / 2);
      const to = Math.min(length, t + window / 2 + 1);
      if (to > from) mask.fill(0, row + from - begin, row + to - begin);
      mask[row + width - 1] = 0;
    }
  });
  return float32(mask, [lengths.length, 1, blocks, window, width]);
}
