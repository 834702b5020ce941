// Sequential exact search (SipIt, arXiv 2510.15511): with known weights the state at a place is a function of the tokens
// up to it, one that is injective almost surely. Place by place, candidates are run behind what is recovered so far until
// one reproduces the state. The order of the candidates comes from elsewhere (an inverter); the template is known.
//
// All depths share the runs: as long as a search is right its prefix is the true one, whatever the depth, so a candidate
// at a place is run once and compared at every depth that asks for it. What each depth finds is what it would find alone.
import { type Float32Tensor, freeTensor } from '@fellrec/graph';
import type { TokenLayout, Trained } from '@fellrec/models';
import { withBranches } from '../branches.ts';
import { type AuditedModel, offsetsOf, rowOf } from '../layerwise.ts';
import { claimedPlaces } from '../metrics.ts';
import type { SearchEnds } from '../result.ts';
import type { AuditedSequence } from '../sequences.ts';

/** States at one depth, and what is tried for them. */
export interface SearchedStates {
  readonly depth: number;
  /** As the server has them, at the places of history and answer of each sequence, [places, d]. */
  readonly observed: Float32Tensor;
  /** Candidates of each place, likeliest first, [places, count]. */
  readonly candidates: Int32Array;
}

export interface SearchOptions {
  /**
   * Relative distance |F(v) - h| / |h| from which a state counts as reproduced. `first`: the first candidate within it is
   * taken; `nearest`: the nearest of all candidates, if it is within it (where states carry noise).
   */
  readonly tolerance: number;
  readonly take: 'first' | 'nearest';
  /** The attacker's idea of what is trained in the layers. */
  readonly trained?: Trained | undefined;
}

export interface SearchResult {
  /** Per depth asked, the tokens found, [places]; -1 from where the search lost its way. */
  readonly found: readonly Int32Array[];
  /** Candidates run. */
  readonly runs: number;
}

const nothing = -1;
/** Candidates behind one sequence, and tokens of a batch. */
const branchesAtOnce = 256;
const batchTokens = 4096;

/** Distances of a candidate's states, by the depth asked. */
interface Tried {
  readonly place: number;
  readonly token: number;
  /** Depths asked, by their index. */
  readonly asked: Set<number>;
  readonly distances: Float64Array;
}

export async function sequentialSearch(
  model: AuditedModel,
  sequences: readonly AuditedSequence[],
  searched: readonly SearchedStates[],
  options: SearchOptions,
): Promise<SearchResult> {
  const places = sequences.map(claimedPlaces);
  const offsets = offsetsOf(places.map(({ length }) => length));
  const plans = sequences.map((sequence, s) => planOf(sequence, places[s]!, offsets[s]!, searched, options));
  await runAll(model, sequences, places, offsets, plans, searched, options.trained);
  const found = searched.map(({ observed }) => new Int32Array(observed.dims[0]!).fill(nothing));
  for (const [s, sequence] of sequences.entries())
    for (const [index, states] of searched.entries())
      walk(sequence, places[s]!, offsets[s]!, plans[s]!, states, index, options, found[index]!);
  return { found, runs: plans.reduce((n, plan) => n + plan.size, 0) };
}

const keyOf = (place: number, token: number) => place * 2 ** 24 + token;

export function candidatesAt({ candidates, observed }: SearchedStates, row: number): Int32Array {
  const count = candidates.length / observed.dims[0]!;
  return candidates.subarray(row * count, (row + 1) * count);
}

/** The candidates that the searches need of a sequence: all before the right one, or all until they give up. */
function planOf(
  { ids }: AuditedSequence,
  places: readonly number[],
  offset: number,
  searched: readonly SearchedStates[],
  { take }: SearchOptions,
): Map<number, Tried> {
  const plan = new Map<number, Tried>();
  for (const [index, states] of searched.entries())
    for (const [i, place] of places.entries()) {
      const list = candidatesAt(states, offset + i);
      const rank = list.indexOf(ids[place]!);
      const tried = take === 'first' && rank !== -1 ? list.subarray(0, rank + 1) : list;
      for (const token of tried) {
        const key = keyOf(place, token);
        const known = plan.get(key) ?? {
          place,
          token,
          asked: new Set(),
          distances: new Float64Array(searched.length).fill(Number.POSITIVE_INFINITY),
        };
        known.asked.add(index);
        plan.set(key, known);
      }
      if (rank === -1) break;
    }
  return plan;
}

/** What one search does, given the distances. */
function walk(
  { ids }: AuditedSequence,
  places: readonly number[],
  offset: number,
  plan: ReadonlyMap<number, Tried>,
  states: SearchedStates,
  index: number,
  { tolerance, take }: SearchOptions,
  found: Int32Array,
): void {
  for (const [i, place] of places.entries()) {
    let best = { token: nothing, distance: Number.POSITIVE_INFINITY };
    for (const token of candidatesAt(states, offset + i)) {
      const distance = plan.get(keyOf(place, token))?.distances[index] ?? Number.POSITIVE_INFINITY;
      if (distance < best.distance) best = { token, distance };
      if (take === 'first' && best.distance <= tolerance) break;
    }
    if (best.distance > tolerance) return;
    found[offset + i] = best.token;
    // Behind a wrong token no state is reproduced any more.
    if (best.token !== ids[place]) return;
  }
}

