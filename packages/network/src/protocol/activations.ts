// Activations as bytes: float32 as they are, float16, or int8 with a scale a row. The elements lie as in memory, which
// is little-endian on every machine that ONNX Runtime runs on.
import { create, type Message } from '@bufbuild/protobuf';
import { type Float32Tensor, float32 } from '@fellrec/graph';
import { type Activations, ActivationsSchema, ElementType } from '#proto/tensor_pb';
import { assertEqual, invalid } from './invalid.ts';

/** How a sender writes activations: 4, 2 or 1 bytes an element. */
export type ActivationsEncoding = 'float32' | 'float16' | 'int8';

interface Codec {
  readonly type: ElementType;
  readonly elementBytes: number;
  encode(data: Float32Array, columns: number): { readonly data: Uint8Array; readonly scales?: Uint8Array };
  /** The lengths of data and scales are right. */
  decode(message: Activations): Float32Array;
}

const codecs: Readonly<Record<ActivationsEncoding, Codec>> = {
  float32: {
    type: ElementType.FLOAT32,
    elementBytes: 4,
    encode: (data) => ({ data: bytesOf(data) }),
    decode: ({ data }) => float32sOf(data),
  },
  float16: { type: ElementType.FLOAT16, elementBytes: 2, encode: halves, decode: fromHalves },
  int8: { type: ElementType.INT8_ROWS, elementBytes: 1, encode: scaledRows, decode: fromScaledRows },
};

/**
 * Activations [rows, columns] as a message. With float32 it shares the tensor's memory. What is finite stays so: too
 * large a number becomes the largest float16. What is not finite does not become so, and the receiver refuses it.
 */
export function encodeActivations(tensor: Float32Tensor, encoding: ActivationsEncoding): Activations {
  const [rows, columns] = tensor.dims as [number, number];
  const { type, encode } = codecs[encoding];
  return create(ActivationsSchema, { type, rows, columns, ...encode(tensor.data, columns) });
}

/**
 * The tensor [rows, columns] of a message; it may share the message's memory.
 * @throws INVALID_ARGUMENT, naming the field, if the message has not exactly these rows and columns, all finite.
 */
export function decodeActivations(
  field: string,
  message: Activations | undefined,
  { rows, columns }: { readonly rows: number; readonly columns: number },
): Float32Tensor {
  if (!message) throw invalid(`${field}: missing`);
  const encoding = encodingOf(field, message);
  const { decode, elementBytes } = codecs[encoding];
  // Before anything is multiplied: rows and columns as sent may be anything below 2^32.
  assertEqual(`${field}.rows`, message.rows, rows);
  assertEqual(`${field}.columns`, message.columns, columns);
  assertEqual(`bytes of ${field}.data`, message.data.length, rows * columns * elementBytes);
  assertEqual(`bytes of ${field}.scales`, message.scales.length, encoding === 'int8' ? rows * 4 : 0);
  if (encoding === 'int8') assertScales(field, float32sOf(message.scales));
  const data = decode(message);
  const wrong = notFinite(data);
  if (wrong >= 0) {
    const at = `row ${Math.floor(wrong / columns)}, column ${wrong % columns}`;
    throw invalid(`${field}: expected finite numbers, found ${data[wrong]} in ${at}`);
  }
  return float32(data, [rows, columns]);
}

/** How a message is written: what the answer to it is to be written in. @throws INVALID_ARGUMENT if unknown. */
export function encodingOf(field: string, { type }: Activations): ActivationsEncoding {
  const known = Object.keys(codecs) as ActivationsEncoding[];
  const encoding = known.find((name) => codecs[name].type === type);
  if (!encoding)
    throw invalid(
      `${field}.type: expected one of ${known.map((name) => ElementType[codecs[name].type]).join(', ')}, ` +
        `found ${ElementType[type] ?? type}`,
    );
  return encoding;
}

/** A request or an answer. Those that carry activations carry one of these. */
export type Carrier = Message & { readonly states?: Activations; readonly gradient?: Activations };

