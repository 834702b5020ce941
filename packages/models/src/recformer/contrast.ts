// Labelled sequences as parts that are computed one after another, each with what its loss is fed.
import { type Float32Tensor, float32, int64, type Tensor } from '@fellrec/graph';
import { chunks } from '../batch.ts';
import type { TokenCounts } from '../language-model.ts';
import type { ItemSequence } from './batch.ts';
import type { Contrast } from './programs.ts';

export interface LabelledSequence {
  readonly sequence: ItemSequence;
  /** The item that is to be nearest, a row of the items' vectors. */
  readonly label: number;
  /** The items that it is compared with, the label among them; absent: all. As many for every sequence of a batch. */
  readonly candidates?: readonly number[];
}

export interface ContrastOptions {
  /** Unit vectors of the items, [items, d]; held constant. */
  readonly items: Float32Tensor;
  readonly temperature: number;
  readonly microBatch?: number;
}

/** Sequences that a loss without gradients is computed of at once. */
export const defaultBatch = 8;

/** Sequences of like lengths. */
export interface ContrastPart {
  readonly sequences: readonly ItemSequence[];
  /** Their places in the batch: these name the streams of dropout. */
  readonly places: readonly number[];
  readonly contrast: Contrast;
  /** What `contrastiveLoss` reads; the losses of all parts add up to the mean over the batch. */
  readonly feeds: Record<string, Tensor>;
}

/** @throws if there is no sequence, or labels, candidates and items do not fit each other. */
export function contrastParts(
  batch: readonly LabelledSequence[],
  { items, temperature, microBatch = batch.length }: ContrastOptions,
): ContrastPart[] {
  if (batch.length === 0) throw new Error('model: the batch has no sequence; there is no loss');
  assertLabels(batch, items.dims[0]!);
  const byLength = batch
    .map((labelled, place) => ({ ...labelled, place }))
    .sort((a, b) => a.sequence.ids.length - b.sequence.ids.length);
  return chunks(byLength, microBatch).map((part) => ({
    sequences: part.map(({ sequence }) => sequence),
    places: part.map(({ place }) => place),
    contrast: { temperature, candidates: part[0]!.candidates?.length ?? 'all' },
    feeds: { items, ...labelFeeds(part, batch.length) },
  }));
}

/** Tokens of a batch, of which with padding `computed` were computed. */
export function tokenCounts(batch: readonly LabelledSequence[], computed: number): TokenCounts {
  const real = batch.reduce((n, { sequence }) => n + sequence.ids.length, 0);
  return { real, computed, padding: computed - real };
}

/** @throws if a label or a candidate is no item, a label is no candidate, or candidates are of different numbers. */
function assertLabels(batch: readonly LabelledSequence[], items: number): void {
  const size = batch[0]!.candidates?.length;
  for (const { label, candidates } of batch) {
    if (candidates?.length !== size)
      throw new Error('model: sequences of one batch are compared with different numbers of candidates');
    const outside = [label, ...(candidates ?? [])].find(
      (item) => !(Number.isInteger(item) && item >= 0 && item < items),
    );
    if (outside !== undefined) throw new Error(`model: there is no item ${outside} among ${items}`);
    if (candidates && !candidates.includes(label))
      throw new Error(`model: item ${label} is the label, but none of the candidates`);
  }
}

function labelFeeds(part: readonly LabelledSequence[], total: number): Record<string, Tensor> {
  const size = part[0]!.candidates?.length;
  const labels = part.map(({ label, candidates }) => candidates?.indexOf(label) ?? label);
  return {
    labels: int64(labels, [part.length]),
    weights: float32(new Float32Array(part.length).fill(1 / total), [part.length]),
    ...(size !== undefined && {
      candidates: int64(
        part.flatMap(({ candidates }) => [...candidates!]),
        [part.length, size],
      ),
    }),
  };
}
