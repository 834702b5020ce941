import type { QuantizedMatrix, StoredTensor, Value } from '@fellrec/graph';
export interface QuantizedBase {
  readonly tensors: ReadonlyMap<string, StoredTensor>;
  layer(path: string): { forward: QuantizedMatrix; backward: QuantizedMatrix; terms: 1 | 2 };
  head(weight: Value): { forward: QuantizedMatrix; backward: Value; terms: 1 | 2 };
}
export function foldName(layer: number, group: 'attention' | 'mlp' | 'down'): string {
  return `model.layers.${layer}.${group}.fold`;
}
