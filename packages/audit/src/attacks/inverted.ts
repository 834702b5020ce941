// The two attacks that begin with a trained inverter: what it says, and the exact search in its order.

import { tokenClaims } from '../metrics.ts';
import type { StudyOptions } from '../options.ts';
import type { SearchEnds } from '../result.ts';
import { type AuditedSequence, historyPlaces } from '../sequences.ts';
import type { StateAttack } from './attack.ts';
import { inverterTrainer } from './inverter.ts';
import { refiningSearch } from './refine.ts';
import { type SearchedStates, searchEnds, sequentialSearch } from './search.ts';

/** What was learned on the way, for the report. */
export interface InvertedAttacks extends StateAttack {
  summary(): {
    readonly vocabulary: number;
    readonly accuracy: readonly { readonly depth: number; readonly accuracy: number }[];
    readonly runs: number;
    /** Of the search token by token. */
    readonly ends: readonly (SearchEnds & { readonly depth: number })[];
  };
}

/** The first inverter has nothing to go on from. */
const firstEpochs = 3;

export async function invertedAttacks(options: StudyOptions): Promise<InvertedAttacks> {
  const { model, attacks, victims, seed, search, known } = options;
  const counts = tokensOfDomain(options);
  const trainer = await inverterTrainer(model, counts, seed);
  const [learned, truth] = [options.auxiliary, options.held].map((list) => list.flatMap(historyTokens));
  const searched: SearchedStates[] = [];
  const accuracy: { depth: number; accuracy: number }[] = [];
  const budget = attacks.includes('search') ? Math.min(search.budget, counts.size) : 1;
  let runs = 0;
  const ends: (SearchEnds & { depth: number })[] = [];
  return {
    selections: [],
    async at(depth, { victims: states, auxiliary, held }) {
      const epochs = options.epochs * (accuracy.length === 0 ? firstEpochs : 1);
      const inverter = await trainer.train(auxiliary, learned!, epochs);
      const guessed = await inverter.candidates(held, 1);
      const right = truth!.filter((token, i) => token === guessed[i]).length;
      accuracy.push({ depth, accuracy: right / truth!.length });
      const candidates = await inverter.candidates(states, budget);
      if (attacks.includes('search')) searched.push({ depth, observed: states, candidates });
      if (!attacks.includes('inverter')) return [];
      const first = Int32Array.from({ length: states.dims[0]! }, (_, row) => candidates[row * budget]!);
      return [{ attack: 'inverter', depth, claims: tokenClaims(first, victims) }];
    },
    async finish() {
      if (searched.length === 0) return [];
      const find = model.cut.decoding ? sequentialSearch : refiningSearch;
      const found = await find(model, victims, searched, { ...search, trained: known });
      runs = found.runs;
      if (model.cut.decoding)
        for (const [i, states] of searched.entries())
          ends.push({ depth: states.depth, ...searchEnds(victims, states, found.found[i]!) });
      return searched.map(({ depth }, i) => ({
        attack: 'search',
        depth,
        claims: tokenClaims(found.found[i]!, victims),
      }));
    },
    dispose: () => trainer.dispose(),
    summary: () => ({ vocabulary: counts.size, accuracy, runs, ends }),
  };
}

const historyTokens = (sequence: AuditedSequence) =>
  historyPlaces(sequence).map((place) => sequence.ids[place]!);

/** Tokens of other users' histories with their counts, and those of the catalogue's titles: public text. */
function tokensOfDomain({ auxiliary, catalogue, tokenizer }: StudyOptions): Map<number, number> {
  const counts = new Map<number, number>();
  for (const token of auxiliary.flatMap(historyTokens)) counts.set(token, (counts.get(token) ?? 0) + 1);
  for (const { title } of catalogue.items)
    for (const text of [title, `"${title}",`])
      for (const token of tokenizer.encodeContinuation(text)) if (!counts.has(token)) counts.set(token, 0);
  return counts;
}
