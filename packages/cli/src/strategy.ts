// The strategy that a configuration names, and what a client's parameters are under it.
import {
  centralized,
  chosen,
  clustered,
  ditto,
  dittoStart,
  fedamp,
  fedavg,
  fedfomo,
  fedprox,
  fellrec,
  groups,
  local,
  personalTensors,
  type Strategy,
  uniform,
} from '@fellrec/federation';
import type { NamedTensors } from '@fellrec/graph';
import { type Config, ConfigError } from './config.ts';

/** @throws ConfigError on settings that the strategy cannot be with */
export function strategyOf({ federation }: Config): Strategy {
  try {
    return named(federation.strategy, federation);
  } catch (cause) {
    throw new ConfigError(`federation: ${(cause as Error).message}`);
  }
}

function named(strategy: Config['federation']['strategy'], federation: Config['federation']): Strategy {
  switch (strategy) {
    case 'fellrec':
      return fellrec(federation);
    case 'fedavg':
      return fedavg();
    case 'fedprox':
      return fedprox();
    case 'ditto':
      return ditto();
    case 'fedamp':
      return fedamp(federation.fedamp);
    case 'fedfomo':
      return fedfomo();
    case 'clustered':
      return clustered(federation.clustered);
    case 'groups':
      return groups();
    case 'chosen':
      return chosen(federation.candidates.map((name) => ({ name, strategy: named(name, federation) })));
    case 'uniform':
      return uniform();
    case 'local':
      return local();
    case 'centralized':
      return centralized();
  }
}

/** What a strategy adds to the objective of its clients, around what they start a round from. */
export function proximalOf({ federation }: Config): { readonly weight: number } | undefined {
  switch (federation.strategy) {
    case 'fedprox':
      return { weight: federation.mu };
    case 'fedamp':
      return { weight: federation.fedamp.lambda / federation.fedamp.alpha };
    default:
      return undefined;
  }
}

/** Ditto's clients have two models each; everybody else's parameters are one. */
export const hasTwo = ({ federation }: Config) => federation.strategy === 'ditto';

/** What the federation starts from. */
export function federationStart(config: Config, initial: NamedTensors): NamedTensors {
  return hasTwo(config) ? dittoStart(initial) : initial;
}

/** What a client recommends with, of what the federation has of it. */
export function recommendingWith(config: Config, parameters: NamedTensors): NamedTensors {
  return hasTwo(config) ? personalTensors(parameters) : parameters;
}
