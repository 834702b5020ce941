// The strategy that a configuration names, and what a client's parameters are under it.
import {
  centralized,
  ditto,
  dittoStart,
  fedavg,
  fedprox,
  fellrec,
  local,
  personalTensors,
  type Strategy,
  uniform,
} from '@fellrec/federation';
import type { NamedTensors } from '@fellrec/graph';
import type { Config } from './config.ts';

export function strategyOf({ federation }: Config): Strategy {
  switch (federation.strategy) {
    case 'fellrec':
      return fellrec({
        similarityOn: federation.similarityOn,
        heating: federation.heating,
        neighbours: federation.neighbours,
      });
    case 'fedavg':
      return fedavg();
    case 'fedprox':
      return fedprox();
    case 'ditto':
      return ditto();
    case 'uniform':
      return uniform();
    case 'local':
      return local();
    case 'centralized':
      return centralized();
  }
}

// Ditto's clients have two models each; everybody else's parameters are one.
export const hasTwo = ({ federation }: Config) => federation.strategy === 'ditto';

/** What the federation starts from. */
export function federationStart(config: Config, initial: NamedTensors): NamedTensors {
  return hasTwo(config) ? dittoStart(initial) : initial;
}

/** What a client recommends with, of what the federation has of it. */
export function recommendingWith(config: Config, parameters: NamedTensors): NamedTensors {
  return hasTwo(config) ? personalTensors(parameters) : parameters;
}
