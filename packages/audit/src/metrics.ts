// What of a user's history a reconstruction has right. The template's tokens never count.
import type { Tokenizer } from '@fellrec/models';
import { type AuditedSequence, historyPlaces } from './sequences.ts';

/** Tokens at the places of a sequence's history and then of its answer. */
export type Reconstruction = ArrayLike<number>;

export interface Scores {
  readonly tokenAccuracy: number;
  readonly tokenRecall: number;
  readonly exact: number;
  readonly rougeL: number;
  readonly items: number;
  /** Where the sequence holds its target. */
  readonly target?: number;
}

/** The places that an attack makes a claim about: history, then answer. */
export function claimedPlaces(sequence: AuditedSequence): number[] {
  return [...historyPlaces(sequence), ...sequence.answer];
}

/** Tokens at the claimed places of all victims, by victim. */
export function tokenClaims(
  tokens: Int32Array,
  victims: readonly AuditedSequence[],
): { readonly tokens: Int32Array }[] {
  let from = 0;
  return victims.map((victim) => {
    const to = from + claimedPlaces(victim).length;
    const own = tokens.subarray(from, to);
    from = to;
    return { tokens: own };
  });
}

/** Of one user, each from 0 to 1. @throws if the reconstruction is not as long as history and answer. */
export function scoresOf(truth: AuditedSequence, guess: Reconstruction, tokenizer: Tokenizer): Scores {
  const history = historyPlaces(truth);
  const count = history.length;
  if (guess.length !== count + truth.answer.length)
    throw new Error(
      `audit: a reconstruction of ${guess.length} tokens; history and answer have ${count + truth.answer.length}`,
    );
  const own = history.map((place) => truth.ids[place]!);
  const guessed = Array.from(guess);
  const right = own.filter((token, i) => token === guessed[i]).length;
  let at = 0;
  let whole = 0;
  const texts = truth.items.map(({ places }) => {
    const tokens = guessed.slice(at, at + places.length);
    at += places.length;
    if (places.every((place, i) => truth.ids[place] === tokens[i])) whole++;
    return {
      truth: tokenizer.decode(places.map((place) => truth.ids[place]!)),
      guess: tokenizer.decode(tokens),
    };
  });
  const join = (of: 'truth' | 'guess') => texts.map((text) => text[of]).join(' ');
  return {
    tokenAccuracy: ratio(right, count),
    tokenRecall: ratio(common(own, guessed.slice(0, count)), count),
    exact: right === count ? 1 : 0,
    rougeL: rougeL(join('truth'), join('guess')),
    items: ratio(whole, truth.items.length),
    ...(truth.answer.length > 0 && {
      target: truth.answer.every((place, i) => truth.ids[place] === guessed[count + i]) ? 1 : 0,
    }),
  };
}

const ratio = (part: number, all: number) => (all === 0 ? 0 : part / all);

/** Size of the intersection of two multisets. */
function common(a: readonly number[], b: readonly number[]): number {
  const left = new Map<number, number>();
  for (const token of b) left.set(token, (left.get(token) ?? 0) + 1);
  return a.filter((token) => {
    const count = left.get(token) ?? 0;
    left.set(token, count - 1);
    return count > 0;
  }).length;
}

/**
 * ROUGE-L (Lin 2004): F1 of the longest common subsequence of words, 2 L / (m + n). Words are lower-case runs of letters
 * and digits, as in the package rouge-score, without stemming.
 */
export function rougeL(a: string, b: string): number {
  const [x, y] = [wordsOf(a), wordsOf(b)];
  if (x.length === 0 || y.length === 0) return 0;
  let row = new Uint32Array(y.length + 1);
  for (const word of x) {
    const next = new Uint32Array(y.length + 1);
    for (let j = 1; j <= y.length; j++)
      next[j] = word === y[j - 1] ? row[j - 1]! + 1 : Math.max(row[j]!, next[j - 1]!);
    row = next;
  }
  return (2 * row[y.length]!) / (x.length + y.length);
}

function wordsOf(text: string): readonly string[] {
  return text.toLowerCase().match(/[a-z0-9]+/g) ?? [];
}
