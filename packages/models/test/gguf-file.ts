// GGUF files (version 3) made by hand, and ggml's block encodings the other way: values to bytes.
import type { Float32Tensor } from '@fellrec/graph';
import { bytesOf } from './checkpoint-files.ts';

export interface GgufTensor {
  /** ggml's type number. */
  readonly type: number;
  /** Row-major; GGUF lists them from the innermost. */
  readonly dims: readonly number[];
  readonly bytes: Uint8Array;
}
/** Whole numbers become uint32, others float32. */
export type GgufMetadata = Readonly<Record<string, string | number | { readonly float: number }>>;

const alignment = 32;

export function ggufFile(metadata: GgufMetadata, tensors: Readonly<Record<string, GgufTensor>>): Buffer {
  const parts: Buffer[] = [];
  const u32 = (n: number) => parts.push(bytes(4, (b) => b.writeUInt32LE(n)));
  const u64 = (n: number) => parts.push(bytes(8, (b) => b.writeBigUInt64LE(BigInt(n))));
  const text = (s: string) => {
    u64(Buffer.byteLength(s));
    parts.push(Buffer.from(s));
  };
  parts.push(Buffer.from('GGUF'));
  u32(3);
  u64(Object.keys(tensors).length);
  u64(Object.keys(metadata).length);
  for (const [key, setting] of Object.entries(metadata)) {
    text(key);
    if (typeof setting === 'string') {
      u32(8);
      text(setting);
    } else if (typeof setting === 'number') {
      u32(4);
      u32(setting);
    } else {
      u32(6);
      parts.push(bytes(4, (b) => b.writeFloatLE(setting.float)));
    }
  }
  let offset = 0;
  for (const [name, { type, dims, bytes }] of Object.entries(tensors)) {
    text(name);
    u32(dims.length);
    for (const dim of dims.toReversed()) u64(dim);
    u32(type);
    u64(offset);
    offset += padded(bytes.length);
  }
  const header = Buffer.concat(parts);
  const data = Object.values(tensors).flatMap(({ bytes }) => [
    bytes,
    Buffer.alloc(padded(bytes.length) - bytes.length),
  ]);
  return Buffer.concat([header, Buffer.alloc(padded(header.length) - header.length), ...data]);
}

const padded = (length: number) => Math.ceil(length / alignment) * alignment;
function bytes(length: number, write: (buffer: Buffer) => void): Buffer {
  const buffer = Buffer.alloc(length);
  write(buffer);
  return buffer;
}

/** ggml's type number and how it holds values, by name. */
export const encode: Readonly<
  Record<
    'F32' | 'F16' | 'BF16' | 'Q8_0' | 'Q4_0' | 'Q4_1',
    { type: number; bytes(data: Float32Array): Uint8Array }
  >
> = {
  F32: { type: 0, bytes: bytesOf },
  F16: { type: 1, bytes: (data) => bytesOf(Float16Array.from(data)) },
  BF16: {
    type: 30,
    bytes: (data) => bytesOf(Uint16Array.from(new Uint32Array(data.slice().buffer), (word) => word >>> 16)),
  },
  Q8_0: {
    type: 8,
    bytes: byBlock((block) => {
      const scale = Math.max(...block.map(Math.abs)) / 127;
      return [...half(scale), ...block.map((x) => Math.round(scale === 0 ? 0 : x / scale) & 255)];
    }),
  },
  Q4_0: {
    type: 2,
    bytes: byBlock((block) => {
      const scale = Math.max(...block.map(Math.abs)) / 7;
      return [...half(scale), ...nibbles(block.map((x) => Math.round(scale === 0 ? 0 : x / scale) + 8))];
    }),
  },
  Q4_1: {
    type: 3,
    bytes: byBlock((block) => {
      const least = Math.min(...block);
      const scale = (Math.max(...block) - least) / 15;
      const quants = block.map((x) => Math.round(scale === 0 ? 0 : (x - least) / scale));
      return [...half(scale), ...half(least), ...nibbles(quants)];
    }),
  },
};

function byBlock(encodeBlock: (block: number[]) => number[]): (data: Float32Array) => Uint8Array {
  return (data) =>
    Uint8Array.from(
      Array.from({ length: data.length / 32 }, (_, i) => [...data.subarray(32 * i, 32 * i + 32)]).flatMap(
        encodeBlock,
      ),
    );
}

export const half = (x: number): number[] => [...bytesOf(Float16Array.of(x))];
/** The first 16 in the low halves, the last 16 in the high ones. */
export const nibbles = (quants: readonly number[]): number[] =>
  Array.from({ length: 16 }, (_, i) => quants[i]! | (quants[i + 16]! << 4));

/** Hugging Face's row order (halves of a head apart) to GGUF's (interleaved), as llama.cpp's converter permutes. */
export function interleaveRows({ data, dims }: Float32Tensor, heads: number): Float32Array {
  const [rows, columns] = dims as [number, number];
  const headDim = rows / heads;
  return Float32Array.from(data, (_, at) => {
    const [row, column] = [Math.floor(at / columns), at % columns];
    const [head, place] = [Math.floor(row / headDim), row % headDim];
    const from = head * headDim + (place % 2) * (headDim / 2) + Math.floor(place / 2);
    return data[from * columns + column]!;
  });
}