/** Ends of searches from what they found, [places]. */
export function searchEnds(
  sequences: readonly AuditedSequence[],
  searched: SearchedStates,
  found: Int32Array,
): SearchEnds {
  const places = sequences.map(claimedPlaces);
  const offsets = offsetsOf(places.map(({ length }) => length));
  const ends = { complete: 0, unlisted: 0, unmatched: 0, mistaken: 0 };
  for (const [s, { ids }] of sequences.entries()) {
    const truth = places[s]!.map((place) => ids[place]!);
    const own = found.subarray(offsets[s]);
    const failed = truth.findIndex((token, i) => token !== own[i]);
    if (failed === -1) ends.complete++;
    else if (own[failed] !== nothing) ends.mistaken++;
    else if (candidatesAt(searched, offsets[s]! + failed).includes(truth[failed]!)) ends.unmatched++;
    else ends.unlisted++;
  }
  return ends;
}

/** A sequence with some of its candidates behind it. */
interface Branched {
  readonly sequence: number;
  readonly ids: readonly number[];
  readonly tried: readonly Tried[];
}

/** Runs all candidates of all sequences through the layers and notes their distances. */
async function runAll(
  model: AuditedModel,
  sequences: readonly AuditedSequence[],
  places: readonly (readonly number[])[],
  offsets: readonly number[],
  plans: readonly ReadonlyMap<number, Tried>[],
  searched: readonly SearchedStates[],
  trained: Trained | undefined,
): Promise<void> {
  const { cut, layers, runtime } = model;
  const embedding = await runtime.compile(cut.embedding(), { prepack: false });
  const deepest = Math.max(...searched.map(({ depth }) => depth));
  const rowsAt = places.map((own, s) => new Map(own.map((place, i) => [place, offsets[s]! + i])));
  const all = sequences.flatMap(({ ids }, sequence): Branched[] => {
    const last = places[sequence]!.at(-1) ?? 0;
    const trunk = ids.slice(0, last); // the last place needs what is before it only
    const tried = [...plans[sequence]!.values()];
    return Array.from({ length: Math.ceil(tried.length / branchesAtOnce) }, (_, part) => {
      const own = tried.slice(part * branchesAtOnce, (part + 1) * branchesAtOnce);
      return { sequence, ids: [...trunk, ...own.map(({ token }) => token)], tried: own };
    });
  });
  all.sort((a, b) => a.ids.length - b.ids.length);
  for (let from = 0; from < all.length; ) {
    const count = Math.max(1, Math.floor(batchTokens / all[from]!.ids.length));
    const batch = all.slice(from, from + count);
    from += batch.length;
    const { prefix } = cut.layout(batch);
    const trunks = batch.map(({ ids, tried }) => ids.length - tried.length);
    // Candidates are never part of what sequences share.
    const layout = withBranches(
      { ...layoutOf(model, batch, Math.min(prefix, ...trunks)) },
      batch.map(({ tried }) => tried.map(({ place }) => place)),
    );
    const { states } = await embedding.run(idsOnly(cut.embeddingFeeds(batch, layout)));
    let hidden = states as Float32Tensor;
    for (let depth = 0; depth <= deepest; depth++) {
      if (depth > 0) {
        const before = hidden;
        hidden = await layers.forward({ from: depth - 1, to: depth }, before, layout, { trained });
        freeTensor(before);
      }
      for (const [index, one] of searched.entries())
        if (one.depth === depth)
          for (const [b, { sequence, tried }] of batch.entries())
            for (const [i, candidate] of tried.entries())
              if (candidate.asked.has(index)) {
                const own = rowOf(trunks[b]! + i, b, layout);
                const row = rowsAt[sequence]!.get(candidate.place)!;
                candidate.distances[index] = relativeDistance(hidden, own, one.observed, row);
              }
    }
    freeTensor(hidden);
  }
  await embedding.dispose();
}

/** As the model lays sequences out, with so many tokens at the beginning shared. */
function layoutOf({ cut }: AuditedModel, batch: readonly Branched[], prefix: number): TokenLayout {
  const layout = cut.layout(batch);
  return { ...layout, prefix, time: layout.time + layout.prefix - prefix };
}

function idsOnly<T extends Readonly<Record<string, unknown>>>({ ids }: T) {
  return { ids } as { ids: T['ids'] };
}

/** |x_i - y_j| / |y_j| of a row of each. */
export function relativeDistance(x: Float32Tensor, i: number, y: Float32Tensor, j: number): number {
  const d = x.dims[1]!;
  let [difference, square] = [0, 0];
  for (let c = 0; c < d; c++) {
    const value = y.data[j * d + c]!;
    difference += (x.data[i * d + c]! - value) ** 2;
    square += value * value;
  }
  return Math.sqrt(difference / square);
}
