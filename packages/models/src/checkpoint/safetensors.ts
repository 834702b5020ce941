// safetensors: an 8-byte length, a JSON header, then the tensors' bytes.
import { randomUUID } from 'node:crypto';
import { type FileHandle, open, realpath, rename, rm } from 'node:fs/promises';
import { basename } from 'node:path';
import {
  elementCount,
  type Float32Tensor,
  type NamedTensors,
  type StoredTensor,
  type Tensor,
} from '@fellrec/graph';
import { z } from 'zod';

const maxHeaderBytes = 100 * 2 ** 20;
/** Node reads at most 2^31 - 1 bytes at once. */
const maxReadBytes = 2 ** 30;
/** Of a tensor that is copied, held at once. */
const maxPieceBytes = 2 ** 20;
/** Tensors of other types are only known by their range. */
const elementBytes: Readonly<Record<string, number | undefined>> = {
  F32: 4,
  F16: 2,
  BF16: 2,
  I64: 8,
  I32: 4,
  U8: 1,
  I8: 1,
  BOOL: 1,
  F64: 8,
};
const floatTypes = { F32: 'float32', F16: 'float16', BF16: 'bfloat16' } as const;
const storedTypes = { ...floatTypes, I8: 'int8', U8: 'uint8' } as const;
export const typeNames = {
  float32: 'F32',
  float16: 'F16',
  bfloat16: 'BF16',
  int8: 'I8',
  uint8: 'U8',
} as const;

const whole = z.number().int().nonnegative().max(Number.MAX_SAFE_INTEGER);
const entrySchema = z.object({
  dtype: z.string(),
  shape: z.array(whole),
  data_offsets: z.tuple([whole, whole]),
});
type Entry = z.infer<typeof entrySchema>;

/** The header's entries with absolute byte ranges, in the file's order. */
async function readHeader(file: string): Promise<Map<string, Entry>> {
  const handle = await open(file).catch((cause) => {
    throw new Error(
      `model: cannot open ${file}: ${cause.code === 'ENOENT' ? 'no such file' : cause.message}`,
      { cause },
    );
  });
  try {
    const { size: fileSize } = await handle.stat();
    const length = Number((await readExactly(handle, 0, 8, file)).readBigUInt64LE());
    if (length > maxHeaderBytes || 8 + length > fileSize)
      throw new Error(
        `model: ${file} is no safetensors file, or truncated: its header would have ${length} bytes, the file has ${fileSize}`,
      );
    const text = (await readExactly(handle, 8, length, file)).toString('utf8');
    const header = parseHeader(text, file);
    const start = 8 + length;
    for (const [name, { dtype, shape, data_offsets }] of header) {
      const [from, to] = data_offsets;
      const bytes = elementBytes[dtype];
      if (to < from || (bytes !== undefined && to - from !== elementCount(shape) * bytes))
        throw new Error(`model: "${name}" in ${file} is ${dtype} [${shape}] but has ${to - from} bytes`);
      if (start + to > fileSize)
        throw new Error(
          `model: ${file} is truncated: "${name}" ends at byte ${start + to}, the file has ${fileSize}; download it again`,
        );
      data_offsets[0] = start + from;
      data_offsets[1] = start + to;
    }
    refuseOverlaps(header, file);
    return header;
  } finally {
    await handle.close();
  }
}

function refuseOverlaps(header: ReadonlyMap<string, Entry>, file: string): void {
  const filled = [...header].filter(
    ([
      ,
      {
        data_offsets: [from, to],
      },
    ]) => to > from,
  );
  filled.sort(([, a], [, b]) => a.data_offsets[0] - b.data_offsets[0]);
  for (const [i, [name, { data_offsets }]] of filled.entries()) {
    const before = filled[i - 1];
    if (before && data_offsets[0] < before[1].data_offsets[1])
      throw new Error(`model: "${before[0]}" and "${name}" in ${file} overlap; download it again`);
  }
}

