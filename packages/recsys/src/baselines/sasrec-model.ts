// SASRec (Kang & McAuley, ICDM 2018, arXiv 1808.09781) in the form of RecBole's, whose names the weights have: item and
// position embeddings are added up, each layer is self-attention and a feed-forward part, normalised after each sum, and
// a place's scores are its products with all item embeddings.
import {
  add,
  type BoolTensor,
  crossEntropy,
  dropout,
  elementCount,
  type Feeds,
  type Float32Tensor,
  float32,
  gather,
  gelu,
  gradients,
  input,
  layerNorm,
  linear,
  matmul,
  mul,
  type NamedTensors,
  type Outputs,
  type Program,
  type Random,
  type Runtime,
  random,
  reshape,
  type Shape,
  scale,
  softmax,
  times,
  total,
  transpose,
  type Value,
  zeros,
} from '@fellrec/graph';
import { asked, type Row, rowFeeds, targetFeeds } from './sasrec-windows.ts';

export interface SasrecShape {
  readonly itemCount: number;
  /** Width of the hidden states; a head has hidden / heads, the feed-forward part 4 hidden. */
  readonly hidden: number;
  readonly layers: number;
  readonly heads: number;
  /** Items that are read. */
  readonly maxLength: number;
}

const normEpsilon = 1e-12;
const initialDeviation = 0.02;

const itemTable = 'item_embedding.weight';
const positionTable = 'position_embedding.weight';
const layerPath = (layer: number) => `trm_encoder.layer.${layer}`;

/** Dimensions of all parameters, by name. */
function parameterDims({ itemCount, hidden: d, layers, maxLength }: SasrecShape): Map<string, number[]> {
  const dims = new Map<string, number[]>();
  const both = (path: string, ...weight: readonly number[]) => {
    dims.set(`${path}.weight`, [...weight]);
    dims.set(`${path}.bias`, [weight[0]!]);
  };
  dims.set(itemTable, [itemCount, d]);
  dims.set(positionTable, [maxLength, d]);
  both('LayerNorm', d);
  for (let layer = 0; layer < layers; layer++) {
    const [attention, feed] = [
      `${layerPath(layer)}.multi_head_attention`,
      `${layerPath(layer)}.feed_forward`,
    ];
    for (const name of ['query', 'key', 'value', 'dense']) both(`${attention}.${name}`, d, d);
    both(`${attention}.LayerNorm`, d);
    both(`${feed}.dense_1`, 4 * d, d);
    both(`${feed}.dense_2`, d, 4 * d);
    both(`${feed}.LayerNorm`, d);
  }
  return dims;
}

/** Matrices from a normal distribution of deviation 0.02, norms that change nothing, biases of 0. */
export function initialParameters(shape: SasrecShape, seed: number): NamedTensors {
  return new Map(
    [...parameterDims(shape)].map(([name, dims]) => {
      if (name.endsWith('.bias')) return [name, zeros(dims)];
      const { data } = zeros(dims);
      const { normal } = random(seed, 'sasrec', 'initial', name);
      return [
        name,
        float32(dims.length === 1 ? data.fill(1) : data.map(() => initialDeviation * normal()), dims),
      ];
    }),
  );
}

interface Encoder {
  /** After the last layer, [rows * time, d]. */
  readonly hidden: Value;
  readonly parameters: ReadonlyMap<string, Value>;
  /** Shapes of dropout masks: the first size is `rows`, or that times `time`. */
  readonly masks: ReadonlyMap<string, Shape>;
}

