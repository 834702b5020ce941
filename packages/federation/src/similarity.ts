// Cosines between clients, over all their tensors as one flat vector each.
import type { NamedTensors } from '@fellrec/graph';

/**
 * s_ij = cos(x_i, x_j) of x = parameters, or x = parameters - starts. A zero vector has cosine 0 with every other,
 * and everything has cosine 1 with itself. Sums are float64.
 */
export function cosines(parameters: readonly NamedTensors[], starts?: readonly NamedTensors[]): number[][] {
  const n = parameters.length;
  const products = Array.from({ length: n }, () => new Array<number>(n).fill(0));
  for (const name of parameters[0]?.keys() ?? []) {
    const vectors = parameters.map((tensors, c) => {
      const after = tensors.get(name)!.data;
      const before = starts && starts[c]!.get(name)!.data;
      return before ? Float64Array.from(after, (x, i) => x - before[i]!) : after;
    });
    for (let i = 0; i < n; i++)
      for (let j = i; j < n; j++) {
        let sum = 0;
        for (let k = 0; k < vectors[i]!.length; k++) sum += vectors[i]![k]! * vectors[j]![k]!;
        products[i]![j]! += sum;
      }
  }
  const norms = products.map((row, i) => Math.sqrt(row[i]!));
  return products.map((_, i) =>
    products.map((_, j) => {
      if (i === j) return 1;
      const norm = norms[i]! * norms[j]!;
      return norm === 0 ? 0 : products[Math.min(i, j)]![Math.max(i, j)]! / norm;
    }),
  );
}
