// A joint graph of outputs and gradients cut into two programs: `forward` returns what the caller wants and the
// residuals, `backward` consumes the residuals. What is a leaf (fed, frozen) is taken again instead of stored.
import { input } from './operations.ts';
import { topological, type Value } from './value.ts';

export type Outputs = Readonly<Record<string, Value>>;

export interface Segments {
  /** The outputs asked for, and `residual.0`, `residual.1`, ... */
  readonly forward: Outputs;
  /** The gradients asked for, computed from the residuals, the seeds and the leaves. */
  readonly backward: Outputs;
  /** Outputs of `forward` that `backward` is fed: those of its own, and those that were asked for. */
  readonly residuals: readonly string[];
}

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
  const residuals: string[] = [];
  const replaced = new Map<Value, Value>();
  let own = 0;
  // What is a leaf, or indices made of leaves alone, costs nothing to have again.
  const isLeaf = (node: Value): boolean =>
    node.inputs.length === 0 || (node.dtype === 'int64' && node.inputs.every(isLeaf));
  for (const node of order) {
    if (inForward.has(node)) continue;
    const inputs = node.inputs.map((operand) => {
      if (!inForward.has(operand) || isLeaf(operand)) return replaced.get(operand) ?? operand;
      let residual = replaced.get(operand);
      if (!residual) {
        const name = asked.get(operand) ?? `residual.${own++}`;
        residual = input(name, operand.dtype, operand.shape);
        replaced.set(operand, residual);
        residuals.push(name);
        forward[name] = operand;
      }
      return residual;
    });
    replaced.set(node, { ...node, inputs });
  }
  const backward = Object.fromEntries(
    Object.entries(gradients).map(([name, gradient]) => {
      const node = canonical.get(gradient)!;
      return [name, replaced.get(node) ?? node];
    }),
  );
  return { forward, backward, residuals };
}