/** Hidden states of the rows that `rowFeeds` makes. Without a rate of dropout there are no masks. */
function encoder(shape: SasrecShape, rate: number): Encoder {
  const { hidden: d, heads, maxLength: time } = shape;
  const headDim = d / heads;
  const tokens = times('rows', time);
  const parameters = new Map(
    [...parameterDims(shape)].map(([name, dims]) => [name, input(name, 'float32', dims)]),
  );
  const masks = new Map<string, Shape>();
  const get = (name: string) => parameters.get(name)!;
  const norm = (path: string, x: Value) =>
    layerNorm(x, get(`${path}.weight`), get(`${path}.bias`), normEpsilon);
  const project = (path: string, x: Value) => linear(x, get(`${path}.weight`), get(`${path}.bias`));
  const row = (table: string, indices: string) =>
    gather(get(table), reshape(input(indices, 'int64', ['rows', time]), [tokens]));
  const drop = (x: Value) => {
    if (rate === 0) return x;
    const name = `dropout.${masks.size}`;
    masks.set(name, x.shape);
    return dropout(input(name, 'bool', x.shape), x, rate);
  };
  const mask = input('mask', 'float32', ['rows', 1, time, time]);

  function attention(path: string, x: Value): Value {
    const split = (name: string) =>
      transpose(reshape(project(`${path}.${name}`, x), ['rows', time, heads, headDim]), [0, 2, 1, 3]);
    const scores = scale(matmul(split('query'), split('key'), { transposeB: true }), 1 / Math.sqrt(headDim));
    const weights = drop(softmax(add(scores, mask))); // [rows, heads, time, time]
    const read = reshape(transpose(matmul(weights, split('value')), [0, 2, 1, 3]), [tokens, d]);
    return norm(`${path}.LayerNorm`, add(x, drop(project(`${path}.dense`, read))));
  }

  function feedForward(path: string, x: Value): Value {
    const inner = gelu(project(`${path}.dense_1`, x)); // [rows * time, 4 d]
    return norm(`${path}.LayerNorm`, add(x, drop(project(`${path}.dense_2`, inner))));
  }

  let hidden = drop(norm('LayerNorm', add(row(itemTable, 'items'), row(positionTable, 'positions'))));
  for (let layer = 0; layer < shape.layers; layer++) {
    const read = attention(`${layerPath(layer)}.multi_head_attention`, hidden);
    hidden = feedForward(`${layerPath(layer)}.feed_forward`, read);
  }
  return { hidden, parameters, masks };
}

/** [places, items]. */
function scoresOf({ hidden, parameters }: Encoder): Value {
  return linear(gather(hidden, input('places', 'int64', ['places'])), parameters.get(itemTable)!);
}

const gradientName = (parameter: string) => `gradient of ${parameter}`;

/** The mean over targets of -log softmax(scores)[target], and its gradients. */
function stepOutputs(encoded: Encoder): Outputs {
  const losses = crossEntropy(scoresOf(encoded), input('labels', 'int64', ['places']));
  const loss = total(mul(losses, input('weights', 'float32', ['places'])));
  const found = gradients(loss, [...encoded.parameters.values()]);
  return {
    loss,
    ...Object.fromEntries([...encoded.parameters.keys()].map((name, i) => [gradientName(name), found[i]!])),
  };
}

export interface SasrecModel {
  /** Dropout masks of a batch of so many rows. */
  masks(rows: number, stream: readonly [seed: number, ...(string | number)[]]): Feeds;
  /** Mean loss of the rows' targets, and its gradients. */
  gradients(
    rows: readonly Row[],
    parameters: NamedTensors,
    masks: Feeds,
  ): Promise<{ readonly loss: number; readonly gradients: NamedTensors }>;
  /** Scores of all items after each place that something is asked of, in the rows' order, [places, items]. */
  score(rows: readonly Row[], parameters: NamedTensors): Promise<Float32Tensor>;
  dispose(): Promise<void>;
}

/** Compiles the programs of a shape. `rate` is that of dropout. */
export async function sasrecModel(shape: SasrecShape, rate: number, runtime: Runtime): Promise<SasrecModel> {
  const trained = encoder(shape, rate);
  const step: Program = await runtime.compile(stepOutputs(trained));
  const scoring: Program = await runtime.compile({ scores: scoresOf(encoder(shape, 0)) });
  const { maxLength: time, itemCount } = shape;
  return {
    masks: (rows, stream) =>
      Object.fromEntries(
        [...trained.masks].map(([name, [first, ...rest]]) => {
          const dims = [first === 'rows' ? rows : rows * time, ...(rest as number[])];
          return [name, kept(dims, rate, random(...stream, name))];
        }),
      ),
    async gradients(rows, parameters, masks) {
      const found = await step.run({
        ...Object.fromEntries(parameters),
        ...targetFeeds(rows, time),
        ...masks,
      });
      return {
        loss: found.loss!.data[0] as number,
        gradients: new Map(
          [...parameters.keys()].map((name) => [name, found[gradientName(name)] as Float32Tensor]),
        ),
      };
    },
    async score(rows, parameters) {
      if (rows.every((row) => asked(row) === 0)) return float32([], [0, itemCount]);
      const found = await scoring.run({ ...Object.fromEntries(parameters), ...rowFeeds(rows, time) });
      return found.scores as Float32Tensor;
    },
    async dispose() {
      await step.dispose();
      await scoring.dispose();
    },
  };
}

/** 0 with probability `rate`, by the distance from one 0 to the next. */
function kept(dims: readonly number[], rate: number, { uniform }: Random): BoolTensor {
  const data = new Uint8Array(elementCount(dims)).fill(1);
  const logKeep = Math.log(1 - rate);
  const gap = () => Math.floor(Math.log(1 - uniform()) / logKeep);
  for (let i = gap(); i < data.length; i += 1 + gap()) data[i] = 0;
  return { dtype: 'bool', dims, data };
}
