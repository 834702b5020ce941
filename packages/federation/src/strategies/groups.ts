// FedAvg inside groups that are known beforehand: what a strategy that has to find them can reach.
import type { ClientReport, Strategy } from './strategy.ts';

/**
 * Every client gets the average of its group, weighted by training samples: m_cj = n_j / n of j in c's group, n the sum
 * over it. @throws naming the clients that have no group.
 */
export function groups(): Strategy {
  return {
    name: 'groups',
    mix(reports) {
      const without = reports.filter(({ group }) => group === undefined).map(({ client }) => client);
      if (without.length > 0)
        throw new Error(`groups: ${without.join(', ')} has no group; give every client one`);
      return { matrix: averagesWithin(reports, (c) => reports[c]!.group!) };
    },
  };
}

/** FedAvg among the clients that `partOf` gives the same. */
export function averagesWithin(
  reports: readonly ClientReport[],
  partOf: (client: number) => string | number,
): number[][] {
  const parts = reports.map((_, c) => partOf(c));
  return parts.map((own) => {
    const samples = reports.map((report, j) => (parts[j] === own ? report.samples : 0));
    const total = samples.reduce((sum, n) => sum + n, 0);
    return samples.map((n) => n / total);
  });
}
