// A round's parameters in two files, so that a thousand clients' need not be in memory: what they start from, and what
// they trained. They are compared and mixed a block of columns at a time. The files are for one process, not kept.
import { elementCount, type Float32Tensor, type NamedTensors } from '@fellrec/graph';
import { distinctRows } from '../mixing.ts';
import { inBlocks, matrixFile } from './matrix-file.ts';
import type { RoundParameters, RoundParametersOptions } from './round-parameters.ts';

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
  let overwritten = 0;
  const close = async () => {
    overwritten++;
    const closed = await Promise.allSettled([before.close(), after.close()]);
    for (const { status, reason } of closed as PromiseRejectedResult[])
      if (status === 'rejected') throw reason;
  };
  try {
    for (const [client, read] of starts.entries()) await before.writeRow(client, flatten(await read()));
  } catch (error) {
    await close();
    throw error;
  }

  return {
    starts() {
      const then = overwritten;
      return starts.map((_, client) => async () => {
        if (overwritten !== then)
          throw new Error(
            "federation: these parameters lay in a file that the next round has written over, or that is closed; read a round's before the next one is mixed",
          );
        return unflatten(await before.readRow(client));
      });
    },
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
    async mix(matrix) {
      overwritten++;
      const { rows, places } = distinctRows(matrix);
      let block = 0;
      for await (const mixed of products.mix(rows, after.blocks()))
        await before.writeBlock(
          block++,
          places.map((place) => mixed[place]!),
        );
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
