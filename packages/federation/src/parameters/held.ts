// A round's parameters where clients hold different tensors: those that the same clients hold are a group, compared and
// mixed among these, and a client's parameters are what it has in its groups. Personal tensors are groups of their own
// that are neither compared nor mixed.
import type { Float32Tensor, NamedTensors } from '@fellrec/graph';
import { amongHolders, oneHot, rowAmongHolders } from '../mixing.ts';
import type { HeldProducts } from '../similarity.ts';
import type { ReadParameters, RoundParameters, SimilarityOn } from './round-parameters.ts';

/** Clients go by number. That each has the tensors that it holds is not checked here. */
export interface HeldParameters extends Omit<RoundParameters, 'gram' | 'gramWithStarts' | 'mixtures'> {
  /** Between the clients of each group that leaves them, once each has trained. */
  products(on: SimilarityOn): Promise<HeldProducts[]>;
  /** The same with their starts, as in `gramWithStarts`. */
  productsWithStarts(): Promise<HeldProducts[]>;
  /** What `mix` would make of each row for its client, without ending the round. To be read before the next `mix`. */
  mixtures(wanted: readonly Mixture[]): Promise<ReadParameters[]>;
}

export interface Mixture {
  readonly client: number;
  /** Of weights of all clients. */
  readonly row: readonly number[];
}

export interface HeldParametersOptions {
  /** Names and dimensions of each client's tensors, in one order for all. */
  readonly held: readonly NamedTensors[];
  /** Tensors that stay with their client; none if absent. */
  readonly personal?: (tensor: string) => boolean;
  /** What each client starts the first round from. */
  readonly starts: readonly ReadParameters[];
  /** Where the parameters of a group lie; `starts` are those of its holders, and may hold more than the group. */
  open(group: {
    readonly like: NamedTensors;
    readonly starts: readonly ReadParameters[];
  }): Promise<RoundParameters>;
}

export async function heldParameters({
  held,
  personal = () => false,
  starts,
  open,
}: HeldParametersOptions): Promise<HeldParameters> {
  const groups: (Group & { readonly parameters: RoundParameters })[] = [];
  const close = async () => {
    const closed = await Promise.allSettled(groups.map(({ parameters }) => parameters.close()));
    for (const { status, reason } of closed as PromiseRejectedResult[])
      if (status === 'rejected') throw reason;
  };
  async function productsOf(gram: (parameters: RoundParameters) => Promise<number[][]>) {
    const parts: HeldProducts[] = [];
    for (const { holders, stays, parameters } of groups)
      if (!stays) parts.push({ holders, gram: await gram(parameters) });
    return parts;
  }
  try {
    for (const group of groupsOf(held, personal)) {
      const own = group.holders.map((c) => starts[c]!);
      groups.push({ ...group, parameters: await open({ like: group.like, starts: own }) });
    }
  } catch (error) {
    await close();
    throw error;
  }

  return {
    starts() {
      const parts: ReadParameters[][] = held.map(() => []);
      for (const { holders, parameters } of groups)
        for (const [place, read] of parameters.starts().entries()) parts[holders[place]!]!.push(read);
      return parts.map((own, c) => joining(own, held[c]!));
    },
    async keep(client, trained) {
      for (const { holders, parameters } of groups) {
        const place = holders.indexOf(client);
        if (place >= 0) await parameters.keep(place, trained);
      }
    },
    products: (on) => productsOf((parameters) => parameters.gram(on)),
    productsWithStarts: () => productsOf((parameters) => parameters.gramWithStarts()),
    async mixtures(wanted) {
      const parts: ReadParameters[][] = wanted.map(() => []);
      for (const { holders, stays, parameters } of groups) {
        const asked = [...wanted.keys()].filter((w) => holders.includes(wanted[w]!.client));
        const read = await parameters.mixtures(
          asked.map((w) => {
            const { client, row } = wanted[w]!;
            if (stays) return oneHot(holders.indexOf(client), holders.length);
            return rowAmongHolders(holders, row, client);
          }),
        );
        for (const [place, w] of asked.entries()) parts[w]!.push(read[place]!);
      }
      return parts.map((own, w) => joining(own, held[wanted[w]!.client]!));
    },
    async mix(matrix) {
      for (const { holders, stays, parameters } of groups)
        await parameters.mix(
          stays ? holders.map((_, c) => oneHot(c, holders.length)) : amongHolders(holders, matrix),
        );
    },
    close,
  };
}

interface Group {
  readonly holders: readonly number[];
  readonly like: NamedTensors;
  /** Personal. */
  readonly stays: boolean;
}

/** Tensors by the clients that hold them. Each group's are in the order of its holders'. */
function groupsOf(held: readonly NamedTensors[], personal: (tensor: string) => boolean): Group[] {
  const groups = new Map<string, Group & { like: Map<string, Float32Tensor> }>();
  const seen = new Set<string>();
  for (const own of held)
    for (const [name, tensor] of own) {
      if (seen.has(name)) continue;
      seen.add(name);
      const holders = [...held.keys()].filter((c) => held[c]!.has(name));
      const stays = personal(name);
      const key = `${stays} ${holders.join()}`;
      const group = groups.get(key) ?? { holders, stays, like: new Map() };
      group.like.set(name, tensor);
      groups.set(key, group);
    }
  return [...groups.values()];
}

/** Reads one client's tensors of its groups, in the order of `like`. */
function joining(parts: readonly ReadParameters[], like: NamedTensors): ReadParameters {
  if (parts.length === 1) return parts[0]!;
  return async () => {
    const all = new Map<string, Float32Tensor>();
    for (const read of parts) for (const [name, tensor] of await read()) all.set(name, tensor);
    return new Map([...like.keys()].map((name) => [name, all.get(name)!]));
  };
}
