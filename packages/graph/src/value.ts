// Values and the closed set of operations that make them. A value is immutable and knows its inputs, so a graph is
// nothing but its outputs: what no output needs does not exist. Shape rules are in `shapes.ts`, gradients in
// `gradients.ts`, emission in `onnx/emit.ts`: each a table typed by `Operation`, complete by the type checker.
import type { Dim, Shape } from './dim.ts';
import { shapeRules } from './shapes.ts';
import type { StoredTensor, Tensor } from './tensor.ts';

export type ValueType = Tensor['dtype'];

/** Operations without settings. */
type Plain<K extends string> = K extends string ? { readonly kind: K } : never;

export type Operation =
  // leaves
  | { readonly kind: 'input'; readonly name: string; readonly dtype: ValueType; readonly shape: Shape }
  | { readonly kind: 'weight'; readonly name: string; readonly stored: StoredTensor }
  | { readonly kind: 'constant'; readonly tensor: Tensor }
  // elementwise with broadcasting, elementwise, over the last axis
  | Plain<
      | 'add'
      | 'sub'
      | 'mul'
      | 'div'
      | 'neg'
      | 'exp'
      | 'sqrt'
      | 'sigmoid'
      | 'silu'
      | 'erf'
      | 'gelu'
      | 'softmax'
      | 'logSoftmax'
    >
  /** Where the first input (bool, same shape) is false the second becomes 0. */
  | { readonly kind: 'keep' }
  // products
  /** Matrix product over the last two axes; leading axes are equal. */
  | { readonly kind: 'matmul'; readonly transposeA: boolean; readonly transposeB: boolean }
  /** 1 / sqrt(mean(x^2) + epsilon), [..., 1]. */
  | { readonly kind: 'rmsInverse'; readonly epsilon: number }
  /** x * rmsInverse(x) * weight. */
  | { readonly kind: 'rmsNorm'; readonly epsilon: number }
  /** 1 / sqrt(variance(x) + epsilon), [..., 1]. */
  | { readonly kind: 'deviationInverse'; readonly epsilon: number }
  /** (x - mean(x)) * deviationInverse(x). */
  | { readonly kind: 'standardize'; readonly epsilon: number }
  /** standardize(x) * weight + bias. */
  | { readonly kind: 'layerNorm'; readonly epsilon: number }
  /** -log softmax(logits)[label] per row: ([n, classes], int64 [n]) -> [n]. */
  | { readonly kind: 'crossEntropy' }
  /** x - oneHot(labels): ([n, classes], int64 [n]) -> [n, classes]. */
  | Plain<'minusOneHot'>
  /**
   * x W^T of a frozen matrix W [out, in] held as 8-bit integers: [n, in] -> [n, out]. Every row of x is rounded to 127
   * steps of its largest magnitude; with two terms, what is left over too, in 1/254 of a step. The gradient passes
   * straight through the rounding of x, by `backward` or, without it, by a float32 W, the second input.
   */
  | {
      readonly kind: 'quantizedLinear';
      readonly terms: 1 | 2;
      readonly forward: QuantizedMatrix;
      readonly backward?: QuantizedMatrix;
    }
  /** The `count` largest values of the last axis, largest first, or where they lie (int64); of equals the first. */
  | { readonly kind: 'topValues' | 'topIndices'; readonly count: number }
  // reductions and form
  | { readonly kind: 'sum'; readonly axes: readonly number[] }
  | { readonly kind: 'expand'; readonly shape: Shape }
  | { readonly kind: 'reshape'; readonly shape: Shape }
  | { readonly kind: 'transpose'; readonly permutation: readonly number[] }
  | { readonly kind: 'concat'; readonly axis: number }
  /** The range of an axis that follows `before` places and has `size` places. */
  | { readonly kind: 'slice'; readonly axis: number; readonly before: Dim; readonly size: Dim }
  /** Zeros around a range of an axis: the transpose of `slice`. */
  | { readonly kind: 'pad'; readonly axis: number; readonly before: Dim; readonly size: Dim }
  /** Rows along axis 0: ([rows, ...], int64 [n]) -> [n, ...]. */
  | { readonly kind: 'gather' }
  /** The sum of rows that go to the same place, 0 elsewhere: the transpose of `gather`. */
  | { readonly kind: 'scatter'; readonly rows: Dim }
  /**
   * Rotary position embedding in the half-split layout of Hugging Face: ([n, heads * d], int64 positions [n],
   * cos [table, d/2], sin [table, d/2]); `inverse` turns the other way.
   */
  | { readonly kind: 'rotary'; readonly inverse: boolean };

