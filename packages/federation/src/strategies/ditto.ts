// Ditto (Li, Hu, Beirami, Smith, ICML 2021, arXiv 2012.04221): beside the global model, which is FedAvg's, every client
// trains one of its own that is pulled towards the global one, and uses that. min_v F(v) + lambda/2 |v - w|^2.
//
// Both lie in one set of named tensors: the global ones under their own names, the personal ones with a prefix. Personal
// tensors never leave their client.
import { join } from 'node:path';
import type { NamedTensors } from '@fellrec/graph';
import type { Client, TokenCounts } from '../client.ts';
import type { ParametersFormat } from '../store/run-store.ts';
import { fedavg } from './averages.ts';
import type { Strategy } from './strategy.ts';

const prefix = 'personal.';
const isPersonal = (tensor: string) => tensor.startsWith(prefix);

/** For clients made with `dittoClient` that start from `dittoStart`. */
export function ditto(): Strategy {
  return { ...fedavg(), name: 'ditto', personal: isPersonal };
}

/** The personal model starts where the global one does. */
export function dittoStart(initial: NamedTensors): NamedTensors {
  return together(initial, initial);
}

/** What a client recommends with. */
export function personalTensors(parameters: NamedTensors): NamedTensors {
  return new Map(
    [...parameters].flatMap(([name, tensor]) =>
      isPersonal(name) ? [[name.slice(prefix.length), tensor] as const] : [],
    ),
  );
}

/**
 * Trains the global model and then the personal one, whose loss is the client's: twice the work of FedAvg. The pull is
 * towards the global model as the round began, as in the paper's algorithm 1.
 */
export function dittoClient(client: Client, lambda: number): Client {
  const { holds } = client;
  return {
    ...client,
    ...(holds && { holds: (name: string) => holds(isPersonal(name) ? name.slice(prefix.length) : name) }),
    async train(parameters, context) {
      const centre = globalTensors(parameters);
      const shared = await client.train(centre, context);
      const proximal = { weight: lambda, centre };
      const own = await client.train(personalTensors(parameters), { ...context, proximal });
      const tokens = shared.tokens && own.tokens && sumOf(shared.tokens, own.tokens);
      return { ...own, ...(tokens && { tokens }), parameters: together(shared.parameters, own.parameters) };
    },
    evaluate: (parameters, context) => client.evaluate(personalTensors(parameters), context),
  };
}

/** The personal model in the folder itself, the global one in `global/`. */
export function dittoFormat(format: ParametersFormat): ParametersFormat {
  const folder = (directory: string) => join(directory, 'global');
  return {
    ...format,
    async write(directory, parameters) {
      await format.write(directory, personalTensors(parameters));
      await format.write(folder(directory), globalTensors(parameters));
    },
    read: async (directory) => together(await format.read(folder(directory)), await format.read(directory)),
  };
}

function sumOf(a: TokenCounts, b: TokenCounts): TokenCounts {
  return { real: a.real + b.real, computed: a.computed + b.computed, padding: a.padding + b.padding };
}

function globalTensors(parameters: NamedTensors): NamedTensors {
  return new Map([...parameters].filter(([name]) => !isPersonal(name)));
}

function together(global: NamedTensors, personal: NamedTensors): NamedTensors {
  return new Map([...global, ...[...personal].map(([name, tensor]) => [prefix + name, tensor] as const)]);
}
