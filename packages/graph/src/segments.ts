// A joint graph of outputs and gradients cut into two programs: `forward` returns what the caller wants and the
// residuals, `backward` consumes the residuals. What is a leaf (fed, frozen) is taken again instead of stored.
import { input } from './operations.ts';
import { type OperationKind, topological, type Value } from './value.ts';

export type Outputs = Readonly<Record<string, Value>>;

export interface Segments {
  /** The outputs asked for, and `residual.0`, `residual.1`, ... */
  readonly forward: Outputs;
  /** The gradients asked for, computed from the residuals, the seeds and the leaves. */
  readonly backward: Outputs;
  /** Outputs of `forward` that `backward` is fed: those of its own, and those that were asked for. */
  readonly residuals: readonly string[];
}

/** Elementwise on one value. */
const cheap = new Set<OperationKind>(['silu', 'sigmoid', 'gelu', 'erf', 'exp', 'neg']);

/**
 * Cuts `outputs` and the `gradients` that were derived from them into two programs with equal results. No gradient may
 * have the name of an output, which may be an input of `backward`.
 */
export function splitForwardBackward(outputs: Outputs, gradients: Outputs): Segments {
  const names = Object.keys(outputs);
  const { order, canonical } = topological([...Object.values(outputs), ...Object.values(gradients)]);
  const inForward = new Set<Value>();
  const visit = names.map((name) => canonical.get(outputs[name]!)!);
  while (visit.length > 0) {
    const node = visit.pop()!;
    if (inForward.has(node)) continue;
    inForward.add(node);
    visit.push(...node.inputs);
  }

  const forward: Record<string, Value> = Object.fromEntries(
    names.map((n) => [n, canonical.get(outputs[n]!)!]),
  );
  const asked = new Map(names.map((n) => [canonical.get(outputs[n]!)!, n]));
  // What is a leaf, or indices made of leaves alone, costs nothing to have again.
  const isLeaf = (node: Value): boolean =>
    node.inputs.length === 0 || (node.dtype === 'int64' && node.inputs.every(isLeaf));
  const backwardNodes = order.filter((node) => !inForward.has(node));
  const read = new Set(
    backwardNodes.flatMap(({ inputs }) => inputs).filter((node) => inForward.has(node) && !isLeaf(node)),
  );
  /** Less work than to write it down and read it again, from what is there anyway. */
  const isCheap = (node: Value) =>
    cheap.has(node.operation.kind) && node.inputs.every((operand) => isLeaf(operand) || read.has(operand));
  const residuals: string[] = [];
  const replaced = new Map<Value, Value>();
  let own = 0;
  /** A value of the forward program in the backward one. */
  const again = (node: Value): Value => {
    const known = replaced.get(node);
    if (known || isLeaf(node)) return known ?? node;
    let value: Value;
    if (isCheap(node)) value = { ...node, inputs: node.inputs.map(again) };
    else {
      const name = asked.get(node) ?? `residual.${own++}`;
      value = input(name, node.dtype, node.shape);
      residuals.push(name);
      forward[name] = node;
    }
    replaced.set(node, value);
    return value;
  };
  for (const node of backwardNodes)
    replaced.set(node, {
      ...node,
      inputs: node.inputs.map((operand) =>
        inForward.has(operand) ? again(operand) : replaced.get(operand)!,
      ),
    });
  const backward = Object.fromEntries(
    Object.entries(gradients).map(([name, gradient]) => {
      const node = canonical.get(gradient)!;
      return [name, inForward.has(node) && !isLeaf(node) ? again(node) : (replaced.get(node) ?? node)];
    }),
  );
  return { forward, backward, residuals };
}
