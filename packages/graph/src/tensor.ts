// Tensors as plain data: what a program takes and returns, what clients and servers exchange.

export interface Float32Tensor {
  readonly dtype: 'float32';
  readonly dims: readonly number[];
  /** Row-major. */
  readonly data: Float32Array;
}
export interface Int64Tensor {
  readonly dtype: 'int64';
  readonly dims: readonly number[];
  readonly data: BigInt64Array;
}
export interface BoolTensor {
  readonly dtype: 'bool';
  readonly dims: readonly number[];
  /** One byte an element, 0 or 1. */
  readonly data: Uint8Array;
}
export type Tensor = Float32Tensor | Int64Tensor | BoolTensor;

/**
 * Trainable tensors by their name, in a fixed order: an adapter, its gradient, an update. Whoever receives them never
 * changes them; an optimizer changes its state's own.
 */
export type NamedTensors = ReadonlyMap<string, Float32Tensor>;

/** Where a frozen tensor's bytes lie: a range of a file, little-endian, row-major. Never read into the process as a whole. */
export interface StoredTensor {
  readonly dtype: 'float32' | 'float16' | 'bfloat16' | 'int8' | 'uint8';
  readonly dims: readonly number[];
  /** Absolute path. */
  readonly file: string;
  readonly byteOffset: number;
  readonly byteLength: number;
}

/** Number of elements of a tensor with these dimensions. */
export function elementCount(dims: readonly number[]): number {
  return dims.reduce((product, dim) => product * dim, 1);
}

/** A float32 tensor over `data` (not copied). @throws if the dimensions do not multiply to its length. */
export function float32(data: Float32Array | readonly number[], dims: readonly number[]): Float32Tensor {
  const array = data instanceof Float32Array ? data : Float32Array.from(data);
  assertLength(array.length, dims);
  return { dtype: 'float32', dims, data: array };
}

/** An int64 tensor of token ids, positions or indices. @throws if the dimensions do not multiply to its length. */
export function int64(data: ArrayLike<number>, dims: readonly number[]): Int64Tensor {
  assertLength(data.length, dims);
  const array = new BigInt64Array(data.length);
  for (let i = 0; i < data.length; i++) array[i] = BigInt(data[i]!);
  return { dtype: 'int64', dims, data: array };
}

/** A float32 tensor of zeros. */
export function zeros(dims: readonly number[]): Float32Tensor {
  return { dtype: 'float32', dims, data: new Float32Array(elementCount(dims)) };
}

/** Gives the memory of a tensor back at once, where it is the tensor's alone. It must not be read any more. */
export function freeTensor({ data }: Tensor): void {
  if (data.byteLength === data.buffer.byteLength) (data.buffer as ArrayBuffer).transfer(0);
}

function assertLength(length: number, dims: readonly number[]): void {
  if (length !== elementCount(dims))
    throw new Error(`tensor: ${length} values do not fill [${dims.join(', ')}]`);
}
