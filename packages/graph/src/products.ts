// Inner products and weighted sums of many long rows, block of columns by block, on the engine's matrix product: float32
// within a block, float64 over blocks.
import { input, linear, matmul, sub } from './operations.ts';
import type { Feeds, Program, Runtime } from './runtime/runtime.ts';
import type { Outputs } from './segments.ts';
import { type Float32Tensor, float32 } from './tensor.ts';

/** Equally long rows. Where they lie one behind the other in memory, nothing is copied. */
type Rows = readonly Float32Array[];

export interface RowProducts {
  /** `[i][j]`: the sum of x_i . x_j over all blocks, x = rows - origins, or x = rows. */
  gram(
    blocks: AsyncIterable<{ readonly rows: Rows; readonly origins?: Rows | undefined }>,
  ): Promise<number[][]>;
  /** Of each block `sum_j matrix[c][j] rows[j]` for every row c of the matrix; they lie one behind the other. */
  mix(matrix: readonly (readonly number[])[], blocks: AsyncIterable<Rows>): AsyncIterable<Float32Array[]>;
  /** Frees native memory, if any was taken. */
  dispose(): Promise<void>;
}

/** Columns summed in float32. With fewer than 2048 the matrix product is slower, with more than 4096 no faster. */
const maxColumns = 4096;
/** The Gram matrix is symmetric: of the pairs of groups of rows, 10 of 16 are computed. */
const groups = 4;
const pairs = Array.from({ length: groups }, (_, g) =>
  Array.from({ length: groups - g }, (_, h) => ({ name: `${g} x ${g + h}`, g, h: g + h })),
).flat();

/** Programs are compiled when they are first needed. */
export function rowProducts(runtime: Runtime): RowProducts {
  const programs = new Map<string, Promise<Program>>();
  const program = (name: string, outputs: () => Outputs): Promise<Program> => {
    let known = programs.get(name);
    if (!known) {
      known = runtime.compile(outputs());
      programs.set(name, known);
      // What failed is tried again.
      known.catch(() => programs.delete(name));
    }
    return known;
  };

  return {
    async gram(blocks) {
      let sums: Float64Array[] = [];
      for await (const { rows, origins } of blocks) {
        if (sums.length === 0) sums = rows.map(() => new Float64Array(rows.length));
        const { run } = await program(origins ? 'differences' : 'rows', () =>
          gramOutputs(origins !== undefined),
        );
        const size = Math.ceil(rows.length / groups);
        for (let from = 0; from < rows[0]!.length; from += maxColumns) {
          const found = await run({
            ...grouped('rows', stack(rows, from, from + maxColumns), size),
            ...(origins && grouped('origins', stack(origins, from, from + maxColumns), size)),
          });
          for (const { name, g, h } of pairs) add(sums, found[name] as Float32Tensor, g * size, h * size);
        }
      }
      return sums.map((row, i) => Array.from(row, (sum, j) => (j < i ? sums[j]![i]! : sum)));
    },

    async *mix(matrix, blocks) {
      const { run } = await program('mix', () => ({
        y: matmul(input('matrix', 'float32', ['m', 'n']), input('rows', 'float32', ['n', 'columns'])),
      }));
      const weights = float32(matrix.flat(), [matrix.length, matrix[0]?.length ?? 0]);
      for await (const rows of blocks) {
        const { y } = await run({ matrix: weights, rows: stack(rows) });
        yield rowsOf(y as Float32Tensor);
      }
    },

    async dispose() {
      const compiled = [...programs.values()];
      programs.clear();
      for (const program of compiled) await (await program).dispose();
    },
  };
}

/** x_g x_h^T of every two groups of rows, x = rows - origins, or x = rows. */
function gramOutputs(subtracts: boolean): Outputs {
  const x = Array.from({ length: groups }, (_, g) => {
    const rows = input(`rows ${g}`, 'float32', [`n${g}`, 'columns']);
    return subtracts ? sub(rows, input(`origins ${g}`, 'float32', [`n${g}`, 'columns'])) : rows;
  });
  return Object.fromEntries(pairs.map(({ name, g, h }) => [name, linear(x[g]!, x[h]!)]));
}

/** Feeds of groups of `size` rows; the last ones may be smaller, or empty. */
function grouped(name: string, { data, dims: [n, columns] }: Float32Tensor, size: number): Feeds {
  return Object.fromEntries(
    Array.from({ length: groups }, (_, g) => {
      const [from, to] = [Math.min(g * size, n!), Math.min((g + 1) * size, n!)];
      return [`${name} ${g}`, float32(data.subarray(from * columns!, to * columns!), [to - from, columns!])];
    }),
  );
}

/** Columns of rows as one tensor [rows, columns]: a view if all columns are taken of rows that lie together. */
function stack(rows: Rows, from = 0, to = rows[0]!.length): Float32Tensor {
  const width = rows[0]!.length;
  const columns = Math.min(to, width) - from;
  const [{ buffer, byteOffset }] = rows as [Float32Array];
  const isView =
    columns === width &&
    rows.every((row, c) => row.buffer === buffer && row.byteOffset === byteOffset + 4 * c * width);
  if (isView) return float32(new Float32Array(buffer, byteOffset, rows.length * width), [rows.length, width]);
  const stacked = new Float32Array(rows.length * columns);
  for (const [c, row] of rows.entries()) stacked.set(row.subarray(from, from + columns), c * columns);
  return float32(stacked, [rows.length, columns]);
}

function rowsOf({ data, dims: [n, columns] }: Float32Tensor): Float32Array[] {
  return Array.from({ length: n! }, (_, c) => data.subarray(c * columns!, (c + 1) * columns!));
}

/** Adds a block of products to the sums from row i and column j on. */
function add(sums: readonly Float64Array[], { data, dims }: Float32Tensor, i: number, j: number): void {
  const [height, width] = dims as [number, number];
  for (let r = 0; r < height; r++) {
    const row = sums[i + r]!;
    for (let c = 0; c < width; c++) row[j + c]! += data[r * width + c]!;
  }
}
