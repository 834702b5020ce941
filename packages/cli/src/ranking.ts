// How a client ranks: the mode that is set, with statistics of its own users, which never leave it.
import type { NamedTensors } from '@fellrec/graph';
import {
  type Baseline,
  type Catalogue,
  cachedVectors,
  chooseGammas,
  type Evaluated,
  type EvaluateOptions,
  evaluatedEach,
  fitCooccurrence,
  fitPopularity,
  fitSasrec,
  type Injection,
  type RankingMode,
  type Recommender,
  type Sample,
  sentenceNeighbours,
  type User,
} from '@fellrec/recsys';
import type { Config } from './config.ts';
import type { injectable } from './config-schema.ts';
import { type Report, runtimeOf } from './experiment.ts';
import { openSentences } from './sentences.ts';

/** Who ranks. */
export interface Ranker {
  readonly recommender: Recommender;
  /** Whose training items popularity and co-occurrence are counted in. */
  readonly users: readonly User[];
  readonly catalogue: Catalogue;
  /** What gamma is chosen on. */
  readonly validation: readonly Sample[];
  readonly report: Report;
}

/** Options of `recommend` and `evaluate`, as configured. */
export type ConfiguredRanking = Required<Pick<EvaluateOptions, 'seed' | 'maskHistory' | 'ranking'>> &
  Pick<EvaluateOptions, 'injection' | 'items'>;

/** A client's parameters, and those of its item vectors where these are others. */
export interface Asked {
  readonly parameters: NamedTensors;
  readonly items?: NamedTensors | undefined;
}

/** Has something ranked as configured. */
export function withRankingOptions<T>(
  config: Config,
  ranker: Ranker,
  asked: Asked,
  use: (options: ConfiguredRanking) => Promise<T>,
): Promise<T> {
  return withInjections(config, [config.ranking.inject], ranker, asked, ([options]) => use(options!));
}

export interface InjectionsOptions {
  readonly samples: readonly Sample[];
  readonly injections: readonly (Statistics | undefined)[];
  readonly onProgress: (done: number) => void;
}

/**
 * Has samples ranked as configured, with each of the injections in turn, by one scoring; and how long each would take
 * alone.
 */
export async function evaluateInjections(
  config: Config,
  ranker: Ranker,
  asked: Asked,
  { samples, injections, onProgress }: InjectionsOptions,
): Promise<(Evaluated & { readonly seconds: number; readonly gamma: number | undefined })[]> {
  return withInjections(config, injections, ranker, asked, async (each, spent) => {
    const { injection: _, ...options } = each[0]!;
    const started = performance.now();
    const found = await evaluatedEach(
      ranker.recommender.score(samples, asked.parameters, { ...options, onProgress }),
      samples,
      each.map(({ injection }) => injection),
      options,
    );
    const scoring = (performance.now() - started) / 1000;
    return found.map((own, i) => ({
      ...own,
      gamma: each[i]!.injection?.gamma,
      seconds: spent(injections[i]) + scoring,
    }));
  });
}

/** Options that differ in what is injected; all gammas are chosen by one scoring of the validation samples. */
async function withInjections<T>(
  config: Config,
  injections: readonly (Statistics | undefined)[],
  { recommender, users, catalogue, validation, report }: Ranker,
  { parameters, items }: Asked,
  use: (
    options: readonly ConfiguredRanking[],
    /** Seconds that went before, as far as an injection needs them: statistics are fitted, gammas chosen. */
    spent: (injection: Statistics | undefined) => number,
  ) => Promise<T>,
): Promise<T> {
  const { ranking: configured, seed, evaluation } = config;
  const fitted = new Map<Statistics, { readonly baseline: Baseline; readonly seconds: number }>();
  const statistics = async (name: Statistics) => {
    const started = performance.now();
    const known = fitted.get(name);
    if (known) return known.baseline;
    const baseline = await fit(name, users, catalogue, config);
    fitted.set(name, { baseline, seconds: (performance.now() - started) / 1000 });
    return baseline;
  };
  let choosing = 0;
  const injectionsWith = async (options: ConfiguredRanking): Promise<Map<Statistics, Injection>> => {
    const names = [...new Set(injections)].filter((name) => name !== undefined);
    const { gamma } = configured;
    // Without validation samples nothing says that it helps.
    if (names.length === 0 || (gamma === 'validation' && validation.length === 0)) return new Map();
    const methods: Baseline[] = [];
    for (const name of names) methods.push(await statistics(name));
    const scores = () =>
      recommender.score(validation, parameters, {
        ...options,
        onProgress: (done, total) => report('validation samples', done, total),
      });
    const started = performance.now();
    const gammas =
      gamma === 'validation'
        ? await chooseGammas(validation, scores(), methods, options)
        : names.map(() => gamma);
    choosing = (performance.now() - started) / 1000;
    return new Map(names.map((name, i) => [name, { of: methods[i]!, gamma: gammas[i]! }]));
  };
  try {
    const options = {
      seed,
      maskHistory: evaluation.maskHistory,
      ranking: await modeOf(configured, statistics),
      ...(items && { items }),
    };
    const ranks = [...fitted.keys()];
    const found = await injectionsWith(options);
    const spent = (injection: Statistics | undefined) =>
      [...new Set([...ranks, ...(injection ? [injection] : [])])].reduce(
        (sum, name) => sum + (fitted.get(name)?.seconds ?? 0),
        injection ? choosing : 0,
      );
    return await use(
      injections.map((name) => {
        const injection = name && found.get(name);
        return injection ? { ...options, injection } : options;
      }),
      spent,
    );
  } finally {
    for (const { baseline } of fitted.values()) await baseline.dispose();
  }
}

type Statistics = (typeof injectable)[number];

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
  const { hashes, vectors, release } = await openSentences(ranking.sentences!, cache, runtimeOf(config));
  try {
    return sentenceNeighbours(
      await cachedVectors({ catalogue, computedBy: hashes, cacheDir: cache }, vectors),
    );
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
