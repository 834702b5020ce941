// How a client ranks: the mode that is set, with statistics of its own users, which never leave it.
import type { NamedTensors } from '@fellrec/graph';
import {
  type Baseline,
  type Catalogue,
  cachedVectors,
  chooseGamma,
  type EvaluateOptions,
  fitCooccurrence,
  fitPopularity,
  fitSasrec,
  type RankingMode,
  type Recommender,
  type Sample,
  sentenceNeighbours,
  type User,
} from '@fellrec/recsys';
import type { Config } from './config.ts';
import type { injected } from './config-schema.ts';
import { runtimeOf } from './experiment.ts';
import { openSentences } from './sentences.ts';

/** Who ranks. */
export interface Ranker {
  readonly recommender: Recommender;
  /** Whose training items popularity and co-occurrence are counted in. */
  readonly users: readonly User[];
  readonly catalogue: Catalogue;
  /** What gamma is chosen on. */
  readonly validation: readonly Sample[];
}

/** Options of `recommend` and `evaluate`, as configured. */
export type RankingOptions = Required<Pick<EvaluateOptions, 'seed' | 'maskHistory' | 'ranking'>> &
  Pick<EvaluateOptions, 'injection' | 'items'>;

/** Has something ranked as configured, with these parameters (and those of the item vectors, where these are others). */
export async function withRankingOptions<T>(
  config: Config,
  { recommender, users, catalogue, validation }: Ranker,
  { parameters, items }: { readonly parameters: NamedTensors; readonly items?: NamedTensors | undefined },
  use: (options: RankingOptions) => Promise<T>,
): Promise<T> {
  const { ranking: configured, seed, evaluation } = config;
  const fitted = new Map<Statistics, Baseline>();
  const statistics = async (name: Statistics) => {
    const known = fitted.get(name) ?? (await fit(name, users, catalogue, config));
    fitted.set(name, known);
    return known;
  };
  const injectionOf = async (inject: Statistics, options: RankingOptions) => {
    const of = await statistics(inject);
    const { gamma } = configured;
    if (gamma !== 'validation') return { of, gamma };
    const found = recommender.score(validation, parameters, options);
    return { of, gamma: await chooseGamma(validation, found, of, options) };
  };
  try {
    const options = {
      seed,
      maskHistory: evaluation.maskHistory,
      ranking: await modeOf(configured, statistics),
      ...(items && { items }),
    };
    const { inject } = configured;
    return await use(inject ? { ...options, injection: await injectionOf(inject, options) } : options);
  } finally {
    for (const baseline of fitted.values()) await baseline.dispose();
  }
}

type Statistics = (typeof injected)[number];

function fit(
  name: Statistics,
  users: readonly User[],
  catalogue: Catalogue,
  config: Config,
): Baseline | Promise<Baseline> {
  const items = catalogue.items.length;
  switch (name) {
    case 'popularity':
      return fitPopularity(users, items);
    case 'cooccurrence':
      return fitCooccurrence(users, items);
    case 'sasrec':
      return fitSasrec(users, items, runtimeOf(config), { seed: config.seed });
    case 'sentences':
      return sentences(config, catalogue);
  }
}

/** Learns from nobody: a sentence encoder and titles are all it needs. */
async function sentences(config: Config, catalogue: Catalogue): Promise<Baseline> {
  const { ranking, cache } = config;
  const { modelHash, vectors, release } = await openSentences(ranking.sentences!, cache, runtimeOf(config));
  try {
    return sentenceNeighbours(await cachedVectors({ catalogue, modelHash, cacheDir: cache }, vectors));
  } finally {
    await release();
  }
}

async function modeOf(
  { mode, from, beams, shortlist, perToken }: Config['ranking'],
  statistics: (name: Statistics) => Promise<Baseline>,
): Promise<RankingMode> {
  switch (mode) {
    case 'grounded':
      return { mode, from };
    case 'constrained':
      return { mode, beams };
    case 'rerank': {
      const { of, size } = shortlist;
      return { mode, size, perToken, ...(of !== 'grounded' && { shortlist: await statistics(of) }) };
    }
  }
}
