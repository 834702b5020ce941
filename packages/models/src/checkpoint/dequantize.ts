// The quantised blocks of GGUF (ggml's layouts) as float32. A block holds 32 consecutive elements of a row.

export interface Encoding {
  readonly name: string;
  /** Elements and bytes of one block. */
  readonly blockElements: number;
  readonly blockBytes: number;
  readonly decode: (bytes: DataView, elements: number) => Float32Array;
}

/** By ggml's type number. */
export const encodings: ReadonlyMap<number, Encoding> = new Map<number, Encoding>([
  [0, plain('F32', 4, (bytes, at) => bytes.getFloat32(at, true))],
  [1, plain('F16', 2, (bytes, at) => bytes.getFloat16(at, true))],
  [30, plain('BF16', 2, (bytes, at) => widen(bytes.getUint16(at, true)))],
  // value = d q, q in 0..15 less 8: the low nibbles are the first 16 elements, the high ones the last.
  [
    2,
    blocks('Q4_0', 18, (bytes, at, out, to) =>
      nibbles(bytes, at + 2, out, to, bytes.getFloat16(at, true), -8, 0),
    ),
  ],
  // value = d q + m
  [
    3,
    blocks('Q4_1', 20, (bytes, at, out, to) =>
      nibbles(bytes, at + 4, out, to, bytes.getFloat16(at, true), 0, bytes.getFloat16(at + 2, true)),
    ),
  ],
  // value = d q, q a signed byte
  [
    8,
    blocks('Q8_0', 34, (bytes, at, out, to) => {
      const d = bytes.getFloat16(at, true);
      for (let i = 0; i < 32; i++) out[to + i] = d * bytes.getInt8(at + 2 + i);
    }),
  ],
]);

function nibbles(
  bytes: DataView,
  at: number,
  out: Float32Array,
  to: number,
  d: number,
  shift: number,
  m: number,
): void {
  for (let i = 0; i < 16; i++) {
    const pair = bytes.getUint8(at + i);
    out[to + i] = d * ((pair & 15) + shift) + m;
    out[to + i + 16] = d * ((pair >> 4) + shift) + m;
  }
}

function blocks(
  name: string,
  blockBytes: number,
  decodeBlock: (bytes: DataView, at: number, out: Float32Array, to: number) => void,
): Encoding {
  return {
    name,
    blockElements: 32,
    blockBytes,
    decode(bytes, elements) {
      const out = new Float32Array(elements);
      for (let to = 0, at = 0; to < elements; to += 32, at += blockBytes) decodeBlock(bytes, at, out, to);
      return out;
    },
  };
}

function plain(name: string, size: number, read: (bytes: DataView, at: number) => number): Encoding {
  return {
    name,
    blockElements: 1,
    blockBytes: size,
    decode: (bytes, elements) => Float32Array.from({ length: elements }, (_, i) => read(bytes, i * size)),
  };
}

const word = new DataView(new ArrayBuffer(4));
function widen(half: number): number {
  word.setUint32(0, half << 16);
  return word.getFloat32(0);
}
