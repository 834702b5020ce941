// A model run one layer at a time with its hidden states in the open: all that attacks need of an architecture.
import { type Float32Tensor, float32, freeTensor, type Runtime, zeros } from '@fellrec/graph';
import type { TokenLayout } from '@fellrec/models';
import { type CutLayers, type CutModel, cutLayers, type EmbeddedTokens, type Trained } from '@fellrec/models';
import { branching } from './branches.ts';

export interface AuditedModel {
  readonly cut: CutModel;
  readonly layers: CutLayers;
  readonly runtime: Runtime;
}

export function auditedModel(model: CutModel, runtime: Runtime): AuditedModel {
  const cut = branching(model);
  return { cut, layers: cutLayers(cut, runtime), runtime };
}

/** Sequences, and the places of each one whose states are wanted. */
export interface Selection {
  readonly sequences: readonly EmbeddedTokens[];
  readonly places: readonly (readonly number[])[];
  /** What is trained of the layers; the base if absent. */
  readonly trained?: Trained | undefined;
}

export interface AtDepth {
  /** 0: embeddings; n: after the last layer, before a language model's final norm. */
  readonly depth: number;
  /** Of each selection, [places of all its sequences in their order, d]. */
  readonly states: readonly Float32Tensor[];
}

/** Tokens computed at once. */
const batchTokens = 4096;

interface Part {
  readonly trained: Trained | undefined;
  readonly layout: TokenLayout;
  states: Float32Tensor;
  /** Rows of `states` and where they go. */
  readonly rows: readonly { readonly selection: number; readonly from: number; readonly to: number }[];
}

/**
 * The hidden states of selections at depth 0 .. `to` (default n), one depth after another. Selections of the same list of
 * sequences are computed once.
 */
export async function* depths(
  { cut, layers, runtime }: AuditedModel,
  selections: readonly Selection[],
  to: number = cut.layerCount,
): AsyncGenerator<AtDepth> {
  const counts = selections.map(({ places }) => places.reduce((n, of) => n + of.length, 0));
  const embedding = await runtime.compile(cut.embedding(), { prepack: false });
  const parts: Part[] = [];
  const offsets = selections.map(({ places }) => offsetsOf(places.map(({ length }) => length)));
  for (const same of sharing(selections)) {
    const { sequences, trained } = selections[same[0]!]!;
    for (const batch of batches(sequences)) {
      const own = batch.map((index) => sequences[index]!);
      const layout = cut.layout(own);
      const feeds = cut.embeddingFeeds(own, layout);
      const known = Object.entries(feeds).filter(([name]) => embedding.inputs.has(name));
      const { states } = await embedding.run(Object.fromEntries(known));
      const rows = same.flatMap((selection) =>
        batch.flatMap((index, b) =>
          selections[selection]!.places[index]!.map((place, i) => ({
            selection,
            from: rowOf(place, b, layout),
            to: offsets[selection]![index]! + i,
          })),
        ),
      );
      parts.push({ trained, layout, states: states as Float32Tensor, rows });
    }
  }
  await embedding.dispose();
  for (let depth = 0; ; depth++) {
    yield { depth, states: counts.map((count, s) => gathered(parts, s, count, cut.hiddenSize)) };
    if (depth === to) return;
    for (const part of parts) {
      const before = part.states;
      const { trained } = part;
      part.states = await layers.forward({ from: depth, to: depth + 1 }, before, part.layout, { trained });
      freeTensor(before);
    }
  }
}

/** The row of a sequence's place in packed states. */
export function rowOf(place: number, sequence: number, { prefix, time }: TokenLayout): number {
  return place < prefix ? place : prefix + sequence * time + place - prefix;
}

/** Sequences of like length, by their index, at most `batchTokens` tokens at once. */
function batches(sequences: readonly EmbeddedTokens[]): number[][] {
  const byLength = sequences.map((_, index) => index);
  byLength.sort((a, b) => sequences[a]!.ids.length - sequences[b]!.ids.length);
  const found: number[][] = [];
  let size = 0;
  for (const index of byLength) {
    const length = sequences[index]!.ids.length;
    if (found.length === 0 || (size + 1) * length > batchTokens) {
      found.push([]);
      size = 0;
    }
    found.at(-1)!.push(index);
    size++;
  }
  return found;
}

function gathered(parts: readonly Part[], selection: number, count: number, d: number): Float32Tensor {
  const all = zeros([count, d]);
  for (const { states, rows } of parts)
    for (const { selection: own, from, to } of rows)
      if (own === selection) all.data.set(states.data.subarray(from * d, (from + 1) * d), to * d);
  return all;
}

/** Selections by what they compute, by their number. */
function sharing(selections: readonly Selection[]): number[][] {
  const groups: number[][] = [];
  for (const [number, { sequences, trained }] of selections.entries()) {
    const group = groups.find(([first]) => {
      const other = selections[first!]!;
      return other.sequences === sequences && other.trained === trained;
    });
    if (group) group.push(number);
    else groups.push([number]);
  }
  return groups;
}

/** Where each of so many begins, if they lie one behind the other. */
export function offsetsOf(counts: readonly number[]): number[] {
  let sum = 0;
  return counts.map((count) => {
    const begin = sum;
    sum += count;
    return begin;
  });
}

/** Rows `from` .. `to` - 1, in the same memory. */
export function rowsBetween({ data, dims }: Float32Tensor, from: number, to: number): Float32Tensor {
  const d = dims[1]!;
  return float32(data.subarray(from * d, to * d), [to - from, d]);
}

/** Rows in blocks of `size`, in the same memory. */
export function* rowBlocks(
  states: Float32Tensor,
  size: number,
): Generator<{ readonly from: number; readonly part: Float32Tensor }> {
  const rows = states.dims[0]!;
  for (let from = 0; from < rows; from += size)
    yield { from, part: rowsBetween(states, from, Math.min(from + size, rows)) };
}