function parseHeader(text: string, file: string): Map<string, Entry> {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new Error(`model: the header of ${file} is not JSON; is it a safetensors file?`, { cause });
  }
  const parsed = z.record(z.string(), z.unknown()).safeParse(json);
  if (!parsed.success)
    throw new Error(`model: the header of ${file} is no JSON object; is it a safetensors file?`);
  return new Map(
    Object.entries(parsed.data)
      .filter(([name]) => name !== '__metadata__')
      .map(([name, entry]) => {
        const checked = entrySchema.safeParse(entry);
        if (!checked.success)
          throw new Error(`model: "${name}" in the header of ${file}: ${z.prettifyError(checked.error)}`);
        return [name, checked.data];
      }),
  );
}

export interface SafetensorsIndex {
  readonly tensors: ReadonlyMap<string, StoredTensor>;
  /** The types of tensors that are no floats of 16 or 32 bits, nor 8-bit integers, by name. */
  readonly others: ReadonlyMap<string, string>;
}

/** Where the file's tensors lie; nothing but the header is read. @throws on a file that is damaged or truncated, naming the tensor. */
export async function readSafetensorsIndex(file: string): Promise<SafetensorsIndex> {
  const header = await readHeader(file);
  // ONNX Runtime maps no file that a link leads out of its folder to, as all of the Hugging Face hub's cache do.
  const path = await realpath(file);
  const tensors = new Map<string, StoredTensor>();
  const others = new Map<string, string>();
  for (const [name, { dtype, shape, data_offsets }] of header) {
    const [from, to] = data_offsets;
    const type = storedTypes[dtype as keyof typeof storedTypes];
    if (type)
      tensors.set(name, { dtype: type, dims: shape, file: path, byteOffset: from, byteLength: to - from });
    else others.set(name, dtype);
  }
  return { tensors, others };
}

function isFloat(dtype: string): dtype is keyof typeof floatTypes {
  return Object.hasOwn(floatTypes, dtype);
}

/** A stored tensor's values as float32. */
export async function readTensor({
  file,
  byteOffset,
  byteLength,
  dtype,
  dims,
}: StoredTensor): Promise<Float32Tensor> {
  const handle = await open(file);
  try {
    const bytes = await readExactly(handle, byteOffset, byteLength, file);
    return { dtype: 'float32', dims, data: widen(bytes, dtype) };
  } finally {
    await handle.close();
  }
}

/** All tensors of a small file; halves are widened, I32 becomes int64. */
export async function readSafetensors(file: string): Promise<Map<string, Tensor>> {
  const header = await readHeader(file);
  const handle = await open(file);
  try {
    const tensors = new Map<string, Tensor>();
    for (const [name, { dtype, shape, data_offsets }] of header) {
      const [from, to] = data_offsets;
      const bytes = await readExactly(handle, from, to - from, file);
      tensors.set(name, toTensor(bytes, dtype, shape, `"${name}" in ${file}`));
    }
    return tensors;
  } finally {
    await handle.close();
  }
}

function toTensor(bytes: Buffer, dtype: string, dims: readonly number[], what: string): Tensor {
  const { buffer, byteOffset, byteLength } = bytes;
  if (isFloat(dtype)) return { dtype: 'float32', dims, data: widen(bytes, floatTypes[dtype]) };
  if (dtype === 'I64')
    return { dtype: 'int64', dims, data: new BigInt64Array(buffer, byteOffset, byteLength / 8) };
  if (dtype === 'I32')
    return {
      dtype: 'int64',
      dims,
      data: BigInt64Array.from(new Int32Array(buffer, byteOffset, byteLength / 4), BigInt),
    };
  if (dtype === 'BOOL') return { dtype: 'bool', dims, data: bytes };
  throw new Error(`model: ${what} has unsupported type ${dtype}`);
}

function widen({ buffer, byteOffset, byteLength }: Buffer, dtype: StoredTensor['dtype']): Float32Array {
  if (dtype === 'int8') return Float32Array.from(new Int8Array(buffer, byteOffset, byteLength));
  if (dtype === 'uint8') return Float32Array.from(new Uint8Array(buffer, byteOffset, byteLength));
  if (dtype === 'float32') return new Float32Array(buffer, byteOffset, byteLength / 4);
  if (dtype === 'float16') return Float32Array.from(new Float16Array(buffer, byteOffset, byteLength / 2));
  const halves = new Uint16Array(buffer, byteOffset, byteLength / 2);
  const words = new Uint32Array(halves.length);
  for (let i = 0; i < halves.length; i++) words[i] = halves[i]! << 16;
  return new Float32Array(words.buffer);
}

