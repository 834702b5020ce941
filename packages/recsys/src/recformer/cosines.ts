// Cosines of users with the whole catalogue, on the engine's matrix product.
import { type Float32Tensor, float32, input, linear, type Program, type Runtime } from '@fellrec/graph';

/** Rows of one product: 128 by 20,000 items are 10 MB. */
const rowsAtOnce = 128;

export interface Cosines {
  /** Of each unit row [rows, d], in their order, with every unit item [items, d]. */
  rows(rows: Float32Tensor, items: Float32Tensor): AsyncIterable<Float32Array>;
  /** Frees native memory, if any was taken; compiled again when needed. */
  release(): Promise<void>;
}

export function cosines(runtime: Runtime): Cosines {
  let compiled: Promise<Program> | undefined;
  const compile = (d: number) =>
    runtime.compile({
      cosines: linear(input('rows', 'float32', ['rows', d]), input('items', 'float32', ['items', d])),
    });
  return {
    async *rows({ data, dims }, items) {
      const [count, d] = dims as [number, number];
      compiled ??= compile(d);
      // What failed once may work the next time.
      compiled.catch(() => {
        compiled = undefined;
      });
      const { run } = await compiled;
      for (let at = 0; at < count; at += rowsAtOnce) {
        const to = Math.min(count, at + rowsAtOnce);
        const found = await run({ rows: float32(data.subarray(at * d, to * d), [to - at, d]), items });
        const { data: scores, dims: shape } = found.cosines as Float32Tensor;
        for (let row = 0; row < to - at; row++) yield scores.subarray(row * shape[1]!, (row + 1) * shape[1]!);
      }
    },
    async release() {
      const known = compiled;
      compiled = undefined;
      await (await known)?.dispose();
    },
  };
}
