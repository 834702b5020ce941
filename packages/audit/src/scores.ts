// Claims about users, scored, with intervals; and what guessing scores.
import { type Random, random } from '@fellrec/graph';
import { bootstrap } from '@fellrec/recsys';
import type { Claim } from './attacks/attack.ts';
import { titlesToTry } from './attacks/catalogue.ts';
import { claimedPlaces, scoresOf } from './metrics.ts';
import type { StudyOptions } from './options.ts';
import { type FloorResult, type MetricName, metricNames, type Recovery } from './result.ts';
import { type AuditedSequence, historyPlaces } from './sequences.ts';

/** Users whose texts are compared as sentences: a wrong text is long, and takes as long as an attack. */
const similarityUsers = 16;

export type Scorer = (claims: readonly Claim[]) => Promise<Recovery>;

export function scorer({ victims, tokenizer, seed, similarity }: StudyOptions): Scorer {
  const truths = victims.map((victim) => textOf(victim, historyTokens(victim)));
  // Much of what attacks say is the truth.
  const known = new Map<string, Float32Array>();
  async function vectorsOf(texts: readonly string[]): Promise<Float32Array[]> {
    const fresh = [...new Set(texts)].filter((text) => !known.has(text));
    for (const [i, vector] of (await similarity!(fresh)).entries()) known.set(fresh[i]!, vector);
    return texts.map((text) => known.get(text)!);
  }
  function textOf({ items }: AuditedSequence, tokens: readonly number[]): string {
    let from = 0;
    const texts = items.map(({ places }) => {
      const own = tokens.slice(from, from + places.length);
      from += places.length;
      return tokenizer.decode(own.filter((token) => token >= 0)).trim();
    });
    return texts.join(', ');
  }
  return async (claims) => {
    const values = new Map<MetricName, number[]>();
    const add = (name: MetricName, value: number | undefined) => {
      if (value !== undefined) values.set(name, [...(values.get(name) ?? []), value]);
    };
    for (const [v, claim] of claims.entries()) {
      const found =
        'tokens' in claim ? scoresOf(victims[v]!, claim.tokens, tokenizer) : itemScores(victims[v]!, claim);
      for (const name of metricNames) add(name, (found as Partial<Record<MetricName, number>>)[name]);
    }
    if (similarity && claims.every((claim) => 'tokens' in claim)) {
      const compared = claims.slice(0, similarityUsers);
      const texts = compared.map((claim, v) =>
        textOf(victims[v]!, 'tokens' in claim ? Array.from(claim.tokens) : []),
      );
      const theirs = await vectorsOf(texts);
      for (const [v, vector] of (await vectorsOf(truths.slice(0, similarityUsers))).entries())
        add(
          'similarity',
          vector.reduce((sum, x, c) => sum + x * theirs[v]![c]!, 0),
        );
    }
    return Object.fromEntries([...values].map(([name, list]) => [name, bootstrap(list, seed)]));
  };
}

function historyTokens(sequence: AuditedSequence): number[] {
  return historyPlaces(sequence).map((place) => sequence.ids[place]!);
}

function itemScores(
  { items, target }: AuditedSequence,
  claim: Exclude<Claim, { readonly tokens: unknown }>,
): { items?: number; target?: number } {
  const found = new Set(claim.items);
  const own = new Set(items.map(({ item }) => item));
  return {
    ...(claim.items && { items: [...own].filter((item) => found.has(item)).length / own.size }),
    ...(claim.target !== undefined && { target: claim.target === target ? 1 : 0 }),
  };
}

/** What is recovered without any state: how long a target is can be seen all the same, and titles of its length drawn. */
export async function floorsOf(options: StudyOptions, score: Scorer): Promise<FloorResult[]> {
  const { victims, auxiliary, popularity, model, seed } = options;
  const draw = random(seed, 'floor');
  const byLength = titlesByLength(options);
  const counts = new Map<number, number>();
  for (const token of auxiliary.flatMap(historyTokens)) counts.set(token, (counts.get(token) ?? 0) + 1);
  const [frequent] = [...counts].reduce((best, one) => (one[1] > best[1] ? one : best), [-1, 0]);
  const popular = [...popularity.keys()].sort((a, b) => popularity[b]! - popularity[a]!);
  const claims = {
    random: victims.map((victim) => ({
      tokens: claimedPlaces(victim).map(() => draw.integer(model.cut.vocabularySize)),
      items: victim.items.map(() => draw.integer(popularity.length)),
      target: draw.integer(popularity.length),
    })),
    'most frequent': victims.map((victim) => ({
      tokens: claimedPlaces(victim).map(() => frequent),
      items: popular.slice(0, victim.items.length),
      target: popular[0]!,
    })),
    'template only': victims.map((victim) => ({
      tokens: claimedPlaces(victim).map(() => -1),
      items: [],
      target: drawn(byLength.get(victim.answer.length) ?? [], draw) ?? -1,
    })),
  };
  const results: FloorResult[] = [];
  for (const [floor, list] of Object.entries(claims)) {
    const tokens = await score(list.map((one) => ({ tokens: one.tokens })));
    const items = await score(list.map(({ items, target }) => ({ items, target })));
    results.push({ floor: floor as FloorResult['floor'], recovery: { ...tokens, ...items } });
  }
  return results;
}

/** Titles that the catalogue attack tries, by their number of tokens; none where there is no answer to see. */
function titlesByLength(options: StudyOptions): Map<number, number[]> {
  const { victims, attacks, sequences } = options;
  if (!attacks.includes('catalogue') || victims.every(({ answer }) => answer.length === 0)) return new Map();
  return Map.groupBy(titlesToTry(options), (item) => sequences.item(item)?.answer.length ?? 0);
}

function drawn<T>(list: readonly T[], { integer }: Random): T | undefined {
  return list[integer(list.length)];
}
