// How far computed values are from those of a golden fixture.
import type { NamedTensors, Tensor } from '@fellrec/graph';

export interface VerifiedGroup {
  readonly group: string;
  /** Largest difference found; for sequences the number of tokens that differ. */
  readonly difference: number;
  readonly tolerance: number;
  readonly pass: boolean;
}

/** The largest difference of each tensor from the expected one of its name, or its share of that one's largest value. */
export function namedDifferences(
  found: NamedTensors,
  expected: ReadonlyMap<string, Tensor>,
  prefix: string,
  kind: 'absolute' | 'relative',
): number[] {
  return [...found].map(([name, { data }]) => {
    const golden = expectedTensor(expected, `${prefix}${name}`).data as Float32Array;
    let difference = 0;
    let largest = 0;
    for (let i = 0; i < data.length; i++) {
      difference = worse(difference, Math.abs(data[i]! - golden[i]!));
      largest = Math.max(largest, Math.abs(golden[i]!));
    }
    return kind === 'absolute' || largest === 0 ? difference : difference / largest;
  });
}

/** The larger of two differences; one that is no number is worst of all. */
export function worse(a: number, b: number): number {
  return Number.isNaN(b) ? Number.POSITIVE_INFINITY : Math.max(a, b);
}

/** @throws if the fixture has no such tensor. */
export function expectedTensor(tensors: ReadonlyMap<string, Tensor>, name: string): Tensor {
  const tensor = tensors.get(name);
  if (!tensor) throw new Error(`verify: expected.safetensors has no "${name}"`);
  return tensor;
}
