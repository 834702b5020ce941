// Named tensors as they cross: a list that says what comes, then the elements of all of them, one behind the other, in
// parts. Elements are little-endian, as in memory on every machine that Node is built for but IBM's mainframes.
import { createHash } from 'node:crypto';
import { create, equals } from '@bufbuild/protobuf';
import { elementCount, type Float32Tensor, type NamedTensors } from '@fellrec/graph';
import { type ParametersInfo, ParametersInfoSchema } from '#proto/federation_pb';
import { ElementType, type TensorInfo, TensorInfoSchema } from '#proto/tensor_pb';
import { invalid } from './invalid.ts';

export function describe(tensors: NamedTensors): ParametersInfo {
  const hash = createHash('sha256');
  let bytes = 0;
  for (const { data } of tensors.values()) {
    hash.update(bytesOf(data));
    bytes += data.byteLength;
  }
  return create(ParametersInfoSchema, {
    tensors: [...tensors].map(([name, { dims }]) => ({ name, type: ElementType.FLOAT32, dims: [...dims] })),
    bytes: BigInt(bytes),
    sha256: hash.digest(),
  });
}

/** Elements from a byte on, `partBytes` at a time; copied only where a part reaches over several tensors. */
export function* partsOf(tensors: NamedTensors, offset: number, partBytes: number): Generator<Uint8Array> {
  let skipped = offset;
  let pieces: Uint8Array[] = [];
  let room = partBytes;
  for (const { data } of tensors.values()) {
    let rest = bytesOf(data).subarray(skipped);
    skipped = Math.max(0, skipped - data.byteLength);
    while (rest.length > 0) {
      const piece = rest.subarray(0, room);
      rest = rest.subarray(piece.length);
      pieces.push(piece);
      room -= piece.length;
      if (room > 0) continue;
      yield joined(pieces);
      pieces = [];
      room = partBytes;
    }
  }
  if (pieces.length > 0) yield joined(pieces);
}

/** The tensors over `bytes`, which is not copied and must hold exactly their elements. */
export function tensorsOver(bytes: ArrayBuffer, { tensors }: ParametersInfo): NamedTensors {
  let offset = 0;
  return new Map(
    tensors.map(({ name, dims }): [string, Float32Tensor] => {
      const data = new Float32Array(bytes, offset, elementCount(dims));
      offset += data.byteLength;
      return [name, { dtype: 'float32', dims, data }];
    }),
  );
}

/** Bytes of the tensors that it lists. @throws INVALID_ARGUMENT if it contradicts itself. */
export function consistentBytes({ tensors, bytes, sha256 }: ParametersInfo): number {
  const names = new Set<string>();
  let sum = 0;
  for (const tensor of tensors) {
    if (names.has(tensor.name))
      throw invalid(`parameters: ${printed(tensor)} has the name of an earlier one`);
    names.add(tensor.name);
    if (tensor.type !== ElementType.FLOAT32)
      throw invalid(`parameters: ${printed(tensor)} is not float32, which parameters cross as`);
    sum += 4 * elementCount(tensor.dims);
  }
  if (!Number.isSafeInteger(sum) || bytes !== BigInt(sum))
    throw invalid(`parameters: bytes is ${bytes}, but the tensors' elements are ${sum} bytes`);
  assertChecksum(sha256);
  return sum;
}

/** @throws INVALID_ARGUMENT naming the first tensor that is another one than expected, or comes in another order. */
export function assertSameTensors(found: ParametersInfo, expected: ParametersInfo): void {
  if (found.tensors.length !== expected.tensors.length)
    throw invalid(
      `parameters: ${found.tensors.length} tensors; send the ${expected.tensors.length} of the task, in its order`,
    );
  for (const [i, tensor] of expected.tensors.entries()) {
    const other = found.tensors[i]!;
    if (!equals(TensorInfoSchema, other, tensor))
      throw invalid(`parameters: tensor ${i} is ${printed(other)}; that of the task is ${printed(tensor)}`);
  }
  if (found.bytes !== expected.bytes)
    throw invalid(`parameters: bytes is ${found.bytes}; the tensors of the task have ${expected.bytes}`);
  assertChecksum(found.sha256);
}

/** @throws INVALID_ARGUMENT */
export function assertChecksum(sha256: Uint8Array): void {
  if (sha256.length !== 32)
    throw invalid(`sha256 is ${sha256.length} bytes long; send the 32 bytes of a SHA-256`);
}

/** Names the first tensor with NaN or an infinity; undefined if there is none. */
export function firstNotFinite(tensors: NamedTensors): string | undefined {
  for (const [name, { data }] of tensors)
    for (let i = 0; i < data.length; i++) if (!Number.isFinite(data[i]!)) return name;
  return undefined;
}

export function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('hex');
}

/** Of bounded length, whatever was sent. */
function printed({ name, type, dims }: TensorInfo): string {
  const shape = dims.length > 8 ? `${dims.length} dimensions` : dims.join(', ');
  const short = name.length > 300 ? `${name.slice(0, 300)}... (${name.length} characters)` : name;
  return `"${short}" ${ElementType[type] ?? type} [${shape}]`;
}

function bytesOf({ buffer, byteOffset, byteLength }: Float32Array): Uint8Array {
  return new Uint8Array(buffer, byteOffset, byteLength);
}

function joined(pieces: readonly Uint8Array[]): Uint8Array {
  return pieces.length === 1 ? pieces[0]! : Buffer.concat(pieces);
}
