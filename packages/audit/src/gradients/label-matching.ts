// The upper direction of a two-sided reconstruction (BiSR, arXiv 2409.00960): which target a client was taught, by the
// gradient that it sends back into the middle layers. With p the last rows' softmax and y their labels,
//   g = J^T (p - onehot(y)),  J = d logits / d hidden states before the last layer,
// so that g is linear in what is asked for. The states are known, and so is J. First all targets are ranked by
//   <g, g_c> = <J g, p - onehot(y_c)>, over |p - onehot(y_c)|,
// which takes one pass for all of them; then the best by the cosine of g with their own gradient g_c.
//
// The attacker uses the states before the last layer and their gradient, which both cross the upper cut, the weights of
// the last layer and the head, what it knows of the client's adapter there, and the titles of the catalogue. It need not
// know where the answer begins: it ends where the sequence ends, and a title says how long it is. The labels of an
// encoder are items and not tokens: its gradient tells of vectors that the client computes itself, so this does not apply.
import {
  crossEntropy,
  type Float32Tensor,
  float32,
  gather,
  gradients,
  input,
  int64,
  mul,
  type Program,
  softmax,
  sumLast,
  times,
  total,
} from '@fellrec/graph';
import type { TokenLayout, Trained } from '@fellrec/models';
import type { AuditedModel } from '../layerwise.ts';
import { cosine } from './vectors.ts';

/** What crosses the upper cut for one sequence, [tokens, d] each. */
export interface UpperView {
  readonly hidden: Float32Tensor;
  readonly gradient: Float32Tensor;
}

export interface RankedTargets {
  /** All targets by their index, likeliest first. */
  readonly order: readonly number[];
  /** The likeliest label of each of the last tokens, without any catalogue: `labels[i]` is of token `length - 1 - i`. */
  readonly labels: readonly number[];
}

export interface LabelMatcher {
  /** What a client sends: the gradient of the labels' mean loss, the last tokens of a sequence being the labels. */
  gradient(hidden: Float32Tensor, labels: readonly number[]): Promise<Float32Tensor>;
  /** `targets`: the labels that each one would be. */
  rank(view: UpperView, targets: readonly (readonly number[])[]): Promise<RankedTargets>;
  dispose(): Promise<void>;
}

export interface LabelMatcherOptions {
  /** What is trained in the last layer; the base if absent. */
  readonly trained?: Trained | undefined;
  /** Targets that are compared by their own gradient. */
  readonly shortlist: number;
}

/** Of their labels, the most that are compared. */
const longestAnswer = 64;
const targetsAtOnce = 8;

