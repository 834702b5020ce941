// What somebody who knows the catalogue finds in hidden states: the states of each title, computed alone, are compared
// with the user's. And the target: by the model's own head where a language model is taught it, by the vectors of
// sequence and item where an encoder compares these.
import {
  type Float32Tensor,
  float32,
  input,
  linear,
  logSoftmax,
  type Program,
  type Runtime,
  random,
  topIndices,
} from '@fellrec/graph';
import type { EmbeddedTokens } from '@fellrec/models';
import { offsetsOf, rowBlocks, rowsBetween } from '../layerwise.ts';
import { claimedPlaces } from '../metrics.ts';
import type { StudyOptions } from '../options.ts';
import { type AuditedSequence, historyPlaces } from '../sequences.ts';
import type { ObservedStates, StateAttack } from './attack.ts';

/** Titles whose last token is near a state are compared there token by token. */
const nearTitles = 16;
/** A token speaks for a title if its cosine is above this, and against it below. */
const even = 0.5;

interface Rows {
  readonly from: number;
  readonly to: number;
}

/** Knowing the titles: which are in a history (as many as it has), and which is the target. */
export async function catalogueAttack(options: StudyOptions): Promise<StateAttack> {
  const { model, victims, sequences, known } = options;
  const tried = titlesToTry(options).flatMap((item) => {
    const sequence = sequences.item(item);
    return sequence ? [{ item, sequence }] : [];
  });
  const titles = tried.map(({ item }) => item);
  const alone = tried.map(({ sequence }) => sequence);
  const ofTitles = rowsOf(alone.map((one) => historyPlaces(one).length));
  const ofVictims = rowsOf(victims.map((one) => claimedPlaces(one).length)).map(({ from }, v) => ({
    from,
    to: from + historyPlaces(victims[v]!).length,
  }));
  const matcher = titleMatcher(model.runtime, model.cut.hiddenSize);
  const targets = victims.every(({ answer }) => answer.length > 0)
    ? await targetsByHead(options, alone)
    : targetsByVector(options);
  return {
    selections: [{ sequences: alone.map(upToTitle), places: alone.map(historyPlaces), trained: known }],
    async at(depth, observed, [states]) {
      const matched = await matcher.match(observed.victims, ofVictims, states!, ofTitles);
      const histories = victims.map(({ items }, v) =>
        firstApart(matched[v]!, items.length).map(({ title }) => title),
      );
      const guessed = await targets.find({ ...observed, titleStates: states!, titles: ofTitles, histories });
      const claims = victims.map((_, v) => ({
        items: histories[v]!.map((title) => titles[title]!),
        target: titles[guessed[v]!]!,
      }));
      return [{ attack: 'catalogue', depth, claims }];
    },
    async dispose() {
      await matcher.dispose();
      await targets.dispose();
    },
  };
}

/** What follows a title has no part in its states where tokens read backwards only: where there is an answer. */
function upToTitle(sequence: AuditedSequence): EmbeddedTokens {
  if (sequence.answer.length === 0) return sequence;
  return { ids: sequence.ids.slice(0, historyPlaces(sequence).at(-1)! + 1) };
}

/** The victims' items, and others drawn, in no order. */
export function titlesToTry({ victims, catalogue, titles, seed }: StudyOptions): number[] {
  const { shuffle } = random(seed, 'titles');
  const own = new Set(victims.flatMap(({ items, target }) => [...items.map(({ item }) => item), target]));
  const others = shuffle([...catalogue.items.keys()].filter((item) => !own.has(item)));
  return shuffle([...own, ...others.slice(0, Math.max(0, titles - own.size))]);
}

export interface Match extends Rows {
  /** By its place among the titles. */
  readonly title: number;
  /** The sum over its tokens of cosine - 0.5. */
  readonly score: number;
}

function titleMatcher(runtime: Runtime, d: number) {
  const cosines = linear(input('rows', 'float32', ['rows', d]), input('ends', 'float32', ['titles', d]));
  const programs = new Map<number, Promise<Program>>();
  return {
    /** Where titles fit into each user's rows. States are compared without the mean of the titles'. */
    async match(
      states: Float32Tensor,
      users: readonly Rows[],
      titleStates: Float32Tensor,
      titles: readonly Rows[],
    ): Promise<Match[][]> {
      const mean = meanRow(titleStates);
      const [known, seen] = [unitWithout(titleStates, mean), unitWithout(states, mean)];
      const ends = new Float32Array(titles.length * d);
      for (const [i, { to }] of titles.entries()) ends.set(known.data.subarray((to - 1) * d, to * d), i * d);
      const count = Math.min(nearTitles, titles.length);
      const program = await (programs.get(count) ?? runtime.compile({ top: topIndices(cosines, count) }));
      programs.set(count, Promise.resolve(program));
      const near = new Int32Array(states.dims[0]! * count);
      for (const { from, part } of rowBlocks(seen, 1024)) {
        const { top } = await program.run({ rows: part, ends: float32(ends, [titles.length, d]) });
        near.set(Int32Array.from(top!.data, Number), from * count);
      }
      return users.map((user) => {
        const found: Match[] = [];
        for (let row = user.from; row < user.to; row++)
          for (const title of near.subarray(row * count, (row + 1) * count)) {
            const { from, to } = titles[title]!;
            const begin = row + 1 - (to - from);
            if (begin < user.from) continue;
            let score = 0;
            for (let t = 0; t < to - from; t++)
              score += dot(seen.data, (begin + t) * d, known.data, (from + t) * d, d) - even;
            found.push({ title, score, from: begin, to: row + 1 });
          }
        return found;
      });
    },
    async dispose() {
      for (const program of programs.values()) await (await program).dispose();
    },
  };
}

