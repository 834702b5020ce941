// The strategies whose weights do not look at the parameters.
import type { Strategy } from './strategy.ts';

/** Every client gets the average weighted by training samples (McMahan et al., AISTATS 2017). */
export function fedavg(): Strategy {
  return {
    name: 'fedavg',
    mix: (reports) => {
      const total = reports.reduce((sum, { samples }) => sum + samples, 0);
      const row = reports.map(({ samples }) => samples / total);
      return { matrix: reports.map(() => row) };
    },
  };
}

/**
 * FedAvg of clients that are held near what they started the round from (Li et al., MLSys 2020, arXiv 1812.06127): the
 * term mu/2 |x - start|^2 of their objective is the clients' affair.
 */
export function fedprox(): Strategy {
  return { ...fedavg(), name: 'fedprox' };
}

/** Every client gets the plain average. */
export function uniform(): Strategy {
  return {
    name: 'uniform',
    mix: (reports) => {
      const row = reports.map(() => 1 / reports.length);
      return { matrix: reports.map(() => row) };
    },
  };
}

/** Every client keeps its own. */
export function local(): Strategy {
  return {
    name: 'local',
    mix: (reports) => ({ matrix: reports.map((_, c) => reports.map((_, j) => (c === j ? 1 : 0))) }),
  };
}

/** One client that holds all data. @throws with more than one. */
export function centralized(): Strategy {
  return {
    name: 'centralized',
    mix: (reports) => {
      if (reports.length !== 1)
        throw new Error(
          `centralized: ${reports.length} clients train; put all data into one client, or use local`,
        );
      return { matrix: [[1]] };
    },
  };
}
