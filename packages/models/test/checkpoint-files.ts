// Checkpoint files made by hand, byte by byte: what a writer of ours cannot get wrong in the same way.
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Float32Tensor } from '@fellrec/graph';

export interface Entry {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

/** A safetensors file. `edit` changes the header before it is written. */
export function safetensors(
  entries: Readonly<Record<string, Entry>>,
  edit: (
    header: Record<string, { dtype: string; shape: readonly number[]; data_offsets: number[] }>,
  ) => void = () => {},
): Buffer {
  const header: Parameters<typeof edit>[0] = {};
  let offset = 0;
  for (const [name, { dtype, shape, bytes }] of Object.entries(entries)) {
    header[name] = { dtype, shape, data_offsets: [offset, offset + bytes.length] };
    offset += bytes.length;
  }
  edit(header);
  return withHeader(JSON.stringify(header), ...Object.values(entries).map(({ bytes }) => bytes));
}

/** Any text as the header of a safetensors file. */
export function withHeader(text: string, ...parts: readonly Uint8Array[]): Buffer {
  const header = Buffer.from(text);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  return Buffer.concat([length, header, ...parts]);
}

export const bytesOf = ({ buffer, byteOffset, byteLength }: ArrayBufferView): Uint8Array =>
  new Uint8Array(buffer as ArrayBuffer, byteOffset, byteLength);
export const f32 = ({ data, dims }: Float32Tensor): Entry => ({
  dtype: 'F32',
  shape: dims,
  bytes: bytesOf(data),
});
export const f16 = ({ data, dims }: Float32Tensor): Entry => ({
  dtype: 'F16',
  shape: dims,
  bytes: bytesOf(Float16Array.from(data)),
});
/** The upper halves of the words: rounded towards 0. */
export const bf16 = ({ data, dims }: Float32Tensor): Entry => ({
  dtype: 'BF16',
  shape: dims,
  bytes: bytesOf(Uint16Array.from(new Uint32Array(Float32Array.from(data).buffer), (word) => word >>> 16)),
});

/** A folder with these files; what is no text or bytes is written as JSON. */
export function writeFolder(folder: string, files: Readonly<Record<string, Uint8Array | object>>): string {
  mkdirSync(folder, { recursive: true });
  for (const [name, content] of Object.entries(files))
    writeFileSync(join(folder, name), content instanceof Uint8Array ? content : JSON.stringify(content));
  return folder;
}
