// Applying a mixing matrix: new = matrix x old, from a snapshot, never in place (later clients must not average
// what earlier ones have already averaged).
import type { NamedTensors } from '@fellrec/graph';

/** Row c of the result is `sum_j matrix[c][j] parameters[j]`, summed in float64. The inputs stay as they are. */
export function applyMixing(
  matrix: readonly (readonly number[])[],
  parameters: readonly NamedTensors[],
): NamedTensors[] {
  return matrix.map((row) => {
    const mixed = new Map<string, { dtype: 'float32'; dims: readonly number[]; data: Float32Array }>();
    for (const [name, { dims, data }] of parameters[0]!) {
      const sources = parameters.map((tensors) => tensors.get(name)!.data);
      const out = new Float32Array(data.length);
      for (let k = 0; k < out.length; k++) {
        let sum = 0;
        for (let j = 0; j < sources.length; j++) sum += row[j]! * sources[j]![k]!;
        out[k] = sum;
      }
      mixed.set(name, { dtype: 'float32', dims, data: out });
    }
    return mixed;
  });
}
