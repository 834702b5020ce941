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
import type { Config, injected } from './config.ts';
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

/** Options of `recommend` and `evaluate`, as configured. Dispose when done. */
export interface OpenRanking {
  readonly options: Required<Pick<EvaluateOptions, 'seed' | 'maskHistory' | 'ranking'>> &
    Pick<EvaluateOptions, 'injection' | 'items'>;
  dispose(): Promise<void>;
}

export async function openRanking(
  config: Config,
  { recommender, users, catalogue, validation }: Ranker,
  parameters: NamedTensors,
  items?: NamedTensors,
): Promise<OpenRanking> {
  const { ranking, seed, evaluation } = config;
  const fitted = new Map<string, Baseline>();
  const statistics = async (name: Statistics) => {
    const known = fitted.get(name) ?? (await fit(name, users, catalogue, config));
    fitted.set(name, known);
    return known;
  };
  const options = {
    seed,
    maskHistory: evaluation.maskHistory,
    ranking: await modeOf(ranking, statistics),
    ...(items && { items }),
  };
  return {
    options: {
      ...options,
      ...(ranking.inject && { injection: await injectionOf(ranking.inject) }),
    },
    async dispose() {
      for (const baseline of fitted.values()) await baseline.dispose();
    },
  };

  async function injectionOf(inject: (typeof injected)[number]) {
    const of = await statistics(inject);
    const { gamma } = ranking;
    if (gamma !== 'validation') return { of, gamma };
    const found = recommender.score(validation, parameters, options);
    return { of, gamma: await chooseGamma(validation, found, of, options) };
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
  const found = await cachedVectors({ catalogue, modelHash, cacheDir: cache }, vectors);
  await release();
  return sentenceNeighbours(found);
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
