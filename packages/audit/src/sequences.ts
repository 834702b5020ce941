// What users send through the model, and which of its tokens say something about them: titles count, the template does not.
import type { EmbeddedTokens, RecformerConfig, Tokenizer } from '@fellrec/models';
import {
  type Catalogue,
  type Domain,
  itemText,
  renderAnswer,
  renderPrompt,
  type Sample,
  trainingSequence,
} from '@fellrec/recsys';

/** An item's tokens in a sequence. */
export interface PlacedItem {
  readonly item: number;
  /** Ascending. */
  readonly places: readonly number[];
}

/** A user's sequence as it crosses the cut in a training step. */
export interface AuditedSequence extends EmbeddedTokens {
  readonly user: string;
  /** The history, as far as it is in the sequence and has tokens there, in its order there. */
  readonly items: readonly PlacedItem[];
  /** The target's tokens, where the target is in the sequence: a language model is taught it. */
  readonly answer: readonly number[];
  readonly target: number;
}

/** How a recommender makes sequences of samples. */
export interface SequenceMaker {
  /** Undefined if nothing of the history fits. */
  history(sample: Sample): AuditedSequence | undefined;
  /** An item alone, as an attacker who knows the catalogue would try it; undefined if it does not fit. */
  item(item: number): AuditedSequence | undefined;
  /** Text of a history. */
  text(items: readonly number[]): string;
}

export interface PromptOptions {
  readonly catalogue: Catalogue;
  readonly tokenizer: Tokenizer;
  readonly domain: Domain;
  readonly maxTokens: number;
  readonly eosIds: readonly number[];
}

/** BIGRec's: the prompt and the quoted title of the target. */
export function promptSequences(options: PromptOptions): SequenceMaker {
  const { catalogue, tokenizer } = options;
  const title = (item: number) => catalogue.items[item]!.title;
  const template = tokenizer.encode(renderPrompt([], options.domain)).length;
  function make(sample: Sample): AuditedSequence | undefined {
    const answer = tokenizer.encodeContinuation(renderAnswer(title(sample.targets[0]!))).length + 1;
    if (template + answer > options.maxTokens) return undefined;
    const { value, dropped } = trainingSequence(sample, 'answer', options);
    const history = sample.history.slice(dropped);
    const target = sample.targets[0]!;
    const owners = titlePlaces(value.ids, [...history, target].map(title), tokenizer);
    // Of a title without tokens there is nothing to recover.
    const items = history
      .map((item, i) => ({ item, places: owners[i]! }))
      .filter(({ places }) => places.length > 0);
    if (items.length === 0) return undefined;
    return {
      user: sample.user,
      ids: value.ids,
      items,
      answer: owners.at(-1)!,
      target,
    };
  }
  return {
    history: make,
    item: (item) => make({ user: '', history: [item], seen: [item], targets: [item] }),
    text: (items) => items.map(title).join(', '),
  };
}

export interface ItemSequenceOptions {
  readonly catalogue: Catalogue;
  readonly tokenizer: Tokenizer;
  readonly attributes: readonly string[];
  readonly config: Pick<RecformerConfig, 'limits' | 'startId'>;
}

/** RecFormer's: the history's items as text, newest first; the names of attributes are the template. */
export function itemSequences(options: ItemSequenceOptions): SequenceMaker {
  const text = itemText(options);
  const { catalogue } = options;
  function make(user: string, seen: readonly number[], target: number): AuditedSequence | undefined {
    const { sequence } = text.history(seen);
    const newestFirst = seen.toReversed();
    const items = newestFirst.flatMap((item, i) => {
      const places = sequence.ids.flatMap((_, place) =>
        sequence.itemPositions[place] === i + 1 && sequence.tokenTypes[place] === 2 ? [place] : [],
      );
      return places.length > 0 ? [{ item, places }] : [];
    });
    return items.length === 0 ? undefined : { user, ...sequence, items, answer: [], target };
  }
  return {
    history: ({ user, seen, targets }) => make(user, seen, targets[0]!),
    item: (item) => make('', [item], item),
    text: (items) => items.map((item) => catalogue.items[item]!.title).join(', '),
  };
}

/**
 * The places of the tokens that hold each title's characters, of titles that stand in a text one after another.
 * What a tokenizer cannot give back as it was is at no place.
 */
export function titlePlaces(
  ids: readonly number[],
  titles: readonly string[],
  tokenizer: Tokenizer,
): number[][] {
  const text = tokenizer.decode(ids);
  const prefixes = ids.map((_, place) => tokenizer.decode(ids.slice(0, place + 1)));
  // A character of several tokens is complete with the last of them: before, it decodes to something else.
  const complete = prefixes.map((prefix) => {
    let end = prefix.length;
    while (end > 0 && prefix[end - 1] !== text[end - 1]) end--;
    return end;
  });
  // Titles are quoted in the text; the template before them holds no quotation mark.
  let from = 0;
  return titles.map((title) => {
    const at = title === '' ? -1 : text.indexOf(`"${title}"`, from);
    if (at === -1) return [];
    const [begin, end] = [at + 1, at + 1 + title.length];
    from = end;
    return prefixes.flatMap((prefix, place) =>
      (complete[place - 1] ?? 0) < end && prefix.length > begin ? [place] : [],
    );
  });
}

/** All places of a history, in the order of its items. */
export function historyPlaces({ items }: Pick<AuditedSequence, 'items'>): number[] {
  return items.flatMap(({ places }) => places);
}
