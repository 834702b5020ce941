// Which tokens a gradient was made of, in the manner of DAGER (arXiv 2405.15586). The first layer's projections read
// x = RMSNorm(embedding), the same for a token wherever it stands, and
//   dL/dW = dY^T X,  dL/dA = (alpha / r) B^T dY^T X,  dL/dB = (alpha / r) dY^T X A^T:
// rows of the first two are combinations of the tokens' x, those of the third of their A x. While fewer tokens are in a
// batch than a gradient has rows and columns, only they lie in what its rows span.
//
// The attacker uses the gradient of a client's batch, the embedding table, the first layer's norm and (for dL/dB) the
// adapter that the gradient was taken at. It does not learn how often a token occurs and where, which DAGER finds out
// with the second layer. Not seen at all is the last token of a sequence, which is only predicted. An encoder adds
// positions and types to its words before the first projection: it would have to be asked about every pair of those.
import {
  div,
  type Float32Tensor,
  float32,
  gather,
  input,
  int64,
  linear,
  mul,
  type NamedTensors,
  type Runtime,
  rmsNorm,
  sqrt,
  sumLast,
  type Value,
  weight,
} from '@fellrec/graph';
import {
  type Adapter,
  type Checkpoint,
  ignoredLabel,
  initialAdapter,
  type LanguageModel,
  type LoraConfig,
  layerOf,
  type Sequence,
} from '@fellrec/models';
import { complementProjector, type RowSpace, rowSpace } from './row-space.ts';

/** Gradients, or updates, whose rows are combinations of M x: M is the identity if absent. */
export interface SpanEvidence {
  readonly rows: readonly Float32Tensor[];
  /** [m, d]. */
  readonly map?: Float32Tensor;
}

export interface SpanResult {
  /** Numerical rank of each evidence. */
  readonly ranks: readonly number[];
  /**
   * Whether any evidence has fewer independent rows than it could have; if not, its rows span less than the batch's
   * tokens do, or everything. Nothing is claimed either where more tokens would be inside than a space has dimensions.
   */
  readonly isDecidable: boolean;
  /** Ascending. */
  readonly tokens: readonly number[];
}

export interface SpanTest {
  /** Tokens of the vocabulary that all decidable evidence holds. */
  tokens(evidence: readonly SpanEvidence[]): Promise<SpanResult>;
  dispose(): Promise<void>;
}

/** Gradients are computed in float32: rows of length 1 are wrong by less. */
const rankTolerance = 1e-5;
/** Largest relative distance |x - projection of x| / |x| of a token that counts as inside. */
const distanceTolerance = 0.02;
const tokensAtOnce = 8192;

/** Projections that read the layer's input itself. */
const readers = ['q_proj', 'k_proj', 'v_proj'] as const;

