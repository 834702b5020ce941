// Clustered federated learning (Sattler, Mueller, Samek, IEEE TNNLS 2021, arXiv 1910.01991): FedAvg inside clusters, of
// which one is split in two when its mean no longer moves while its clients still do.
import { averagesWithin } from './groups.ts';
import type { ClientReport, RoundStatistics, Strategy } from './strategy.ts';

export interface ClusteredOptions {
  /** In [0, 1], relative: how far the clients' updates have to cancel before a cluster is split. */
  readonly epsilon1: number;
  /** From 0, absolute: a cluster whose largest update is no longer than this has converged, and stays. */
  readonly epsilon2: number;
  /** In [0, 1]: how far the parts have to point apart. 0 asks only that all cosines across are below 1. */
  readonly gammaMax: number;
}

type Matrix = readonly (readonly number[])[];

/**
 * All clients are one cluster at first. With updates D_i and p_i = n_i / n over the training samples of a cluster, it is
 * split when
 *
 *     |sum p_i D_i| < epsilon1 sum p_i |D_i|    and    max |D_i| > epsilon2    and    sqrt((1 - a) / 2) > gammaMax
 *
 * into the two parts whose largest cosine across, a, is the smallest that there is. The paper compares |sum p_i D_i| with
 * an epsilon1 in the scale of the parameters; divided by the mean length of the updates it needs no scale: it is 1 when
 * all agree and 0 when they cancel, and that of n equally long updates of mean cosine c is sqrt((1 + (n - 1) c) / n).
 * gammaMax bounds the paper's gamma_i = |gradient of the client's risk - of its samples' loss| / |the former|, which is
 * not known; under that bound the third condition says that the parts' data differ (its section on correct clustering).
 *
 * A cluster is split once a round at most. A client that was not in the round before joins the cluster of the client
 * whose update is most similar to its own.
 * @throws if an option is out of its range
 */
export function clustered(options: ClusteredOptions): Strategy {
  const { epsilon1, epsilon2, gammaMax } = options;
  for (const [name, value] of Object.entries({ epsilon1, gammaMax }))
    if (!(value >= 0 && value <= 1)) throw new Error(`clustered: ${name} is ${value}; it can be 0 to 1`);
  if (!(epsilon2 >= 0)) throw new Error(`clustered: epsilon2 is ${epsilon2}; it can be 0 or more`);
  return {
    name: 'clustered',
    similarityOn: 'update',
    compares: ['innerProducts'],
    remembers: true,
    mix(reports, { cosines, innerProducts, previous }) {
      if (!cosines || !innerProducts)
        throw new Error('clustered: the inner products of the updates are missing');
      const parts = partsOf(clustersBefore(reports, cosines, previous)).flatMap((members) =>
        split(members, { reports, cosines, innerProducts, options }),
      );
      const clusters = numbered(parts, reports.length);
      return { matrix: averagesWithin(reports, (c) => clusters[c]!), clusters };
    },
  };
}

/** Each client's cluster in the round before, or that of the client there most similar to it. */
function clustersBefore(
  reports: readonly ClientReport[],
  cosines: Matrix,
  previous: RoundStatistics['previous'],
): number[] {
  const known = reports.map(({ client }) => previous?.mixing.clusters?.[previous.clients.indexOf(client)]);
  const anyone = [...known.keys()].filter((c) => known[c] !== undefined);
  if (anyone.length === 0) return reports.map(() => 0);
  return known.map((cluster, c) => {
    const nearest = anyone.reduce((best, j) => (cosines[c]![j]! > cosines[c]![best]! ? j : best));
    return cluster ?? known[nearest]!;
  });
}

interface Splitting {
  readonly reports: readonly ClientReport[];
  readonly cosines: Matrix;
  readonly innerProducts: Matrix;
  readonly options: ClusteredOptions;
}

/** The cluster itself, or its two parts. */
function split(
  members: readonly number[],
  { reports, cosines, innerProducts, options: { epsilon1, epsilon2, gammaMax } }: Splitting,
): (readonly number[])[] {
  if (members.length < 2) return [members];
  const samples = members.reduce((sum, c) => sum + reports[c]!.samples, 0);
  const p = (c: number) => reports[c]!.samples / samples;
  const length = (c: number) => Math.sqrt(innerProducts[c]![c]!);
  const lengths = members.reduce((sum, c) => sum + p(c) * length(c), 0);
  const squared = members.reduce(
    (sum, i) => sum + members.reduce((row, j) => row + p(i) * p(j) * innerProducts[i]![j]!, 0),
    0,
  );
  const isStationary = Math.sqrt(Math.max(0, squared)) < epsilon1 * lengths;
  if (!isStationary || !(Math.max(...members.map(length)) > epsilon2)) return [members];
  const [one, other] = bipartition(members, cosines);
  const across = Math.max(...one.map((i) => Math.max(...other.map((j) => cosines[i]![j]!))));
  return Math.sqrt((1 - across) / 2) > gammaMax ? [one, other] : [members];
}

/**
 * The two parts with the smallest largest cosine across: pairs are joined from the largest cosine down until two parts
 * are left (single linkage), for any other division cuts one of these pairs.
 */
function bipartition(members: readonly number[], cosines: Matrix): [number[], number[]] {
  const pairs = members.flatMap((i, place) => members.slice(place + 1).map((j) => ({ i, j })));
  pairs.sort((a, b) => cosines[b.i]![b.j]! - cosines[a.i]![a.j]!);
  const part = new Map(members.map((c) => [c, c]));
  let parts = members.length;
  for (const { i, j } of pairs) {
    if (parts === 2) break;
    const [kept, joined] = [part.get(i)!, part.get(j)!];
    if (kept === joined) continue;
    for (const c of members) if (part.get(c) === joined) part.set(c, kept);
    parts--;
  }
  const first = part.get(members[0]!);
  return [members.filter((c) => part.get(c) === first), members.filter((c) => part.get(c) !== first)];
}

/** Members by cluster. */
function partsOf(clusters: readonly number[]): number[][] {
  return [...new Set(clusters)].map((cluster) => [...clusters.keys()].filter((c) => clusters[c] === cluster));
}

/** By client the number of its part; parts are counted in the order of their first clients. */
function numbered(parts: readonly (readonly number[])[], clients: number): number[] {
  const ordered = [...parts].sort(([a], [b]) => a! - b!);
  return Array.from({ length: clients }, (_, c) => ordered.findIndex((members) => members.includes(c)));
}
