// The strategies whose weights do not look at the parameters.
import type { Strategy } from './strategy.ts';

/** Every client gets the average weighted by training samples (McMahan et al., AISTATS 2017). */
export function fedavg(): Strategy {
  return {
    name: 'fedavg',
    mix: (updates) => {
      const total = updates.reduce((sum, { samples }) => sum + samples, 0);
      const row = updates.map(({ samples }) => samples / total);
      return { matrix: updates.map(() => row) };
    },
  };
}

/** Every client gets the plain average. */
export function uniform(): Strategy {
  return {
    name: 'uniform',
    mix: (updates) => {
      const row = updates.map(() => 1 / updates.length);
      return { matrix: updates.map(() => row) };
    },
  };
}

/** Every client keeps its own. */
export function local(): Strategy {
  return {
    name: 'local',
    mix: (updates) => ({ matrix: updates.map((_, c) => updates.map((_, j) => (c === j ? 1 : 0))) }),
  };
}

/** One client that holds all data. @throws with more than one. */
export function centralized(): Strategy {
  return {
    name: 'centralized',
    mix: (updates) => {
      if (updates.length !== 1)
        throw new Error(
          `centralized: ${updates.length} clients train; put all data into one client, or use local`,
        );
      return { matrix: [[1]] };
    },
  };
}
