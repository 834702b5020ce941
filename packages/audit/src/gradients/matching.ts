// The lower direction of a two-sided reconstruction, in the manner of BiSR (arXiv 2409.00960): embeddings e whose states at
// the cut are those that crossed it, found by descent from a guess on
//   1/2 sum_t |F_k(e)_t - h_t|^2 / |h_t|^2,
// then the nearest tokens, and a walk from left to right that tries, where a state is not reproduced, the nearest tokens.
// States differ in length by orders of magnitude from place to place, hence the division.
//
// The attacker uses the states at the cut, the embedding table, the weights of the layers below the cut and what it knows
// of the client's adapter there. It works on language models: an encoder's tokens are not the nearest rows of its table,
// since positions and types are added to them.
import {
  adamW,
  type Float32Tensor,
  float32,
  input,
  linear,
  linearSchedule,
  mul,
  type Program,
  scale,
  sub,
  sumLast,
  topIndices,
  transpose,
} from '@fellrec/graph';
import type { TokenLayout, Trained } from '@fellrec/models';
import type { AuditedModel } from '../layerwise.ts';

export interface MatchOptions {
  /** Layers below the cut. */
  readonly k: number;
  /** What the attacker knows of what is trained in them; the base if absent. */
  readonly trained?: Trained | undefined;
  readonly steps: number;
  /** Of AdamW at the first step, falling to 0; as a share of the embeddings' root mean square. */
  readonly learningRate: number;
  /** Nearest tokens that are tried where a state is not reproduced. */
  readonly candidates: number;
  /** Places of a sequence that are tried at most. */
  readonly checks: number;
}

export interface Matched {
  /** Nearest to the embeddings found; then after the walk. */
  readonly rounded: readonly number[];
  readonly tokens: readonly number[];
  /** Before every step, and at the end. */
  readonly objective: readonly number[];
}

export interface Matcher {
  /** `observed`: states of a sequence, [tokens, d]; `guess`: its tokens. */
  match(observed: Float32Tensor, guess: readonly number[], options: MatchOptions): Promise<Matched>;
  dispose(): Promise<void>;
}

/** Relative distance |F(v) - h| / |h| from which a state counts as reproduced. */
const reproduced = 1e-3;

