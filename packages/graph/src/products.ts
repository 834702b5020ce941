// Inner products and weighted sums of many long rows, block of columns by block, on the engine's matrix product: float32
// within a block, float64 over blocks.
import { input, linear, matmul } from './operations.ts';
import type { Program, Runtime } from './runtime/runtime.ts';
import { float32 } from './tensor.ts';

/** Equally long rows. */
type Rows = readonly Float32Array[];

export interface RowProducts {
  /** `[i][j]`: the sum of x_i . x_j over all blocks, x = rows - origins, or x = rows. */
  gram(
    blocks: AsyncIterable<{ readonly rows: Rows; readonly origins?: Rows | undefined }>,
  ): Promise<number[][]>;
  /** Of each block `sum_j matrix[c][j] rows[j]` for every row c of the matrix. */
  mix(matrix: readonly (readonly number[])[], blocks: AsyncIterable<Rows>): AsyncIterable<Float32Array[]>;
  /** Frees native memory, if any was taken. */
  dispose(): Promise<void>;
}

/** Columns multiplied at once: 16 MB of a thousand rows. From 2048 to 16384 the speed is the same, below it falls. */
const maxColumns = 4096;
/** The Gram matrix is symmetric: group by group of rows, only what lies from the diagonal on is computed, 9/16 of it. */
const groups = 8;

/** Programs are compiled when they are first needed. */
export function rowProducts(runtime: Runtime): RowProducts {
  const x = input('x', 'float32', ['n', 'columns']);
  const compiled: Program[] = [];
  const once = (compile: () => Promise<Program<'y'>>) => {
    let program: Promise<Program<'y'>> | undefined;
    return () => {
      program ??= compile().then((found) => {
        compiled.push(found);
        return found;
      });
      return program;
    };
  };
  const inner = once(() => runtime.compile({ y: linear(input('rows', 'float32', ['m', 'columns']), x) }));
  const weighted = once(() => runtime.compile({ y: matmul(input('matrix', 'float32', ['m', 'n']), x) }));

  return {
    async gram(blocks) {
      const { run } = await inner();
      let sums: Float64Array[] = [];
      const stack = stacker();
      for await (const { rows, origins } of blocks) {
        const n = rows.length;
        if (sums.length === 0) sums = rows.map(() => new Float64Array(n));
        const groupSize = Math.ceil(n / groups);
        for (const { from, columns } of pieces(rows)) {
          const stacked = stack(rows, origins, from, columns);
          for (let i = 0; i < n; i += groupSize) {
            const size = Math.min(groupSize, n - i);
            const { y } = await run({
              rows: float32(stacked.subarray(i * columns, (i + size) * columns), [size, columns]),
              x: float32(stacked.subarray(i * columns), [n - i, columns]),
            });
            addFrom(sums, i, y.data as Float32Array, n - i);
          }
        }
      }
      return sums.map((row, i) => Array.from(row, (sum, j) => (j < i ? sums[j]![i]! : sum)));
    },

    async *mix(matrix, blocks) {
      const { run } = await weighted();
      const stack = stacker();
      const weights = float32(matrix.flat(), [matrix.length, matrix[0]?.length ?? 0]);
      for await (const rows of blocks) {
        const mixed = matrix.map(() => new Float32Array(rows[0]!.length));
        for (const { from, columns } of pieces(rows)) {
          const stacked = stack(rows, undefined, from, columns);
          const { y } = await run({ matrix: weights, x: float32(stacked, [rows.length, columns]) });
          for (const [c, row] of mixed.entries())
            row.set((y.data as Float32Array).subarray(c * columns, (c + 1) * columns), from);
        }
        yield mixed;
      }
    },

    async dispose() {
      for (const program of compiled) await program.dispose();
    },
  };
}

function* pieces(rows: Rows): Generator<{ from: number; columns: number }> {
  const width = rows[0]!.length;
  for (let from = 0; from < width; from += maxColumns)
    yield { from, columns: Math.min(maxColumns, width - from) };
}

/** Returns what puts columns of rows one below the other, [n, columns], valid until it is called again. */
function stacker() {
  let buffer = new Float32Array(0);
  return (rows: Rows, origins: Rows | undefined, from: number, columns: number): Float32Array => {
    if (buffer.length < rows.length * columns) buffer = new Float32Array(rows.length * columns);
    const stacked = buffer.subarray(0, rows.length * columns);
    for (const [c, row] of rows.entries()) {
      const target = stacked.subarray(c * columns, (c + 1) * columns);
      const values = row.subarray(from, from + columns);
      if (origins) subtract(target, values, origins[c]!.subarray(from, from + columns));
      else target.set(values);
    }
    return stacked;
  };
}

function subtract(target: Float32Array, values: Float32Array, origin: Float32Array): void {
  for (let k = 0; k < target.length; k++) target[k] = values[k]! - origin[k]!;
}

/** Adds products [rows, width] of the rows from i on with all that follow. */
function addFrom(sums: readonly Float64Array[], i: number, products: Float32Array, width: number): void {
  for (let r = 0; r * width < products.length; r++) {
    const row = sums[i + r]!;
    for (let c = 0; c < width; c++) row[i + c]! += products[r * width + c]!;
  }
}