/** Tests all tokens of the vocabulary. Spans are computed in float64, distances to them in float32 (wrong by about 1e-6). */
export async function openSpanTest({ config, tensors }: Checkpoint, runtime: Runtime): Promise<SpanTest> {
  const stored = (name: string) => weight(name, tensors.get(name)!);
  const d = config.hiddenSize;
  const embeddings = gather(stored('model.embed_tokens.weight'), input('ids', 'int64', ['tokens']));
  const x = rmsNorm(embeddings, stored('model.layers.0.input_layernorm.weight'), config.normEpsilon);
  const mapped = linear(x, input('map', 'float32', ['m', d])); // [tokens, m]
  const distance = (y: Value) => {
    const size = y.shape[1]!;
    const outside = linear(y, input('projector', 'float32', [size, size]));
    return sqrt(div(sumLast(mul(outside, outside)), sumLast(mul(y, y))));
  };
  const programs = {
    plain: await runtime.compile({ distances: distance(x) }, { prepack: false }),
    mapped: await runtime.compile({ distances: distance(mapped) }, { prepack: false }),
  };

  /** Tokens whose x, or M x, lies in a space. */
  async function inside(space: RowSpace, map: Float32Tensor | undefined): Promise<Set<number>> {
    const projector = float32(complementProjector(space), [space.columns, space.columns]);
    const found = new Set<number>();
    for (let from = 0; from < config.vocabularySize; from += tokensAtOnce) {
      const count = Math.min(tokensAtOnce, config.vocabularySize - from);
      const ids = int64(
        Array.from({ length: count }, (_, i) => from + i),
        [count],
      );
      const { distances } = map
        ? await programs.mapped.run({ ids, map, projector })
        : await programs.plain.run({ ids, projector });
      (distances!.data as Float32Array).forEach((far, i) => {
        if (far < distanceTolerance) found.add(from + i);
      });
    }
    return found;
  }

  return {
    async tokens(evidence) {
      const ranks: number[] = [];
      const sets: Set<number>[] = [];
      for (const { rows, map } of evidence) {
        const space = rowSpace(rows, rankTolerance);
        const rank = space.basis.length;
        ranks.push(rank);
        if (rank === Math.min(space.rows, space.columns)) continue;
        const found = await inside(space, map);
        if (found.size <= rank) sets.push(found);
      }
      const [first = new Set<number>(), ...others] = sets;
      const tokens = [...first].filter((token) => others.every((set) => set.has(token)));
      return { ranks, isDecidable: sets.length > 0, tokens: tokens.sort((a, b) => a - b) };
    },
    async dispose() {
      for (const program of Object.values(programs)) await program.dispose();
    },
  };
}

/**
 * The gradient of the first layer's projections of its input, were their weights trained: that of B of an adapter with
 * A = I, B = 0 and alpha = r = d, [out, d] each.
 */
export async function weightGradients(
  model: LanguageModel,
  batch: readonly Sequence[],
): Promise<SpanEvidence> {
  const { gradients } = await model.gradients(batch, identityAdapter(model.checkpoint));
  return { rows: [...gradients].filter(([name]) => name.includes('.lora_B.')).map(([, tensor]) => tensor) };
}

function identityAdapter({ config }: Checkpoint): Adapter {
  const d = config.hiddenSize;
  const lora: LoraConfig = { rank: d, alpha: d, dropout: 0, targetModules: readers, layers: [0] };
  const identity = new Float32Array(d * d);
  for (let i = 0; i < d; i++) identity[i * d + i] = 1;
  const tensors = [...initialAdapter(config, lora, 0)].map(
    ([name, tensor]) => [name, name.includes('.lora_A.') ? float32(identity, [d, d]) : tensor] as const,
  );
  return { config: lora, tensors: new Map(tensors) };
}

/**
 * What the gradients (or the update) of an adapter's first layer are evidence of: all dL/dA together, and every dL/dB.
 * With B = 0, as adapters begin, dL/dA is zero and says nothing.
 */
export function adapterEvidence(changes: NamedTensors, adapter: NamedTensors): SpanEvidence[] {
  const own = [...changes].filter(
    ([name]) => layerOf(name) === 0 && readers.some((reader) => name.includes(`.${reader}.`)),
  );
  const ofA = own.filter(([name]) => name.includes('.lora_A.')).map(([, tensor]) => tensor);
  const ofB = own.flatMap(([name, tensor]): SpanEvidence[] =>
    name.includes('.lora_B.')
      ? [{ rows: [tensor], map: adapter.get(name.replace('.lora_B.', '.lora_A.'))! }]
      : [],
  );
  return [{ rows: ofA }, ...ofB];
}

/** Distinct tokens that a batch's loss depends on: those before a sequence's last label. */
export function tokensOf(batch: readonly Sequence[]): Set<number> {
  return new Set(
    batch.flatMap(({ ids, labels }) =>
      ids.slice(
        0,
        labels.findLastIndex((label) => label !== ignoredLabel),
      ),
    ),
  );
}
