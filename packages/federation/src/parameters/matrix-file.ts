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
  await rm(path).catch(async (error: unknown) => {
    await handle.close();
    throw error;
  });
  const blocks = Array.from({ length: Math.ceil(columns / blockColumns) }, (_, block) => {
    const from = block * blockColumns;
    return { from, width: Math.min(blockColumns, columns - from), position: 4 * rows * from };
  });

  /** Values of several arrays, one behind the other. */
  async function write(values: readonly Float32Array[], position: number): Promise<void> {
    const bytes = values.reduce((sum, { byteLength }) => sum + byteLength, 0);
    try {
      const { bytesWritten } = await handle.writev(values, position);
      if (bytesWritten < bytes) throw new Error(`${bytesWritten} of ${bytes} bytes were written`);
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
        await read(handle, values.subarray(from, from + width), position + 4 * row * width);
      return values;
    },
    async writeRow(row, values) {
      for (const { from, width, position } of blocks)
        await write([values.subarray(from, from + width)], position + 4 * row * width);
    },
    async *blocks() {
      // One is read while the one before it is computed with.
      const length = rows * Math.min(blockColumns, columns);
      const buffers = [new Float32Array(length), new Float32Array(length)] as const;
      const readBlock = async (block: number): Promise<Rows> => {
        const range = blocks[block];
        if (!range) return [];
        const values = buffers[block % 2 === 0 ? 0 : 1].subarray(0, rows * range.width);
        await read(handle, values, range.position);
        return rowsOf(values, range.width);
      };
      let next = readBlock(0);
      for (const block of blocks.keys()) {
        const current = await next;
        next = readBlock(block + 1);
        // Its failure is thrown when its turn comes; whoever leaves before must not meet it.
        next.catch(() => {});
        yield current;
      }
    },
    writeBlock: (block, values) => write(values, blocks[block]!.position),
    close: () => handle.close(),
  };
}

/** Rows in memory, cut as a file's. */
export function* inBlocks(rows: Rows): Generator<Rows, void, undefined> {
  for (let from = 0; from < rows[0]!.length; from += blockColumns)
    yield rows.map((row) => row.subarray(from, from + blockColumns));
}

function rowsOf(block: Float32Array, width: number): Rows {
  return Array.from({ length: block.length / width }, (_, row) =>
    block.subarray(row * width, (row + 1) * width),
  );
}

/** Fills `values`. */
async function read(handle: FileHandle, values: Float32Array, position: number): Promise<void> {
  const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  for (let done = 0; done < bytes.length; ) {
    const { bytesRead } = await handle.read(bytes, done, bytes.length - done, position + done);
    if (bytesRead === 0)
      throw new Error("federation: the file of the clients' parameters has become shorter");
    done += bytesRead;
  }
}