/** The best matches, no two at one place, each title once. */
export function firstApart(matches: readonly Match[], count: number): Match[] {
  const taken: Match[] = [];
  for (const one of matches.toSorted((a, b) => b.score - a.score)) {
    if (taken.length === count) break;
    if (taken.every(({ title, from, to }) => title !== one.title && (one.to <= from || one.from >= to)))
      taken.push(one);
  }
  return taken;
}

/** What a target is looked for in. */
interface Seen extends Pick<ObservedStates, 'victims' | 'taught'> {
  readonly titleStates: Float32Tensor;
  readonly titles: readonly Rows[];
  /** What this attack takes for each victim's history, by places among the titles. */
  readonly histories: readonly (readonly number[])[];
}

interface TargetFinder {
  /** The place of the guessed target among the titles, one a victim. */
  find(seen: Seen): Promise<number[]>;
  dispose(): Promise<void>;
}

/**
 * By the log-probabilities that the head gives each title's tokens on the states before them, which were taught to
 * predict the target. Where the answer begins and how long it is can be seen; titles of another length are out.
 */
async function targetsByHead(
  { model: { cut, runtime }, victims }: StudyOptions,
  titles: readonly AuditedSequence[],
): Promise<TargetFinder> {
  const hidden = input('hidden', 'float32', ['rows', cut.hiddenSize]);
  const program = await runtime.compile({ logProbabilities: logSoftmax(cut.head(hidden)) });
  const answers = titles.map(({ ids, answer }) => answer.map((place) => ids[place]!));
  const rows = rowsOf(victims.map(({ answer }) => answer.length));
  return {
    async find({ taught }) {
      const found: number[] = [];
      for (const { from, to } of rows) {
        const part = await program.run({ hidden: rowsBetween(taught, from, to) });
        const { data, dims } = part.logProbabilities as Float32Tensor;
        const scores = answers.map((tokens) =>
          tokens.length === to - from
            ? tokens.reduce((sum, token, row) => sum + data[row * dims[1]! + token]!, 0)
            : Number.NEGATIVE_INFINITY,
        );
        found.push(largest(scores));
      }
      return found;
    },
    dispose: () => program.dispose(),
  };
}

/** By the cosine of the mean states of history and title, without the mean over all titles. */
function targetsByVector({ victims }: StudyOptions): TargetFinder {
  const rows = rowsOf(victims.map((one) => historyPlaces(one).length));
  return {
    async find({ victims: states, titleStates, titles, histories }) {
      const d = titleStates.dims[1]!;
      const vectors = meansOf(titleStates, titles);
      const mean = meanRow(vectors);
      const [known, own] = [unitWithout(vectors, mean), unitWithout(meansOf(states, rows), mean)];
      return victims.map((_, v) =>
        largest(
          // Nobody's target is in the history.
          titles.map((_, t) =>
            histories[v]!.includes(t) ? Number.NEGATIVE_INFINITY : dot(own.data, v * d, known.data, t * d, d),
          ),
        ),
      );
    },
    dispose: async () => {},
  };
}

function rowsOf(counts: readonly number[]): Rows[] {
  const offsets = offsetsOf(counts);
  return counts.map((count, i) => ({ from: offsets[i]!, to: offsets[i]! + count }));
}

function largest(scores: readonly number[]): number {
  return scores.reduce((best, score, i) => (score > scores[best]! ? i : best), 0);
}

/** The mean of the rows, [d]. */
function meanRow({ data, dims }: Float32Tensor): Float64Array {
  const [rows, d] = dims as [number, number];
  const mean = new Float64Array(d);
  for (let r = 0; r < rows; r++) for (let c = 0; c < d; c++) mean[c]! += data[r * d + c]! / rows;
  return mean;
}

/** The mean of each range of rows, [ranges, d]. */
function meansOf(states: Float32Tensor, ranges: readonly Rows[]): Float32Tensor {
  const d = states.dims[1]!;
  const means = new Float32Array(ranges.length * d);
  for (const [i, { from, to }] of ranges.entries()) means.set(meanRow(rowsBetween(states, from, to)), i * d);
  return float32(means, [ranges.length, d]);
}

/** Rows minus `mean`, scaled to length 1. */
function unitWithout({ data, dims }: Float32Tensor, mean: Float64Array): Float32Tensor {
  const d = dims[1]!;
  const unit = new Float32Array(data.length);
  for (let from = 0; from < data.length; from += d) {
    let square = 0;
    for (let c = 0; c < d; c++) {
      unit[from + c] = data[from + c]! - mean[c]!;
      square += unit[from + c]! ** 2;
    }
    const factor = 1 / Math.sqrt(square || 1);
    for (let c = 0; c < d; c++) unit[from + c]! *= factor;
  }
  return float32(unit, dims);
}

function dot(x: Float32Array, i: number, y: Float32Array, j: number, d: number): number {
  let sum = 0;
  for (let c = 0; c < d; c++) sum += x[i + c]! * y[j + c]!;
  return sum;
}