/** A matrix as 8-bit integers with one scale a column: values * scales, ready to be multiplied from the right. */
export interface QuantizedMatrix {
  readonly name: string;
  /**
   * int8, or uint8 around 128, [rows, columns]. The same integers: signed ones are faster where a processor has products
   * of 8-bit integers, and wrong where it adds two of them in 16 bits (x86 without VNNI).
   */
  readonly values: StoredTensor;
  /** float32 [columns]. */
  readonly scales: StoredTensor;
}

export type OperationKind = Operation['kind'];
export type OperationOf<K extends OperationKind> = Extract<Operation, { readonly kind: K }>;

export interface Value {
  readonly operation: Operation;
  readonly inputs: readonly Value[];
  readonly dtype: ValueType;
  readonly shape: Shape;
}

/** The value of an operation. @throws if the inputs' shapes or types do not fit. */
export function value(operation: Operation, ...inputs: readonly Value[]): Value {
  const rule = shapeRules[operation.kind] as (
    operation: Operation,
    inputs: readonly Value[],
  ) => {
    dtype: ValueType;
    shape: Shape;
  };
  return { operation, inputs, ...rule(operation, inputs) };
}

/** All values that the outputs need, each once, inputs before users. Equal operations on equal inputs are one value. */
export function topological(outputs: readonly Value[]): {
  readonly order: readonly Value[];
  /** The one value that stands for a value of the graph. */
  readonly canonical: ReadonlyMap<Value, Value>;
} {
  const order: Value[] = [];
  const canonical = new Map<Value, Value>();
  const byKey = new Map<string, Value>();
  const numbers = new Map<Value, number>();
  const objectIds = new Map<object, number>();
  const stack = [...outputs].reverse();
  while (stack.length > 0) {
    const current = stack.at(-1)!;
    if (canonical.has(current)) {
      stack.pop();
      continue;
    }
    const missing = current.inputs.filter((input) => !canonical.has(input));
    if (missing.length > 0) {
      stack.push(...missing.reverse());
      continue;
    }
    stack.pop();
    const inputs = current.inputs.map((input) => canonical.get(input)!);
    const key = `${operationKey(current.operation, objectIds)}(${inputs.map((input) => numbers.get(input)).join()})`;
    const known = byKey.get(key);
    if (known) canonical.set(current, known);
    else {
      const representative = inputs.every((input, i) => input === current.inputs[i])
        ? current
        : { ...current, inputs };
      byKey.set(key, representative);
      numbers.set(representative, order.length);
      order.push(representative);
      canonical.set(current, representative);
      canonical.set(representative, representative);
    }
  }
  return { order, canonical };
}

/** Large constants are told apart by identity, small ones by their content. */
function operationKey(operation: Operation, objectIds: Map<object, number>): string {
  if (operation.kind !== 'constant') return JSON.stringify(operation);
  const { dtype, dims, data } = operation.tensor;
  if (data.length <= 16)
    return `constant:${dtype}[${dims}]${Array.from(data as Iterable<number | bigint>).join()}`;
  if (!objectIds.has(data)) objectIds.set(data, objectIds.size);
  return `constant#${objectIds.get(data)}[${dims}]`;
}
