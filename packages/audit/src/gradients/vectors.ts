// Products of tensors seen as one long vector.
import type { NamedTensors } from '@fellrec/graph';

/** Cosine of the angle between two vectors; 0 if one is zero. */
export function cosine(a: ArrayLike<number>, b: ArrayLike<number>): number {
  return cosineOf([[a, b]]);
}

/** Of all tensors of `a` with those of the same name of `b`. */
export function cosineOfTensors(a: NamedTensors, b: NamedTensors): number {
  return cosineOf([...a].map(([name, { data }]) => [data, b.get(name)!.data]));
}

/** `a - b`, tensor by tensor. */
export function difference(a: NamedTensors, b: NamedTensors): NamedTensors {
  return new Map(
    [...a].map(([name, tensor]) => {
      const other = b.get(name)!.data;
      return [name, { ...tensor, data: tensor.data.map((x, i) => x - other[i]!) }];
    }),
  );
}

function cosineOf(pairs: readonly (readonly [ArrayLike<number>, ArrayLike<number>])[]): number {
  let [product, ofA, ofB] = [0, 0, 0];
  for (const [a, b] of pairs)
    for (let i = 0; i < a.length; i++) {
      product += a[i]! * b[i]!;
      ofA += a[i]! * a[i]!;
      ofB += b[i]! * b[i]!;
    }
  return product === 0 ? 0 : product / Math.sqrt(ofA * ofB);
}