export async function openLabelMatcher(
  { cut, runtime }: AuditedModel,
  { trained, shortlist }: LabelMatcherOptions,
): Promise<LabelMatcher> {
  const last = cut.layerCount - 1;
  const d = cut.hiddenSize;
  const form = cut.form({ lengths: [1], prefix: 0 });
  const { hidden, states } = cut.layers({ from: last, to: last + 1 }, form, { trained, training: false });
  const rows = input('rows', 'int64', ['labels']);
  const logits = cut.head(gather(states, rows)); // [labels, vocabulary]
  const losses = crossEntropy(logits, input('labels', 'int64', ['labels']));
  const loss = total(mul(losses, input('weights', 'float32', ['labels'])));
  const [ofHidden] = gradients(loss, [hidden]);
  // J g: the transpose of v -> J^T v is found by differentiating <g, J^T v>, which is linear in v.
  const v = input('v', 'float32', logits.shape);
  const [pulled] = gradients([{ value: logits, gradient: v }], [hidden]);
  const g = input('g', 'float32', [times('batch', 'time'), d]);
  const [pushed] = gradients(total(mul(pulled!, g)), [v]);
  const probabilities = softmax(logits);
  const programs = {
    gradient: await runtime.compile({ gradient: ofHidden! }),
    score: await runtime.compile(
      {
        pushed: pushed!,
        probabilities,
        mean: sumLast(mul(probabilities, pushed!)),
        square: sumLast(mul(probabilities, probabilities)),
      },
      { prepack: false },
    ),
  };

  /** Of sequences of one length: their feeds, and rows of padding behind each. */
  function laidOut(count: number, length: number) {
    const { time } = cut.layout([{ ids: new Array<number>(length).fill(0) }]);
    const layout: TokenLayout = { lengths: new Array<number>(count).fill(length), time, prefix: 0 };
    const padded = (x: Float32Tensor) => {
      const all = new Float32Array(count * time * d);
      for (let b = 0; b < count; b++) all.set(x.data, b * time * d);
      return float32(all, [count * time, d]);
    };
    return { time, feeds: cut.feeds(layout), padded };
  }

  function run<P extends Program>(program: P, feeds: Parameters<P['run']>[0]): ReturnType<P['run']> {
    const all = [...Object.entries(feeds), ...(trained?.tensors ?? [])];
    return program.run(Object.fromEntries(all.filter(([name]) => program.inputs.has(name)))) as ReturnType<
      P['run']
    >;
  }

  /** For targets the gradients that they would give, [tokens, d] each. */
  async function gradientsOf(
    states: Float32Tensor,
    targets: readonly (readonly number[])[],
  ): Promise<Float32Array[]> {
    const length = states.dims[0]!;
    const { time, feeds, padded } = laidOut(targets.length, length);
    const placed = targets.flatMap((labels, b) =>
      labels.map((label, i) => ({
        label,
        row: b * time + length - 1 - labels.length + i,
        weight: 1 / labels.length,
      })),
    );
    const count = [placed.length];
    const { gradient } = await run(programs.gradient, {
      ...feeds,
      hidden: padded(states),
      rows: int64(
        placed.map(({ row }) => row),
        count,
      ),
      labels: int64(
        placed.map(({ label }) => label),
        count,
      ),
      weights: float32(
        placed.map(({ weight }) => weight),
        count,
      ),
    });
    const found = gradient!.data as Float32Array;
    return targets.map((_, b) => found.subarray(b * time * d, (b * time + length) * d));
  }

  return {
    async gradient(states, labels) {
      const [found] = await gradientsOf(states, [labels]);
      return float32(found!, states.dims);
    },

    async rank({ hidden: seen, gradient }, targets) {
      const length = seen.dims[0]!;
      const { feeds, padded } = laidOut(1, length);
      // Row i predicts the label that stands i before the end.
      const count = Math.min(longestAnswer, length - 1);
      const found = await run(programs.score, {
        ...feeds,
        hidden: padded(seen),
        g: padded(gradient),
        rows: int64(
          Array.from({ length: count }, (_, i) => length - 2 - i),
          [count],
        ),
      });
      const [pushed, probabilities, mean, square] = (
        ['pushed', 'probabilities', 'mean', 'square'] as const
      ).map((name) => found[name]!.data as Float32Array) as [
        Float32Array,
        Float32Array,
        Float32Array,
        Float32Array,
      ];
      const size = cut.vocabularySize;
      const scores = targets.map((labels) => {
        // What is longer than the sequence was not taught in it.
        if (labels.length >= length) return Number.NEGATIVE_INFINITY;
        let [product, squares] = [0, 0];
        for (let i = 0; i < Math.min(labels.length, count); i++) {
          const at = i * size + labels[labels.length - 1 - i]!;
          product += mean[i]! - pushed[at]!;
          squares += square[i]! - 2 * probabilities[at]! + 1;
        }
        return product / Math.sqrt(squares);
      });
      const order = descending(scores);
      const chosen = order.slice(0, shortlist).filter((index) => targets[index]!.length < length);
      const cosines: number[] = [];
      for (let from = 0; from < chosen.length; from += targetsAtOnce) {
        const part = chosen.slice(from, from + targetsAtOnce).map((index) => targets[index]!);
        for (const own of await gradientsOf(seen, part)) cosines.push(cosine(own, gradient.data));
      }
      const labels = Array.from({ length: count }, (_, i) =>
        smallest(pushed.subarray(i * size, (i + 1) * size)),
      );
      return {
        order: [...descending(cosines).map((i) => chosen[i]!), ...order.slice(chosen.length)],
        labels,
      };
    },

    async dispose() {
      for (const program of Object.values(programs)) await program.dispose();
    },
  };
}

/** Indices by their score, largest first. */
function descending(scores: readonly number[]): number[] {
  return scores.map((_, i) => i).sort((a, b) => scores[b]! - scores[a]!);
}

function smallest(values: Float32Array): number {
  let found = 0;
  for (let i = 1; i < values.length; i++) if (values[i]! < values[found]!) found = i;
  return found;
}
