// Emission: each operation as the ONNX operators that compute it.
import { type Dim, plus, type Shape, terms } from '../dim.ts';
import type { Outputs } from '../segments.ts';
import { float32, int64, type StoredTensor, type Tensor } from '../tensor.ts';
import {
  type OperationKind,
  type OperationOf,
  type QuantizedMatrix,
  topological,
  type Value,
  type ValueType,
} from '../value.ts';
import { type Attribute, encodeModel, type Initializer, type Node, rawBytes } from './encode.ts';

export interface ValueInfo {
  readonly dtype: ValueType;
  readonly shape: Shape;
}

/** What the compiler of a runtime needs to know of a model. */
export interface OnnxModel {
  readonly bytes: Uint8Array;
  readonly inputs: ReadonlyMap<string, ValueInfo>;
  readonly outputs: ReadonlyMap<string, ValueInfo>;
}

/** Names a file that holds weights, as the runtime will find it. */
export type LocationOf = (stored: StoredTensor) => string;

class Emitter {
  readonly nodes: Node[] = [];
  readonly initializers: Initializer[] = [];
  readonly #names = new Map<Value, string>();
  readonly #memo = new Map<string, string>();
  readonly #stored = new Map<string, StoredTensor>();
  readonly #locationOf: LocationOf;
  readonly #sizes: ReadonlyMap<string, { readonly input: string; readonly axis: number }>;
  #count = 0;

  constructor(order: readonly Value[], locationOf: LocationOf) {
    this.#locationOf = locationOf;
    this.#sizes = sizeSources(order);
  }

  nameOf(value: Value): string {
    return this.#names.get(value)!;
  }

  bind(value: Value, name: string): void {
    this.#names.set(value, name);
  }

  /** Appends a node with one output and returns the output's name. */
  node(
    type: string,
    inputs: readonly string[],
    attributes?: Record<string, Attribute>,
    domain?: string,
  ): string {
    const output = this.fresh();
    this.nodes.push({
      type,
      inputs,
      outputs: [output],
      ...(attributes && { attributes }),
      ...(domain && { domain }),
    });
    return output;
  }

  microsoft(type: string, inputs: readonly string[], attributes?: Record<string, Attribute>): string {
    return this.node(type, inputs, attributes, 'com.microsoft');
  }

  fresh(): string {
    return `%${this.#count++}`;
  }

  tensor(tensor: Tensor): string {
    const name = this.fresh();
    this.initializers.push({ name, dims: tensor.dims, dtype: tensor.dtype, bytes: rawBytes(tensor) });
    return name;
  }

  integers(...numbers: readonly number[]): string {
    return this.once(`integers ${numbers}`, () => this.tensor(int64(numbers, [numbers.length])));
  }

  number(number: number): string {
    return this.once(`number ${number}`, () => this.tensor(float32([number], [])));
  }

  ones(length: number): string {
    return this.once(`ones ${length}`, () =>
      this.tensor(float32(new Float32Array(length).fill(1), [length])),
    );
  }

  once(key: string, make: () => string): string {
    const known = this.#memo.get(key);
    if (known) return known;
    const name = make();
    this.#memo.set(key, name);
    return name;
  }

