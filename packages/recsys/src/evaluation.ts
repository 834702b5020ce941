// Metrics of ranked items against the samples' targets.
import { cutoffs, metricsOf } from './metrics.ts';
import type { Evaluated, Recommended } from './recommender.ts';
import type { Sample } from './samples.ts';

/** Items to rank for the metrics. */
export const evaluatedItems = Math.max(...cutoffs);

export function evaluated(ranked: readonly Recommended[], samples: readonly Sample[]): Evaluated {
  const metrics = ranked.map(({ items }, i) =>
    metricsOf(
      items.map(({ item }) => item),
      samples[i]!.targets,
    ),
  );
  return { metrics, truncated: ranked.filter(({ dropped }) => dropped > 0).length };
}
