// Choice: every client takes, each round, the mixture that its own validation samples like best. With FedAvg as the
// first of the candidates no client is worse off on these than under FedAvg in that round.
import type { Comparison, Mixing, Strategy } from './strategy.ts';

export interface Choice {
  readonly name: string;
  readonly strategy: Strategy;
}

/**
 * m_c = row c of the candidate k with the lowest L_c(sum_j m^k_cj P_j), the loss on c's validation samples; of equal ones
 * the first. The first also where c has no validation samples, or is late.
 * @throws if there is no candidate, if two have the same name, compare different things or look at the round before, or
 * if one has clients judge for it or tensors that stay with them
 */
export function chosen(candidates: readonly Choice[]): Strategy {
  assertChoosable(candidates);
  const { similarityOn } = candidates.map(({ strategy }) => strategy).find((s) => s.similarityOn) ?? {};
  const compares = new Set(candidates.flatMap(({ strategy }) => strategy.compares ?? []));
  const mixingsOf = (...of: Parameters<Strategy['mix']>) =>
    candidates.map(({ strategy }) => strategy.mix(...of));
  return {
    name: 'chosen',
    ...(similarityOn && { similarityOn }),
    ...(compares.size > 0 && { compares: [...compares] satisfies Comparison[] }),
    ...(candidates.some(({ strategy }) => strategy.remembers) && { remembers: true }),
    candidates(reports, statistics) {
      const mixings = mixingsOf(reports, statistics);
      return reports.map((_, c) => candidates.map(({ name }, k) => ({ name, row: mixings[k]!.matrix[c]! })));
    },
    mix(reports, statistics) {
      const { judged } = statistics;
      if (!judged) throw new Error("chosen: the clients' losses are missing");
      const mixings = mixingsOf(reports, statistics);
      const choices = judged.map((losses) => (losses ? losses.indexOf(Math.min(...losses)) : 0));
      return {
        // Of what several say, the first one's.
        ...(Object.assign({}, ...mixings.toReversed()) as Partial<Mixing>),
        matrix: choices.map((k, c) => mixings[k]!.matrix[c]!),
        chosen: choices.map((k) => candidates[k]!.name),
        candidateLosses: judged.map((losses) =>
          Object.fromEntries((losses ?? []).map((loss, k) => [candidates[k]!.name, loss])),
        ),
      };
    },
  };
}

function assertChoosable(candidates: readonly Choice[]): void {
  if (candidates.length === 0) throw new Error('chosen: there is no candidate; name at least one');
  const names = candidates.map(({ name }) => name);
  const twice = names.filter((name, k) => names.indexOf(name) !== k);
  if (twice.length > 0)
    throw new Error(`chosen: several candidates are called ${[...new Set(twice)].join(', ')}`);
  const named = (is: (strategy: Strategy) => unknown) =>
    candidates.filter(({ strategy }) => is(strategy)).map(({ name }) => name);
  const judging = named(({ candidates }) => candidates);
  if (judging.length > 0)
    throw new Error(
      `chosen: ${judging.join(', ')} has clients judge candidates of its own; it cannot be one itself: leave it out`,
    );
  const personal = named(({ personal }) => personal);
  if (personal.length > 0)
    throw new Error(
      `chosen: clients train something else under ${personal.join(', ')}; it cannot be a candidate: leave it out`,
    );
  const compared = new Set(candidates.flatMap(({ strategy: { similarityOn } }) => similarityOn ?? []));
  if (compared.size > 1)
    throw new Error(
      `chosen: candidates compare ${[...compared].join(' and ')}; all that compare clients must compare the same`,
    );
  const remembering = named(({ remembers }) => remembers);
  if (remembering.length > 1)
    throw new Error(
      `chosen: ${remembering.join(' and ')} look at the round before, which is kept for one candidate only`,
    );
}
