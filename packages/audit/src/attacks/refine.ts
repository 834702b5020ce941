// Exact search where tokens read in both directions. There is no order in which a token's state depends on known tokens
// alone, so a whole guess is improved: run it, take the place whose state is farthest from the one observed, try its
// next candidates, keep the one that brings the sequence nearest. A sequence whose states are all reproduced is found.
import type { Float32Tensor } from '@fellrec/graph';
import { type AuditedModel, depths, offsetsOf } from '../layerwise.ts';
import { claimedPlaces } from '../metrics.ts';
import type { AuditedSequence } from '../sequences.ts';
import {
  candidatesAt,
  relativeDistance,
  type SearchedStates,
  type SearchOptions,
  type SearchResult,
} from './search.ts';

/** Candidates tried at a place in a round, and rounds: each changes one place of a sequence at most. */
const triedAtOnce = 8;
const rounds = 32;

/** A sequence on its way. */
interface Guess {
  readonly sequence: number;
  readonly tokens: Int32Array;
  /** Relative distance of each place's state. */
  distances: Float64Array;
  /** How often candidates were tried at each place: each time the next ones, and after the last the first again. */
  readonly visits: Int32Array;
}

export async function refiningSearch(
  model: AuditedModel,
  sequences: readonly AuditedSequence[],
  searched: readonly SearchedStates[],
  options: SearchOptions,
): Promise<SearchResult> {
  const found: Int32Array[] = [];
  let runs = 0;
  for (const states of searched) {
    const refined = await refine(model, sequences, states, options);
    found.push(refined.found);
    runs += refined.runs;
  }
  return { found, runs };
}

async function refine(
  model: AuditedModel,
  sequences: readonly AuditedSequence[],
  states: SearchedStates,
  { tolerance: exact, take, trained }: SearchOptions,
): Promise<{ readonly found: Int32Array; readonly runs: number }> {
  const places = sequences.map(claimedPlaces);
  const offsets = offsetsOf(places.map(({ length }) => length));
  const count = candidatesAt(states, 0).length;
  // The nearest is never near enough.
  const tolerance = take === 'nearest' ? 0 : exact;
  let runs = 0;

  /** Distances of variants of sequences, each to the states observed of its sequence. */
  async function distancesOf(
    variants: readonly { readonly sequence: number; readonly tokens: Int32Array }[],
  ): Promise<Float64Array[]> {
    runs += variants.length;
    const selection = {
      sequences: variants.map(({ sequence, tokens }) =>
        replaced(sequences[sequence]!, places[sequence]!, tokens),
      ),
      places: variants.map(({ sequence }) => places[sequence]!),
      trained,
    };
    let own: Float32Tensor | undefined;
    for await (const { states: all } of depths(model, [selection], states.depth)) own = all[0];
    let row = 0;
    return variants.map(({ sequence }) =>
      Float64Array.from(places[sequence]!, (_, i) =>
        relativeDistance(own!, row++, states.observed, offsets[sequence]! + i),
      ),
    );
  }

  const guesses: Guess[] = places.map((own, sequence) => ({
    sequence,
    tokens: Int32Array.from(own, (_, i) => candidatesAt(states, offsets[sequence]! + i)[0]!),
    distances: new Float64Array(own.length),
    visits: new Int32Array(own.length),
  }));
  for (const [i, distances] of (await distancesOf(guesses)).entries()) guesses[i]!.distances = distances;
  for (let round = 0; round < rounds; round++) {
    const variants = guesses.flatMap((guess) => {
      const place = worst(guess, tolerance);
      if (place === undefined) return [];
      const from = (guess.visits[place]!++ * triedAtOnce) % count;
      const list = candidatesAt(states, offsets[guess.sequence]! + place).subarray(from, from + triedAtOnce);
      return Array.from(list, (token) => ({
        guess,
        sequence: guess.sequence,
        tokens: guess.tokens.with(place, token),
      }));
    });
    if (variants.length === 0) break;
    for (const [i, distances] of (await distancesOf(variants)).entries()) {
      const { guess, tokens } = variants[i]!;
      if (sum(distances) >= sum(guess.distances)) continue;
      guess.tokens.set(tokens);
      guess.distances = distances;
    }
  }
  const found = new Int32Array(states.observed.dims[0]!);
  for (const { sequence, tokens } of guesses) found.set(tokens, offsets[sequence]!);
  return { found, runs };
}

/** The place farthest from its state, for its visits; undefined if all are reproduced. */
function worst({ distances, visits }: Guess, tolerance: number): number | undefined {
  let found: { readonly place: number; readonly priority: number } | undefined;
  for (const [place, distance] of distances.entries()) {
    const priority = distance / (1 + visits[place]!);
    if (distance > tolerance && priority > (found?.priority ?? 0)) found = { place, priority };
  }
  return found?.place;
}

const sum = (values: Float64Array) => values.reduce((total, value) => total + value, 0);

function replaced(sequence: AuditedSequence, places: readonly number[], tokens: Int32Array): AuditedSequence {
  const ids = [...sequence.ids];
  for (const [i, place] of places.entries()) ids[place] = tokens[i]!;
  return { ...sequence, ids };
}