/** A buffer of its own (so its start is aligned). @throws if the file ends before. */
export async function readExactly(
  handle: FileHandle,
  position: number,
  length: number,
  file: string,
): Promise<Buffer> {
  const buffer = Buffer.from(new ArrayBuffer(length));
  for (let done = 0; done < length; ) {
    const { bytesRead } = await handle.read(
      buffer,
      done,
      Math.min(length - done, maxReadBytes),
      position + done,
    );
    if (bytesRead === 0) throw new Error(`model: ${file} ended at byte ${position + done}; it is truncated`);
    done += bytesRead;
  }
  return buffer;
}

/** Writes float32 tensors in the map's order; the same tensors give the same bytes. The file appears whole or not at all. */
export async function writeSafetensors(
  file: string,
  tensors: NamedTensors,
  metadata?: Record<string, string>,
): Promise<void> {
  await writeSafetensorsStream(file, tensors, async (name) => tensors.get(name)!.data, metadata);
}

/** As `writeSafetensors` for files larger than memory: each tensor is asked for when its turn comes. */
export async function writeSafetensorsStream(
  file: string,
  layout: ReadonlyMap<string, Pick<StoredTensor, 'dtype' | 'dims'>>,
  values: (name: string) => Promise<Float32Array | Int8Array | Uint8Array>,
  metadata?: Record<string, string>,
): Promise<void> {
  async function* bytesOf(name: string, dims: readonly number[]) {
    const data = await values(name);
    if (data.length !== elementCount(dims))
      throw new Error(`model: "${name}" for ${basename(file)} has ${data.length} values, not [${dims}]`);
    yield new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  }
  await writePieces(file, layout, (name, { dims }) => bytesOf(name, dims), metadata);
}

/** Writes tensors of other files, their bytes as they are. The file appears whole or not at all. */
export async function copySafetensors(
  file: string,
  tensors: ReadonlyMap<string, StoredTensor>,
): Promise<void> {
  // As the format's own writer: with the widest types first, all are aligned.
  const width = ({ dtype }: StoredTensor) => elementBytes[typeNames[dtype]]!;
  const layout = new Map([...tensors].sort(([, a], [, b]) => width(b) - width(a)));
  await writePieces(file, layout, (_, stored) => storedPieces(stored));
}

async function* storedPieces({ file, byteOffset, byteLength }: StoredTensor): AsyncGenerator<Uint8Array> {
  const handle = await open(file);
  try {
    for (let done = 0; done < byteLength; done += maxPieceBytes)
      yield await readExactly(handle, byteOffset + done, Math.min(byteLength - done, maxPieceBytes), file);
  } finally {
    await handle.close();
  }
}

async function writePieces<T extends Pick<StoredTensor, 'dtype' | 'dims'>>(
  file: string,
  layout: ReadonlyMap<string, T>,
  piecesOf: (name: string, described: T) => AsyncIterable<Uint8Array>,
  metadata: Record<string, string> = { format: 'pt' },
): Promise<void> {
  const header: Record<string, unknown> = { __metadata__: metadata };
  let offset = 0;
  for (const [name, { dtype, dims }] of layout) {
    const type = typeNames[dtype];
    const bytes = elementBytes[type]! * elementCount(dims);
    header[name] = { dtype: type, shape: dims, data_offsets: [offset, offset + bytes] };
    offset += bytes;
  }
  const text = Buffer.from(JSON.stringify(header));
  const padded = Buffer.concat([text, Buffer.alloc((8 - (text.length % 8)) % 8, ' ')]);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(padded.length));

  // A name of its own: writers of one file may share a process, or (in containers) a process id.
  const temporary = `${file}.${randomUUID()}.tmp`;
  const handle = await open(temporary, 'w');
  try {
    await handle.writeFile(Buffer.concat([length, padded]));
    for (const [name, described] of layout)
      for await (const piece of piecesOf(name, described)) await handle.writeFile(piece);
    await handle.sync();
    await handle.close();
    await rename(temporary, file);
  } catch (cause) {
    await handle.close().catch(() => {});
    await rm(temporary, { force: true });
    throw new Error(`model: cannot write ${file}: ${(cause as Error).message}`, { cause });
  }
}
