// A round's parameters in memory, as the clients returned them: nothing is copied to compare and mix them.
import type { Float32Tensor, NamedTensors } from '@fellrec/graph';
import { distinctRows, onlySource } from '../mixing.ts';
import type { RoundParameters, RoundParametersOptions } from './round-parameters.ts';

/** Equal rows of a mixing matrix share one result, and a client that only keeps its own gets the same tensors back. */
export async function inMemory({ like, starts, products }: RoundParametersOptions): Promise<RoundParameters> {
  const names = [...like.keys()];
  // In the order of `like`: sums over all tensors must round as in a run that read them in another one.
  const ordered = (tensors: NamedTensors): NamedTensors =>
    new Map(names.map((name) => [name, tensors.get(name)!]));
  const rows = (of: readonly NamedTensors[], name: string) => of.map((tensors) => tensors.get(name)!.data);
  const loaded: NamedTensors[] = [];
  for (const read of starts) loaded.push(ordered(await read()));
  let before: readonly NamedTensors[] = loaded;
  let after: NamedTensors[] = [];

  async function mixed(matrix: readonly (readonly number[])[]): Promise<NamedTensors[]> {
    const distinct = distinctRows(matrix);
    const results = distinct.rows.map((weights) => {
      const only = onlySource(weights);
      return {
        weights,
        alone: only === undefined ? undefined : after[only]!,
        tensors: new Map<string, Float32Tensor>(),
      };
    });
    const computed = results.filter(({ alone }) => !alone);
    async function* blocks() {
      for (const name of names) yield rows(after, name);
    }
    const remaining = like.entries();
    if (computed.length > 0)
      for await (const sums of products.mix(
        computed.map(({ weights }) => weights),
        blocks(),
      )) {
        const [name, { dims }] = remaining.next().value!;
        for (const [c, data] of sums.entries())
          computed[c]!.tensors.set(name, { dtype: 'float32', dims, data: withOwnBuffer(data) });
      }
    return distinct.places.map((place) => results[place]!.alone ?? results[place]!.tensors);
  }

  return {
    starts: () => before.map((tensors) => async () => tensors),
    async keep(client, trained) {
      after[client] = ordered(trained);
    },
    gram(on) {
      const origins = {
        update: (name: string) => rows(before, name),
        parameters: () => undefined,
        displacement: (name: string) => after.map(() => like.get(name)!.data),
      }[on];
      async function* blocks() {
        for (const name of names) yield { rows: rows(after, name), origins: origins(name) };
      }
      return products.gram(blocks());
    },
    gramWithStarts() {
      async function* blocks() {
        for (const name of names) {
          const both = [...rows(after, name), ...rows(before, name)];
          yield { rows: both, origins: both.map(() => like.get(name)!.data) };
        }
      }
      return products.gram(blocks());
    },
    mixtures: async (matrix) => (await mixed(matrix)).map((tensors) => async () => tensors),
    async mix(matrix) {
      before = await mixed(matrix);
      after = [];
    },
    async close() {},
  };
}

/** A message or a clone of a tensor takes its whole buffer along. */
function withOwnBuffer(values: Float32Array): Float32Array {
  return values.byteLength === values.buffer.byteLength ? values : values.slice();
}
