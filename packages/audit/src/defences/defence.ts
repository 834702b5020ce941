// What a client does to hidden states before they leave, by name.
import { type Float32Tensor, float32 } from '@fellrec/graph';
import type { MiddleLayers, TokenLayout, Trained } from '@fellrec/models';
import { type AuditedModel, depths, offsetsOf, rowOf } from '../layerwise.ts';
import type { Release } from '../options.ts';
import type { AuditedSequence } from '../sequences.ts';
import { quantise, roundToFloat16, roundToInt8 } from './bits.ts';
import { noisyMatrix, noisyRows } from './noise.ts';

export type Defence =
  | { readonly kind: 'none' | 'float16' | 'int8' | 'withheld' }
  | { readonly kind: 'bits'; readonly bits: number }
  | { readonly kind: 'noise' | 'row-noise'; readonly epsilon: number };

/** How defences are written, for messages. */
export const defenceForms =
  'none, float16, int8, bits:2 to bits:8, noise:EPSILON, row-noise:EPSILON, withheld';

/** @throws naming what there is. */
export function parseDefence(text: string): Defence {
  const [kind, value] = text.split(':') as [string, string | undefined];
  const number = Number(value);
  if (
    value === undefined &&
    (kind === 'none' || kind === 'float16' || kind === 'int8' || kind === 'withheld')
  )
    return { kind };
  if (kind === 'bits' && Number.isInteger(number) && number >= 2 && number <= 8)
    return { kind, bits: number };
  if ((kind === 'noise' || kind === 'row-noise') && Number.isFinite(number) && number > 0)
    return { kind, epsilon: number };
  throw new Error(`audit: "${text}" is no defence; there are ${defenceForms}`);
}

export function defenceName(defence: Defence): string {
  switch (defence.kind) {
    case 'bits':
      return `${defence.bits} bits`;
    case 'noise':
      return `noise, epsilon ${defence.epsilon} a sequence`;
    case 'row-noise':
      return `noise, epsilon ${defence.epsilon} a state`;
    case 'withheld':
      return 'adapter withheld';
    default:
      return defence.kind;
  }
}

/** Probability with which a noise mechanism may fail its epsilon. */
const delta = 1e-5;

/** L2 norms to clip to: of single states, and of all of a sequence. */
export interface Norms {
  readonly row: number;
  readonly matrix: number;
}

/** What a defence makes of states; undefined if it leaves them as they are. Noise is clipped to `norms` first. */
export function releaseOf(defence: Defence, norms: Norms, seed: number): Release | undefined {
  const mapped =
    (map: (data: Float32Array, width: number, sequence: string, depth: number) => Float32Array): Release =>
    ({ data, dims }, sequence, depth) =>
      float32(map(data, dims[1]!, sequence, depth), dims);
  switch (defence.kind) {
    case 'none':
    case 'withheld':
      return undefined;
    case 'float16':
      return mapped((data) => roundToFloat16(data));
    case 'int8':
      return mapped(roundToInt8);
    case 'bits':
      return mapped((data, width) => quantise(data, { width, bits: defence.bits }));
    case 'noise':
    case 'row-noise': {
      let releases = 0;
      return mapped((data, width, sequence, depth) => {
        const options = {
          width,
          epsilon: defence.epsilon,
          delta,
          // No two releases may share their noise.
          stream: [seed, 'release', sequence, depth, releases++] as const,
        };
        return defence.kind === 'noise'
          ? noisyMatrix(data, { ...options, clip: norms.matrix }).states
          : noisyRows(data, { ...options, clip: norms.row, neighbours: 'state' }).states;
      });
    }
  }
}

/** Medians over sequences, at one depth. */
export async function typicalNorms(
  model: AuditedModel,
  sequences: readonly AuditedSequence[],
  trained: Trained | undefined,
  depth: number,
): Promise<Norms> {
  const places = sequences.map(({ ids }) => [...ids.keys()]);
  const offsets = offsetsOf(places.map(({ length }) => length));
  for await (const found of depths(model, [{ sequences, places, trained }], depth)) {
    if (found.depth !== depth) continue;
    const { data, dims } = found.states[0]!;
    const d = dims[1]!;
    const squares = Float64Array.from({ length: dims[0]! }, (_, row) =>
      data.subarray(row * d, (row + 1) * d).reduce((sum, x) => sum + x * x, 0),
    );
    const matrices = places.map(({ length }, s) =>
      squares.subarray(offsets[s]!, offsets[s]! + length).reduce((sum, x) => sum + x, 0),
    );
    return { row: Math.sqrt(median([...squares])), matrix: Math.sqrt(median(matrices)) };
  }
  throw new Error(`audit: there is no depth ${depth}; the model has ${model.cut.layerCount} layers`);
}

function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)]!;
}

/** Middle layers that get states as a defence leaves them: a client's view of what the defence costs. */
export function defendedMiddle(middle: MiddleLayers, release: Release, depth: number): MiddleLayers {
  return {
    get trains() {
      return middle.trains;
    },
    forward: (states, layout, options) => middle.forward(released(states, layout), layout, options),
    backward: (gradient) => middle.backward(gradient),
    update: (squaredNorm, rate) => middle.update(squaredNorm, rate),
    decode({ states, ...request }) {
      const { data, dims } = states;
      const d = dims[1]!;
      const rows = Array.from({ length: dims[0]! }, (_, row) =>
        release(float32(data.subarray(row * d, (row + 1) * d), [1, d]), `decoded ${row}`, depth),
      );
      return middle.decode({ ...request, states: stacked(rows, dims) });
    },
  };

  /** A sequence goes with what all begin with; of that, the first sequence's stays. */
  function released({ data, dims }: Float32Tensor, layout: TokenLayout): Float32Tensor {
    const d = dims[1]!;
    const out = data.slice();
    for (const [s, length] of layout.lengths.entries()) {
      const rows = Array.from({ length }, (_, place) => rowOf(place, s, layout));
      const own = new Float32Array(length * d);
      for (const [place, row] of rows.entries()) own.set(data.subarray(row * d, (row + 1) * d), place * d);
      const left = release(float32(own, [length, d]), `sequence ${s}`, depth);
      for (const [place, row] of rows.entries())
        if (place >= layout.prefix || s === 0)
          out.set(left.data.subarray(place * d, (place + 1) * d), row * d);
    }
    return float32(out, dims);
  }
}

function stacked(rows: readonly Float32Tensor[], dims: readonly number[]): Float32Tensor {
  const all = new Float32Array(rows.length * dims[1]!);
  for (const [i, { data }] of rows.entries()) all.set(data, i * dims[1]!);
  return float32(all, dims);
}
