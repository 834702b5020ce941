// Ranking metrics over several targets, exact (never rounded): Recall, NDCG, Precision, MRR and Hit at K.

/** `recall@10` and so on. */
export type Metrics = Readonly<Record<string, number>>;

export const cutoffs = [10, 20] as const;

/**
 * Metrics of one user. `ranked` holds at least max(ks) items, best first (fewer count as misses behind the end).
 * Recall@K = hits / |targets|; NDCG@K = sum of 1 / log2(rank + 1) over hits, over its largest possible value;
 * Precision@K = hits / K; MRR@K = 1 / rank of the first hit; Hit@K = 1 if there is a hit. @throws without targets.
 */
export function metricsOf(
  ranked: readonly number[],
  targets: readonly number[],
  ks: readonly number[] = cutoffs,
): Metrics {
  const wanted = new Set(targets);
  if (wanted.size === 0)
    throw new Error('metrics: a user without targets has no metrics; leave such users out');
  const metrics: Record<string, number> = {};
  for (const k of ks) {
    const ranks = ranked.slice(0, k).flatMap((item, i) => (wanted.has(item) ? [i + 1] : []));
    const gain = (ranks_: readonly number[]) =>
      ranks_.reduce((sum, rank) => sum + 1 / Math.log2(rank + 1), 0);
    const ideal = gain(Array.from({ length: Math.min(wanted.size, k) }, (_, i) => i + 1));
    metrics[`recall@${k}`] = ranks.length / wanted.size;
    metrics[`ndcg@${k}`] = gain(ranks) / ideal;
    metrics[`precision@${k}`] = ranks.length / k;
    metrics[`mrr@${k}`] = ranks.length > 0 ? 1 / ranks[0]! : 0;
    metrics[`hit@${k}`] = ranks.length > 0 ? 1 : 0;
  }
  return metrics;
}

/** The mean over users. Empty without users. */
export function meanMetrics(users: readonly Metrics[]): Metrics {
  const [first] = users;
  if (!first) return {};
  return Object.fromEntries(
    Object.keys(first).map((name) => [
      name,
      users.reduce((sum, metrics) => sum + metrics[name]!, 0) / users.length,
    ]),
  );
}

export interface Spread {
  /** Standard deviation over clients (of the population). */
  readonly deviation: number;
  readonly worst: { readonly client: string; readonly value: number };
}

/** How a metric differs between clients. @throws without clients. */
export function spread(metric: string, clients: ReadonlyMap<string, Metrics>): Spread {
  const values = [...clients].map(([client, metrics]) => ({ client, value: metrics[metric]! }));
  const mean = values.reduce((sum, { value }) => sum + value, 0) / values.length;
  const variance = values.reduce((sum, { value }) => sum + (value - mean) ** 2, 0) / values.length;
  return {
    deviation: Math.sqrt(variance),
    worst: values.reduce((a, b) => (b.value < a.value ? b : a)),
  };
}