/** Bytes of the activations that a message carries; what else is in it is small. */
export function payloadBytes({ states, gradient }: Carrier): number {
  const activations = states ?? gradient;
  return activations ? activations.data.length + activations.scales.length : 0;
}

/** Index of the first number that is not finite; -1: all are. */
function notFinite(data: Float32Array): number {
  for (let i = 0; i < data.length; i++) if (!Number.isFinite(data[i])) return i;
  return -1;
}

function assertScales(field: string, scales: Float32Array): void {
  const wrong = scales.findIndex((scale) => !(scale >= 0 && Number.isFinite(scale)));
  if (wrong >= 0)
    throw invalid(`${field}.scales: expected finite numbers from 0, found ${scales[wrong]} in row ${wrong}`);
}

const halfInfinity = 0x7c00;
const largestHalf = 0x7bff;
const signOfHalf = 0x8000;

function halves(data: Float32Array): { data: Uint8Array } {
  const rounded = new Float16Array(data);
  const bits = new Uint16Array(rounded.buffer);
  for (let i = 0; i < bits.length; i++)
    if ((bits[i]! & ~signOfHalf) === halfInfinity && Number.isFinite(data[i]))
      bits[i] = (bits[i]! & signOfHalf) | largestHalf;
  return { data: bytesOf(rounded) };
}

function fromHalves({ data }: Activations): Float32Array {
  const { buffer, byteOffset, byteLength } = aligned(data, 2);
  return new Float32Array(new Float16Array(buffer, byteOffset, byteLength / 2));
}

const smallestScale = 2 ** -126;
/** 127 times it, rounded, is finite. */
const largestScale = Math.fround((3.4028234663852886e38 / 127) * (1 - 2 ** -23));

// q = round(x / scale), scale = max |x| / 127 of the row
function scaledRows(data: Float32Array, columns: number): { data: Uint8Array; scales: Uint8Array } {
  const rows = columns === 0 ? 0 : data.length / columns;
  const scales = new Float32Array(rows);
  const quantized = new Int8Array(data.length);
  for (let row = 0; row < rows; row++) {
    const from = row * columns;
    const end = from + columns;
    let largest = 0;
    for (let i = from; i < end; i++) largest = Math.max(largest, Math.abs(data[i]!));
    scales[row] = scaleOf(largest);
    if (!(scales[row]! > 0)) continue;
    const inverse = 1 / scales[row]!;
    for (let i = from; i < end; i++) quantized[i] = Math.floor(data[i]! * inverse + 0.5);
  }
  return { data: bytesOf(quantized), scales: bytesOf(scales) };
}

/** Between the limits of what float32 holds without losing digits; 0 for a row of zeros. */
function scaleOf(largest: number): number {
  if (largest === 0) return 0;
  if (!Number.isFinite(largest)) return Number.NaN;
  return Math.min(Math.max(largest / 127, smallestScale), largestScale);
}

function fromScaledRows({ data, scales, columns }: Activations): Float32Array {
  const found = new Float32Array(data.length);
  const quantized = new Int8Array(data.buffer, data.byteOffset, data.length);
  float32sOf(scales).forEach((scale, row) => {
    const end = (row + 1) * columns;
    for (let i = row * columns; i < end; i++) found[i] = quantized[i]! * scale;
  });
  return found;
}

function bytesOf({ buffer, byteOffset, byteLength }: ArrayBufferView): Uint8Array {
  return new Uint8Array(buffer, byteOffset, byteLength);
}

function float32sOf(bytes: Uint8Array): Float32Array {
  const { buffer, byteOffset, byteLength } = aligned(bytes, 4);
  return new Float32Array(buffer, byteOffset, byteLength / 4);
}

/** The same bytes where elements of that size may lie: copied only if they do not lie there. */
function aligned(bytes: Uint8Array, elementBytes: number): Uint8Array {
  return bytes.byteOffset % elementBytes === 0 ? bytes : new Uint8Array(bytes);
}
