// A round's parameters in two files, so that a thousand clients' need not be in memory: what they start from, and what
// they trained. They are compared and mixed a block of columns at a time. The files are for one process, not kept.
import { elementCount, type Float32Tensor, type NamedTensors } from '@fellrec/graph';
import { distinctRows, onlySource } from '../mixing.ts';
import { inBlocks, type MatrixFile, matrixFile } from './matrix-file.ts';
import type { ReadParameters, RoundParameters, RoundParametersOptions } from './round-parameters.ts';

export async function onDisk(
  directory: string,
  { like, starts, products }: RoundParametersOptions,
): Promise<RoundParameters> {
  const { columns, flatten, unflatten } = layoutOf(like);
  const size = { rows: starts.length, columns };
  const before = await matrixFile(directory, size);
  const after = await matrixFile(directory, size).catch(async (error: unknown) => {
    await before.close();
    throw error;
  });
  /** Files of mixtures, until the round ends. */
  const mixed: MatrixFile[] = [];
  let overwritten = 0;
  const close = async () => {
    overwritten++;
    const closed = await Promise.allSettled([before, after, ...mixed].map((file) => file.close()));
    for (const { status, reason } of closed as PromiseRejectedResult[])
      if (status === 'rejected') throw reason;
  };
  /** Reads a row that is there until the round ends. */
  const reader = (file: MatrixFile, row: number): ReadParameters => {
    const then = overwritten;
    return async () => {
      if (overwritten !== then)
        throw new Error(
          "federation: these parameters lay in a file that the next round has written over, or that is closed; read a round's before the next one is mixed",
        );
      return unflatten(await file.readRow(row));
    };
  };
  try {
    for (const [client, read] of starts.entries()) await before.writeRow(client, flatten(await read()));
  } catch (error) {
    await close();
    throw error;
  }

  /** Row r of the file becomes the mixture of `rows[places[r]]`. */
  async function writeMixed(
    file: MatrixFile,
    rows: readonly (readonly number[])[],
    places: Iterable<number> = rows.keys(),
  ): Promise<void> {
    const order = [...places];
    let block = 0;
    for await (const sums of products.mix(rows, after.blocks()))
      await file.writeBlock(
        block++,
        order.map((place) => sums[place]!),
      );
  }

  return {
    starts: () => starts.map((_, client) => reader(before, client)),
    keep: (client, trained) => after.writeRow(client, flatten(trained)),
    gram(on) {
      async function* blocks() {
        const origins = {
          update: () => before.blocks(),
          parameters: () => undefined,
          displacement: () => inBlocks(new Array<Float32Array>(starts.length).fill(flatten(like))),
        }[on]();
        for await (const rows of after.blocks())
          yield { rows, origins: (await origins?.next())?.value ?? undefined };
      }
      return products.gram(blocks());
    },
    gramWithStarts() {
      async function* blocks() {
        const origins = inBlocks(new Array<Float32Array>(2 * starts.length).fill(flatten(like)));
        const earlier = before.blocks();
        for await (const rows of after.blocks())
          yield { rows: [...rows, ...(await earlier.next()).value!], origins: origins.next().value! };
      }
      return products.gram(blocks());
    },
    async mixtures(matrix) {
      const { rows, places } = distinctRows(matrix);
      const computed = rows.filter((row) => onlySource(row) === undefined);
      const file = computed.length > 0 && (await matrixFile(directory, { rows: computed.length, columns }));
      if (file) {
        mixed.push(file);
        await writeMixed(file, computed);
      }
      const readers = rows.map((row) => {
        const only = onlySource(row);
        return only !== undefined ? reader(after, only) : reader(file as MatrixFile, computed.indexOf(row));
      });
      return places.map((place) => readers[place]!);
    },
    async mix(matrix) {
      overwritten++;
      for (const file of mixed.splice(0)) await file.close();
      const { rows, places } = distinctRows(matrix);
      await writeMixed(before, rows, places);
    },
    close,
  };
}

/** Tensors as one flat row, one behind the other in the order of `like`. */
function layoutOf(like: NamedTensors) {
  let columns = 0;
  const ranges = [...like].map(([name, { dims }]) => {
    const from = columns;
    columns += elementCount(dims);
    return { name, dims, from, to: columns };
  });
  return {
    columns,
    flatten(tensors: NamedTensors): Float32Array {
      const row = new Float32Array(columns);
      for (const { name, from } of ranges) row.set(tensors.get(name)!.data, from);
      return row;
    },
    unflatten(row: Float32Array): NamedTensors {
      return new Map(
        ranges.map(({ name, dims, from, to }): [string, Float32Tensor] => [
          name,
          { dtype: 'float32', dims, data: row.slice(from, to) },
        ]),
      );
    },
  };
}
