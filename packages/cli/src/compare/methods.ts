// The methods that a comparison knows by name: strategies, FELLRec without some of its parts, and rankings that learn
// nothing from a federation.
import { join } from 'node:path';
import { type Config, ConfigError, completed } from '../config.ts';
import { configSchema, injectable } from '../config-schema.ts';

type Federation = Config['federation'];
type Ranks = Config['ranking'];

/** What each trained method sets, on top of the configuration's own settings. */
const trained = {
  fellrec: () => ({ strategy: 'fellrec' }),
  fedavg: () => ({ strategy: 'fedavg' }),
  fedprox: () => ({ strategy: 'fedprox' }),
  ditto: () => ({ strategy: 'ditto' }),
  uniform: () => ({ strategy: 'uniform' }),
  local: () => ({ strategy: 'local' }),
  centralized: () => ({ strategy: 'centralized' }),
  /** All clients count as equally similar; heating stays. Without both it is `uniform`. */
  'fellrec-no-similarity': () => ({ strategy: 'fellrec', similarityOn: 'none' }),
  /** Cosines as shares of the round's largest between two clients. */
  'fellrec-relative': ({ similarity }) => ({
    strategy: 'fellrec',
    similarity: { ...similarity, form: 'relative' },
  }),
  'fellrec-relative-smoothed': ({ similarity }) => ({
    strategy: 'fellrec',
    similarity: { ...similarity, form: 'relative', smoothing: similarity.smoothing || 0.5 },
  }),
  'fellrec-relative-no-heating': ({ similarity }) => ({
    strategy: 'fellrec',
    similarity: { ...similarity, form: 'relative' },
    heating: false,
  }),
  /** Clients count by their training samples too, as under FedAvg. */
  'fellrec-samples': () => ({ strategy: 'fellrec', weighting: 'samples' }),
  /** As HeurFedAMP sharpens them. */
  'fellrec-attention': ({ similarity }) => ({
    strategy: 'fellrec',
    similarity: { ...similarity, form: 'attention' },
  }),
  /** Among FedAvg, the relative form and its own, whatever the configuration's candidates are. */
  chosen: ({ similarity }) => ({
    strategy: 'chosen',
    similarity: { ...similarity, form: 'relative' },
    candidates: ['fedavg', 'fellrec', 'local'],
  }),
  fedamp: () => ({ strategy: 'fedamp' }),
  fedfomo: () => ({ strategy: 'fedfomo' }),
  clustered: () => ({ strategy: 'clustered' }),
  /** FedAvg inside the configuration's groups. */
  groups: () => ({ strategy: 'groups' }),
  'fellrec-no-heating': () => ({ strategy: 'fellrec', heating: false }),
  /** As the paper has it: cosines of the parameters, and not of what a round changed. */
  'fellrec-parameters': () => ({ strategy: 'fellrec', similarityOn: 'parameters' }),
  /** The exponent of the reference implementation. */
  'fellrec-reference': ({ heating }) => ({
    strategy: 'fellrec',
    heating: { ...(heating || defaultHeating()), exponent: 't+1/beta' },
  }),
} as const satisfies Record<string, (configured: Federation) => Partial<Federation>>;

/** What needs no rounds: the start, floors, and recommenders that see everybody's histories. */
const rankings = ['zero-shot', 'random', 'popularity', 'cooccurrence', 'sasrec'] as const;

/** How a method may rank, on top of the configuration's own settings. */
const rankedBy = {
  grounded: () => ({ mode: 'grounded' }),
  /** By the nearest of all beams. */
  'grounded-all': () => ({ mode: 'grounded', from: 'all' }),
  constrained: () => ({ mode: 'constrained' }),
  rerank: () => ({ mode: 'rerank' }),
  'rerank-per-token': () => ({ mode: 'rerank', perToken: true }),
  'rerank-cooccurrence': ({ shortlist }) => ({
    mode: 'rerank',
    shortlist: { ...shortlist, of: 'cooccurrence' },
  }),
  'rerank-popularity': ({ shortlist }) => ({ mode: 'rerank', shortlist: { ...shortlist, of: 'popularity' } }),
  'rerank-sentences': ({ shortlist }) => ({ mode: 'rerank', shortlist: { ...shortlist, of: 'sentences' } }),
  'rerank-grounded': ({ shortlist }) => ({ mode: 'rerank', shortlist: { ...shortlist, of: 'grounded' } }),
} as const satisfies Record<string, (configured: Ranks) => Partial<Ranks>>;

