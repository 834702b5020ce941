// Samples as token sequences: the prompt, the quoted title of the target, the end token.
import { random } from '@fellrec/graph';
import { ignoredLabel, type Sequence, type Tokenizer } from '@fellrec/models';
import type { Catalogue } from '../catalogue.ts';
import { type Domain, renderAnswer, renderPrompt } from '../prompt.ts';
import type { Sample } from '../samples.ts';

export interface TextOptions {
  readonly catalogue: Catalogue;
  readonly tokenizer: Tokenizer;
  readonly domain: Domain;
  /** Longest sequence, in tokens. */
  readonly maxTokens: number;
  readonly eosIds: readonly number[];
}

export interface Fitted<T> {
  readonly value: T;
  /** Items of the history that were dropped, oldest first, so that the text fits. */
  readonly dropped: number;
}

/** The prompt's tokens. @throws if not even a prompt without history leaves `reserve` tokens of the context. */
export function promptTokens(
  history: readonly number[],
  reserve: number,
  options: TextOptions,
): Fitted<number[]> {
  const { catalogue, tokenizer, domain, maxTokens } = options;
  for (let dropped = 0; dropped <= history.length; dropped++) {
    const titles = history.slice(dropped).map((item) => catalogue.items[item]!.title);
    const ids = tokenizer.encode(renderPrompt(titles, domain));
    if (ids.length + reserve <= maxTokens) return { value: ids, dropped };
  }
  throw new Error(
    `bigrec: the prompt without any history and ${reserve} more tokens exceed ${maxTokens} tokens; raise model.maxTokens or shorten domain`,
  );
}

/** Sequences to calibrate a quantised base on: of drawn items, so that they say nothing about users. */
export function calibrationSequences(options: TextOptions): number[][] {
  const { items } = options.catalogue;
  const { shuffle } = random(1, 'calibration');
  return Array.from({ length: 8 }, (_, i) => {
    const drawn = shuffle(items.map((_, item) => item)).slice(0, 11);
    const sample = {
      user: `drawn ${i}`,
      history: drawn.slice(1),
      seen: drawn.slice(1),
      targets: drawn.slice(0, 1),
    };
    return [...trainingSequence(sample, 'answer', options).value.ids];
  });
}

/** A training sequence: one of the targets after the prompt; labels on the answer, or on everything. */
export function trainingSequence(
  sample: Sample,
  lossOn: 'answer' | 'all',
  options: TextOptions,
): Fitted<Sequence> {
  const answer = answerTokens(options.catalogue.items[sample.targets[0]!]!.title, options);
  const { value: prompt, dropped } = promptTokens(sample.history, answer.length, options);
  const ids = [...prompt, ...answer];
  const labels = lossOn === 'all' ? ids : [...prompt.map(() => ignoredLabel), ...answer];
  return { value: { ids, labels }, dropped };
}

/** What is learned after a prompt, and asked for: the quoted title and the end token. */
export function answerTokens(
  title: string,
  { tokenizer, eosIds }: Pick<TextOptions, 'tokenizer' | 'eosIds'>,
): number[] {
  return [...tokenizer.encodeContinuation(renderAnswer(title)), ...eosIds.slice(0, 1)];
}
