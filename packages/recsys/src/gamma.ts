// How much an injected method is to count: what is best on validation samples.
import { combined } from './injection.ts';
import { listOf } from './lists.ts';
import { metricsOf } from './metrics.ts';
import type { ItemScorer, Scored } from './recommender.ts';
import type { Sample } from './samples.ts';

/** BIGRec's grids are 0.01 to 1 and 1 to 99; quality changes slowly along them. */
export const gammas = [0, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 99] as const;

/**
 * For each method that may be injected the gamma with the highest mean NDCG@10 of the samples' targets; of equal ones the
 * smallest, and 0 without samples. `found` are the samples' scores without injection.
 */
export async function chooseGammas(
  samples: readonly Sample[],
  found: AsyncIterable<Scored>,
  methods: readonly ItemScorer[],
  options: { readonly seed: number; readonly maskHistory?: boolean },
): Promise<number[]> {
  const gains = methods.map(() => gammas.map(() => 0));
  let index = 0;
  for await (const scored of found) {
    const sample = samples[index]!;
    for (const [m, method] of methods.entries()) {
      const others = (await method.score([sample])).data;
      for (const [g, gamma] of gammas.entries()) {
        const items = listOf(combined(scored, others, gamma), sample, index, { ...options, k: 10 });
        const ranked = items.map(({ item }) => item);
        gains[m]![g]! += metricsOf(ranked, sample.targets)['ndcg@10']!;
      }
    }
    index++;
  }
  return gains.map((own) => gammas[own.indexOf(Math.max(...own))]!);
}