type RankedBy = keyof typeof rankedBy;
type Injected = (typeof injectable)[number];

export type TrainedMethod = keyof typeof trained;
export type Ranking = (typeof rankings)[number];
/** What another method's parameters recommend when they rank otherwise: `fedavg+constrained`, `fedavg+rerank+popularity`. */
export type Ranked = `${TrainedMethod | 'zero-shot'}+${string}`;
export type Method = TrainedMethod | Ranking | Ranked;

export const methodNames: readonly Method[] = [...(Object.keys(trained) as TrainedMethod[]), ...rankings];

export function isRanking(method: Method): method is Ranking {
  return rankings.includes(method as Ranking);
}

export function isRanked(method: Method): method is Ranked {
  return method.includes('+');
}

/** The method that differs from one in injecting nothing; undefined if it injects nothing itself. */
export function withoutInjection(method: string): string | undefined {
  const parts = method.split('+');
  const others = parts.filter((one) => !isInjected(one));
  return others.length < parts.length ? others.join('+') : undefined;
}

/** A method without what it ranks with. */
export function unranked(method: Method): TrainedMethod | Ranking {
  return method.split('+')[0] as TrainedMethod | Ranking;
}

/** @throws ConfigError on names that are not known, given twice, or none. */
export function parseMethods(text: string): Method[] {
  const names = text.split(',').map((name) => name.trim());
  const unknown = names.filter((name) => !isKnown(name));
  if (unknown.length > 0)
    throw new ConfigError(
      `compare: unknown methods: ${unknown.map((name) => `"${name}"`).join(', ')}; known are ${methodNames.join(', ')}, and those that have an adapter with another ranking: ${[...Object.keys(rankedBy), ...injectable].map((one) => `fedavg+${one}`).join(', ')}`,
    );
  const twice = names.filter((name, i) => names.indexOf(name) !== i);
  if (twice.length > 0) throw new ConfigError(`compare: --methods names ${twice.join(', ')} twice`);
  return names as Method[];
}

function isKnown(name: string): boolean {
  const [method, ...options] = name.split('+');
  const modes = options.filter(isRankedBy);
  const injections = options.filter(isInjected);
  return (
    methodNames.includes(method as Method) &&
    (options.length === 0 || !isRanking(method as Method) || method === 'zero-shot') &&
    modes.length <= 1 &&
    injections.length <= 1 &&
    modes.length + injections.length === options.length
  );
}

const isRankedBy = (option: string): option is RankedBy => Object.hasOwn(rankedBy, option);
const isInjected = (option: string): option is Injected => injectable.includes(option as Injected);

function rankingOf(method: Method, configured: Ranks): Ranks {
  const [, ...options] = method.split('+');
  const way = options.find(isRankedBy);
  const inject = options.find(isInjected);
  return { ...configured, ...(way && rankedBy[way](configured)), ...(inject && { inject }) };
}

/** Of a method with a seed, within `runs/<name>`. */
export function folderOf(method: Method, seed: number): string {
  return `${method}-${seed}`;
}

/**
 * The configuration of a method with a seed, which has a folder of its own within `runs/<name>`. Rankings know no
 * clients: theirs is one. @throws ConfigError if the method cannot be with the other settings.
 */
export function methodConfig(config: Config, method: Method, seed: number): Config {
  const { federation, runs, name } = config;
  const plain = unranked(method);
  const settings = isRanking(plain) ? trained.centralized() : trained[plain](federation);
  const { k } = config.split;
  const made = {
    ...config,
    // Of a ranking's one client nothing is said by name; it ranks the same with any cut.
    ...(isRanking(plain) &&
      typeof k === 'object' && { split: { ...config.split, k: Math.min(...Object.values(k)) } }),
    runs: join(runs, name),
    name: folderOf(method, seed),
    seed,
    ranking: rankingOf(method, config.ranking),
    federation: { ...federation, ...settings },
  };
  return completed(made, `compare: ${method}`);
}

function defaultHeating() {
  return configSchema.shape.federation.parse({}).heating as Exclude<Federation['heating'], false>;
}
