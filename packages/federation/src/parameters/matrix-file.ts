// A float32 matrix in a file, a client's parameters a row. It lies there in blocks of columns, one behind the other, each
// [rows, columns]: a block is read at once, a row in as many pieces as there are blocks.
import { randomUUID } from 'node:crypto';
import { type FileHandle, open, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Rows } from '../products/products.ts';
import { asideSuffix } from '../store/files.ts';

/** Columns of a block: 16 MB of a thousand rows. */
const blockColumns = 4096;

export interface MatrixFile {
  readRow(row: number): Promise<Float32Array>;
  writeRow(row: number, values: Float32Array): Promise<void>;
  /** All blocks in their order, each valid until the next one is asked for. */
  blocks(): AsyncGenerator<Rows, void, undefined>;
  writeBlock(block: number, rows: Rows): Promise<void>;
  close(): Promise<void>;
}

/** The file has no name: its space is free again when it is closed, or when the process dies. */
export async function matrixFile(
  directory: string,
  { rows, columns }: { readonly rows: number; readonly columns: number },
): Promise<MatrixFile> {
  const path = join(directory, `parameters-${randomUUID()}${asideSuffix}`);
  const handle = await open(path, 'wx+');
  await rm(path);
  const blocks = Array.from({ length: Math.ceil(columns / blockColumns) }, (_, block) => {
    const from = block * blockColumns;
    return { from, width: Math.min(blockColumns, columns - from), position: 4 * rows * from };
  });
  const scratch = new Float32Array(rows * Math.min(blockColumns, columns));

  async function write(values: Float32Array, position: number): Promise<void> {
    try {
      await transfer(handle, 'write', values, position);
    } catch (cause) {
      const needed = Math.ceil((4 * rows * columns) / 2 ** 20);
      throw new Error(
        `federation: cannot write the clients' parameters (${needed} MiB) below ${directory}: ${(cause as Error).message}`,
        { cause },
      );
    }
  }

  return {
    async readRow(row) {
      const values = new Float32Array(columns);
      for (const { from, width, position } of blocks)
        await transfer(handle, 'read', values.subarray(from, from + width), position + 4 * row * width);
      return values;
    },
    async writeRow(row, values) {
      for (const { from, width, position } of blocks)
        await write(values.subarray(from, from + width), position + 4 * row * width);
    },
    async *blocks() {
      // One is read while the one before it is computed with.
      const buffers = [new Float32Array(scratch.length), new Float32Array(scratch.length)] as const;
      const read = async (block: number): Promise<Rows> => {
        const range = blocks[block];
        if (!range) return [];
        const values = buffers[block % 2 === 0 ? 0 : 1].subarray(0, rows * range.width);
        await transfer(handle, 'read', values, range.position);
        return rowsOf(values, range.width);
      };
      let next = read(0);
      for (const block of blocks.keys()) {
        const current = await next;
        next = read(block + 1);
        // Its failure is thrown when its turn comes; whoever leaves before must not meet it.
        next.catch(() => {});
        yield current;
      }
    },
    async writeBlock(block, values) {
      const { width, position } = blocks[block]!;
      for (const [row, own] of values.entries()) scratch.set(own, row * width);
      await write(scratch.subarray(0, rows * width), position);
    },
    close: () => handle.close(),
  };
}

function rowsOf(block: Float32Array, width: number): Rows {
  return Array.from({ length: block.length / width }, (_, row) =>
    block.subarray(row * width, (row + 1) * width),
  );
}

/** Reads or writes all of `values`. */
async function transfer(
  handle: FileHandle,
  direction: 'read' | 'write',
  values: Float32Array,
  position: number,
): Promise<void> {
  const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  for (let done = 0; done < bytes.length; ) {
    const left = bytes.subarray(done);
    const moved =
      direction === 'read'
        ? (await handle.read(left, 0, left.length, position + done)).bytesRead
        : (await handle.write(left, 0, left.length, position + done)).bytesWritten;
    if (moved === 0)
      throw new Error(`federation: ${left.length} bytes of the clients' parameters are not there`);
    done += moved;
  }
}