export async function openMatcher({ cut, layers, runtime }: AuditedModel): Promise<Matcher> {
  const embedding = await runtime.compile(cut.embedding(), { prepack: false });
  const nearest = new Map<number, Program>();

  async function embed(
    sequences: readonly (readonly number[])[],
    layout: TokenLayout,
  ): Promise<Float32Tensor> {
    const { ids } = cut.embeddingFeeds(
      sequences.map((own) => ({ ids: own })),
      layout,
    );
    return (await embedding.run({ ids: ids! })).states as Float32Tensor;
  }

  /** The tokens nearest to each embedding, nearest first, [rows, count]. */
  async function nearestTokens(embeddings: Float32Tensor, count: number): Promise<Int32Array> {
    let program = nearest.get(count);
    if (!program) {
      const hidden = input('hidden', 'float32', ['rows', cut.hiddenSize]);
      const words = cut.words();
      const squares = transpose(sumLast(mul(words, words)), [1, 0]); // [1, vocabulary]
      // -|e - w|^2, without |e|^2 which is the same for all.
      program = await runtime.compile({
        top: topIndices(sub(scale(linear(hidden, words), 2), squares), count),
      });
      nearest.set(count, program);
    }
    const { top } = await program.run({ hidden: embeddings });
    return Int32Array.from(top!.data as BigInt64Array, Number);
  }

  async function descend(observed: Float32Tensor, guess: readonly number[], options: MatchOptions) {
    const { k, trained, steps, learningRate } = options;
    const layout = cut.layout([{ ids: guess }]);
    const start = await embed([guess], layout);
    const optimizer = adamW();
    let state = optimizer.init(new Map([['embeddings', start]]));
    const rate = learningRate * rootMeanSquare(start.data);
    const weights = lengthsOf(observed).map((length) => 1 / length ** 2);
    const objective: number[] = [];
    for (let step = 0; ; step++) {
      const embeddings = state.parameters.get('embeddings')!;
      // A copy: the optimizer changes its own memory while the pass still needs what went in.
      const { states, kept } = await layers.forwardKept({ from: 0, to: k }, copied(embeddings), layout, {
        trained,
      });
      const { loss, gradient } = slope(states, observed, weights);
      objective.push(loss);
      if (step === steps) return { embeddings, objective };
      const back = await kept.backward(gradient, true);
      const slopes = new Map([['embeddings', back.gradient!]]);
      ({ state } = optimizer.update(slopes, state, rate * linearSchedule(step, steps, 0)));
    }
  }

  /** Corrects from left to right: behind a wrong token no state is reproduced. */
  async function walk(
    observed: Float32Tensor,
    rounded: readonly number[],
    candidates: readonly (readonly number[])[],
    { k, trained, checks }: MatchOptions,
  ): Promise<number[]> {
    const ids = [...rounded];
    const lengths = lengthsOf(observed);
    const statesOf = async (sequences: readonly (readonly number[])[], layout: TokenLayout) =>
      layers.forward({ from: 0, to: k }, await embed(sequences, layout), layout, { trained });
    for (let check = 0, from = 0; check < checks; check++) {
      const states = await statesOf([ids], cut.layout([{ ids }]));
      const far = (place: number) => distance(states, place, observed, place) / lengths[place]!;
      while (from < ids.length && far(from) < reproduced) from++;
      if (from === ids.length) break;
      const place = from++;
      const tried = candidates[place]!;
      const before = ids.slice(0, place);
      const layout = { lengths: tried.map(() => place + 1), time: 1, prefix: place };
      const found = await statesOf(
        tried.map((token) => [...before, token]),
        layout,
      );
      const distances = tried.map((_, i) => distance(found, place + i, observed, place));
      ids[place] = tried[distances.indexOf(Math.min(...distances))]!;
    }
    return ids;
  }

  return {
    async match(observed, guess, options) {
      const { embeddings, objective } = await descend(observed, guess, options);
      const count = Math.min(options.candidates, cut.vocabularySize);
      const near = await nearestTokens(embeddings, count);
      const candidates = guess.map((token, place) => [
        ...new Set([...near.subarray(place * count, (place + 1) * count), token]),
      ]);
      const rounded = candidates.map(([first]) => first!);
      const tokens = await walk(observed, rounded, candidates, options);
      return { rounded, tokens, objective };
    },
    async dispose() {
      await embedding.dispose();
      for (const program of nearest.values()) await program.dispose();
    },
  };
}

/** The objective and its gradient with respect to the states; rows behind the observed ones are padding. */
function slope(
  states: Float32Tensor,
  observed: Float32Tensor,
  weights: readonly number[],
): { readonly loss: number; readonly gradient: Float32Tensor } {
  const d = observed.dims[1]!;
  const gradient = new Float32Array(states.data.length);
  let loss = 0;
  for (const [row, weight] of weights.entries())
    for (let i = row * d; i < (row + 1) * d; i++) {
      const difference = states.data[i]! - observed.data[i]!;
      gradient[i] = weight * difference;
      loss += 0.5 * weight * difference * difference;
    }
  return { loss, gradient: float32(gradient, states.dims) };
}

/** |x_i - y_j|. */
function distance(x: Float32Tensor, i: number, y: Float32Tensor, j: number): number {
  const d = y.dims[1]!;
  let sum = 0;
  for (let c = 0; c < d; c++) sum += (x.data[i * d + c]! - y.data[j * d + c]!) ** 2;
  return Math.sqrt(sum);
}

function lengthsOf({ data, dims: [rows, d] }: Float32Tensor): number[] {
  return Array.from({ length: rows! }, (_, row) => Math.hypot(...data.subarray(row * d!, (row + 1) * d!)));
}

function rootMeanSquare(data: Float32Array): number {
  return Math.sqrt(data.reduce((sum, x) => sum + x * x, 0) / data.length);
}

function copied({ data, dims }: Float32Tensor): Float32Tensor {
  return float32(data.slice(), dims);
}