  /** A tensor that stays in its file, in the file's type. */
  stored(name: string, stored: StoredTensor): string {
    const known = this.#stored.get(name) ?? stored;
    if (known.file !== stored.file || known.byteOffset !== stored.byteOffset)
      throw new Error(`graph: two different stored tensors are named "${name}"`);
    this.#stored.set(name, stored);
    return this.once(`stored ${name}`, () => {
      const { dims, dtype, byteOffset, byteLength } = stored;
      const external = { location: this.#locationOf(stored), byteOffset, byteLength };
      this.initializers.push({ name, dims, dtype, external });
      return name;
    });
  }

  /** A dimension as an int64 tensor [1], computed from the shapes of what is fed. */
  size(dim: Dim): string {
    if (typeof dim === 'number') return this.integers(dim);
    if (this.#sizes.has(dim)) return this.#boundSize(dim);
    return this.once(`size ${dim}`, () =>
      terms(dim)
        .map(({ coefficient, names }) => {
          const factors = names.map((name) => this.#boundSize(name));
          if (coefficient !== 1 || factors.length === 0) factors.unshift(this.integers(coefficient));
          return factors.reduce((a, b) => this.node('Mul', [a, b]));
        })
        .reduce((a, b) => this.node('Add', [a, b])),
    );
  }

  shape(shape: Shape): string {
    if (shape.every((dim) => typeof dim === 'number')) return this.integers(...shape);
    return this.once(`shape ${shape}`, () =>
      shape.length === 1
        ? this.size(shape[0]!)
        : this.node(
            'Concat',
            shape.map((dim) => this.size(dim)),
            { axis: 0 },
          ),
    );
  }

  #boundSize(name: string): string {
    const source = this.#sizes.get(name);
    if (!source)
      throw new Error(`graph: no input has the dimension "${name}"; feed one whose shape names it`);
    return this.once(`bound ${name}`, () =>
      this.node('Shape', [source.input], { start: source.axis, end: source.axis + 1 }),
    );
  }
}

type EmissionRule<K extends OperationKind> = (
  e: Emitter,
  inputs: readonly string[],
  operation: OperationOf<K>,
  value: Value,
) => string;

const plain =
  (type: string, attributes?: Record<string, Attribute>) =>
  (e: Emitter, inputs: readonly string[]): string =>
    e.node(type, inputs, attributes);

const emissionRules: { readonly [K in OperationKind]: EmissionRule<K> } = {
  input: (_, __, { name }) => name,
  weight: (e, _, { name, stored }) => {
    const found = e.stored(name, stored);
    return stored.dtype === 'float32' ? found : e.node('Cast', [found], { to: 1 });
  },
  constant: (e, _, { tensor }) => e.tensor(tensor),
  add: plain('Add'),
  sub: plain('Sub'),
  mul: plain('Mul'),
  div: plain('Div'),
  neg: plain('Neg'),
  exp: plain('Exp'),
  sqrt: plain('Sqrt'),
  sigmoid: plain('Sigmoid'),
  silu: (e, inputs) => e.microsoft('QuickGelu', inputs, { alpha: { float: 1 } }),
  erf: plain('Erf'),
  gelu: (e, inputs) => e.microsoft('Gelu', inputs),
  keep: (e, [mask, x]) => e.node('Where', [mask!, x!, e.number(0)]),
  matmul: (e, inputs, { transposeA, transposeB }, { shape }) => {
    if (shape.length === 2)
      return e.node('Gemm', inputs, { transA: Number(transposeA), transB: Number(transposeB) });
    if (!transposeA && !transposeB) return e.node('MatMul', inputs);
    return e.microsoft('FusedMatMul', inputs, { transA: Number(transposeA), transB: Number(transposeB) });
  },
  softmax: plain('Softmax', { axis: -1 }),
  logSoftmax: plain('LogSoftmax', { axis: -1 }),
  // Not the second output of SimplifiedLayerNormalization: ONNX Runtime 1.30 computes it wrongly on WebGPU.
  rmsInverse: (e, [x], { epsilon }) => {
    const mean = e.node('ReduceMean', [e.node('Mul', [x!, x!]), e.integers(-1)], { keepdims: 1 });
    return e.node('Reciprocal', [e.node('Sqrt', [e.node('Add', [mean, e.number(epsilon)])])]);
  },
  rmsNorm: (e, inputs, { epsilon }) =>
    e.node('SimplifiedLayerNormalization', inputs, { axis: -1, epsilon: { float: epsilon } }),
  deviationInverse: (e, [x], { epsilon }, { inputs }) => standardized(e, x!, inputs[0]!, epsilon).inverse,
  standardize: (e, [x], { epsilon }, { inputs }) => standardized(e, x!, inputs[0]!, epsilon).rows,
  layerNorm: (e, inputs, { epsilon }) =>
    e.node('LayerNormalization', inputs, { axis: -1, epsilon: { float: epsilon } }),
  crossEntropy: (e, [logits, labels]) => {
    const logProbabilities = e.node('LogSoftmax', [logits!], { axis: -1 });
    const picked = e.node(
      'GatherElements',
      [logProbabilities, e.node('Unsqueeze', [labels!, e.integers(1)])],
      {
        axis: 1,
      },
    );
    return e.node('Neg', [e.node('Squeeze', [picked, e.integers(1)])]);
  },
  minusOneHot: (e, [x, labels]) => {
    const places = e.node('Unsqueeze', [labels!, e.integers(1)]);
    const ones = e.node('Expand', [e.number(-1), e.node('Shape', [places])]);
    return e.node('ScatterElements', [x!, places, ones], { axis: 1, reduction: 'add' });
  },
  quantizedLinear: (e, [x], { terms, forward }) => roundedProduct(e, x!, forward, terms),
  topValues: (e, [x], { count }) => top(e, x!, count, 0),
  topIndices: (e, [x], { count }) => top(e, x!, count, 1),
  sum: (e, [x], { axes }) => e.node('ReduceSum', [x!, e.integers(...axes)], { keepdims: 1 }),
  expand: (e, [x], { shape }) => e.node('Expand', [x!, e.shape(shape)]),
  reshape: (e, [x], { shape }) => {
    const named = shape.filter((dim) => typeof dim === 'string');
    const sizes =
      named.length === 1
        ? e.integers(...shape.map((dim) => (typeof dim === 'string' ? -1 : dim)))
        : e.shape(shape);
    return e.node('Reshape', [x!, sizes]);
  },
  transpose: (e, inputs, { permutation }) => e.node('Transpose', inputs, { perm: permutation }),
  concat: (e, inputs, { axis }) => e.node('Concat', inputs, { axis }),
  slice: (e, [x], { axis, before, size }) =>
    e.node('Slice', [x!, e.size(before), e.size(plus(before, size)), e.integers(axis)]),
  pad: (e, [x], { axis, before, size }, { inputs }) => {
    const after = e.once(`after ${before} ${size} ${inputs[0]!.shape[axis]}`, () => {
      const used = e.node('Add', [e.size(before), e.size(inputs[0]!.shape[axis]!)]);
      return e.node('Sub', [e.size(size), used]);
    });
    const pads = e.node('Concat', [e.size(before), after], { axis: 0 });
    return e.node('Pad', [x!, pads, '', e.integers(axis)]);
  },
  gather: (e, inputs) => e.node('Gather', inputs, { axis: 0 }),
  // Not ScatterND: on several threads ONNX Runtime 1.30 loses rows of it that go to the same place.
  scatter: (e, [x, indices], _, { shape }) => {
    const zeros = e.node('ConstantOfShape', [e.shape(shape)]);
    const trailing = shape.slice(1).map((_, i) => i + 1);
    const rows = trailing.length > 0 ? e.node('Unsqueeze', [indices!, e.integers(...trailing)]) : indices!;
    const places = e.node('Expand', [rows, e.node('Shape', [x!])]);
    return e.node('ScatterElements', [zeros, places, x!], { axis: 0, reduction: 'add' });
  },
  // Every token is a batch of its own: so the operator's limit, a table as long as the sequence, does not bind.
  rotary: (e, [x, positions, cos, sin], { inverse }) => {
    const turned = inverse ? e.once(`negative ${sin}`, () => e.node('Neg', [sin!])) : sin!;
    const places = e.once(`column ${positions}`, () => e.node('Unsqueeze', [positions!, e.integers(1)]));
    const rotated = e.microsoft(
      'RotaryEmbedding',
      [e.node('Unsqueeze', [x!, e.integers(1)]), places, cos!, turned],
      { interleaved: 0 },
    );
    return e.node('Squeeze', [rotated, e.integers(1)]);
  },
};

/** One `TopK` computes values and indices. */
function top(e: Emitter, x: string, count: number, output: 0 | 1): string {
  const values = e.once(`top ${count} ${x}`, () => {
    const name = e.fresh();
    e.nodes.push({ type: 'TopK', inputs: [x, e.integers(count)], outputs: [name, `${name} indices`] });
    return name;
  });
  return output === 0 ? values : `${values} indices`;
}

/**
 * Rows of mean 0 and variance 1, and the inverses of their deviations: one node for both. Its third output is right on the
 * CPU; elsewhere it is to be checked before it is used, as that of the root-mean-square norm is not (`rmsInverse`).
 */
function standardized(
  e: Emitter,
  x: string,
  { shape }: Value,
  epsilon: number,
): { readonly rows: string; readonly inverse: string } {
  const rows = e.once(`standardized ${epsilon} ${x}`, () => {
    const name = e.fresh();
    e.nodes.push({
      type: 'LayerNormalization',
      inputs: [x, e.ones(shape.at(-1) as number)],
      outputs: [name, `${name} mean`, `${name} inverse`],
      attributes: { axis: -1, epsilon: { float: epsilon } },
    });
    return name;
  });
  return { rows, inverse: `${rows} inverse` };
}

/** x / step to unsigned 8-bit integers around 128, and back: the operators that round want a zero point. */
const zeroPoint = (e: Emitter): string =>
  e.once('zero point', () => {
    const name = e.fresh();
    e.initializers.push({ name, dims: [], dtype: 'uint8', bytes: Uint8Array.of(128) });
    return name;
  });

function integerProduct(
  e: Emitter,
  rounded: string,
  step: string,
  { name, values, scales }: QuantizedMatrix,
): string {
  const [right, rightScales] = [e.stored(`${name}.values`, values), e.stored(`${name}.scales`, scales)];
  const zeroPoints = values.dtype === 'uint8' ? [zeroPoint(e), zeroPoint(e)] : [zeroPoint(e)];
  return e.microsoft('MatMulIntegerToFloat', [rounded, right, step, rightScales, ...zeroPoints]);
}

/** 1/127 of each row's largest magnitude, and the rows in these steps. Not by `Abs`: it would write all of x once more. */
function inSteps(e: Emitter, x: string): { readonly step: string; readonly rows: string } {
  const step = e.once(`row step ${x}`, () => {
    const extremes = ['ReduceMax', 'ReduceMin'].map((type) =>
      e.node(type, [x, e.integers(-1)], { keepdims: 1 }),
    );
    const largest = e.node('Max', [extremes[0]!, e.node('Neg', [extremes[1]!]), e.number(1e-30)]);
    return e.node('Mul', [largest, e.number(1 / 127)]);
  });
  return { step, rows: e.once(`rows in steps ${x}`, () => e.node('Div', [x, step])) };
}

/** x rounded to one term, in steps of its rows, or to two: what the first leaves over, in 1/254 of those steps. */
function roundedProduct(e: Emitter, x: string, matrix: QuantizedMatrix, terms: 1 | 2): string {
  const { step, rows } = inSteps(e, x);
  const [one, small] = [e.number(1), e.number(1 / 254)];
  const high = e.once(`high ${x}`, () => e.node('QuantizeLinear', [rows, one, zeroPoint(e)]));
  const product = integerProduct(e, high, one, matrix);
  if (terms === 1) return e.node('Mul', [product, step]);
  const low = e.once(`low ${x}`, () => {
    const remainder = e.node('Sub', [rows, e.node('DequantizeLinear', [high, one, zeroPoint(e)])]);
    return e.node('QuantizeLinear', [remainder, small, zeroPoint(e)]);
  });
  return e.node('Mul', [e.node('Add', [product, integerProduct(e, low, small, matrix)]), step]);
}

/** The model that computes `outputs`. @throws if two leaves or stored tensors have one name, or a named size occurs in no input. */
export function emit(outputs: Outputs, locationOf: LocationOf): OnnxModel {
  const { order, canonical } = topological(Object.values(outputs));
  const e = new Emitter(order, locationOf);
  const inputs = new Map<string, ValueInfo>();
  const leaves = new Set<string>();
  const needed = neededValues(order, new Set(Object.values(outputs).map((value) => canonical.get(value)!)));
  for (const value of order) {
    if (!needed.has(value)) continue;
    const { operation } = value;
    if ('name' in operation) {
      if (leaves.has(operation.name))
        throw new Error(`graph: two different leaves are named "${operation.name}"`);
      leaves.add(operation.name);
    }
    if (operation.kind === 'input')
      inputs.set(operation.name, { dtype: operation.dtype, shape: operation.shape });
    const rule = emissionRules[operation.kind] as EmissionRule<OperationKind>;
    const operands = value.inputs
      .filter((operand) => needed.has(operand))
      .map((operand) => e.nameOf(operand));
    e.bind(value, rule(e, operands, operation, value));
  }
  const nodes = withOutputs(
    e.nodes,
    Object.entries(outputs).map(([name, value]) => ({ name, from: e.nameOf(canonical.get(value)!) })),
  );
  const bytes = encodeModel({
    nodes,
    initializers: e.initializers,
    inputs: [...inputs].map(([name, type]) => ({ name, ...type })),
    outputs: Object.entries(outputs).map(([name, { dtype, shape }]) => ({ name, dtype, shape })),
  });
  const outputInfo = Object.entries(outputs).map(
    ([name, { dtype, shape }]) => [name, { dtype, shape }] as const,
  );
  return { bytes, inputs, outputs: new Map(outputInfo) };
}

/** Nodes that make the outputs under their names: what makes one is renamed; what is no node's, or has a name, is copied. */
function withOutputs(
  nodes: readonly Node[],
  outputs: readonly { readonly name: string; readonly from: string }[],
): Node[] {
  const made = new Set(nodes.flatMap((node) => node.outputs));
  const renamed = new Map<string, string>();
  const copies: Node[] = [];
  for (const { name, from } of outputs)
    if (made.has(from) && !renamed.has(from)) renamed.set(from, name);
    else copies.push({ type: 'Identity', inputs: [from], outputs: [name] });
  const rename = (name: string) => renamed.get(name) ?? name;
  return [...nodes, ...copies].map((node) => ({
    ...node,
    inputs: node.inputs.map(rename),
    outputs: node.outputs.map(rename),
  }));
}

/** What outputs are computed from: a float32 matrix that only a gradient goes through is none of a forward program's. */
function neededValues(order: readonly Value[], outputs: ReadonlySet<Value>): ReadonlySet<Value> {
  const needed = new Set(outputs);
  for (const value of order.toReversed())
    if (needed.has(value))
      for (const operand of value.operation.kind === 'quantizedLinear'
        ? value.inputs.slice(0, 1)
        : value.inputs)
        needed.add(operand);
  return needed;
}

/** For each named size, and each expression that an input has, the input and axis that carry it. */
function sizeSources(order: readonly Value[]): Map<string, { input: string; axis: number }> {
  const sources = new Map<string, { input: string; axis: number }>();
  for (const { operation } of order)
    if (operation.kind === 'input')
      operation.shape.forEach((dim, axis) => {
        if (typeof dim === 'string' && !sources.has(dim)) sources.set(dim, { input: operation.name, axis });
      });
  return sources;
}
