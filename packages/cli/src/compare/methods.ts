// The methods that a comparison knows by name: strategies, FELLRec without some of its parts, and rankings that learn
// nothing from a federation.
import { join } from 'node:path';
import { type Config, ConfigError, completed, configSchema } from '../config.ts';

type Federation = Config['federation'];

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

export type TrainedMethod = keyof typeof trained;
export type Ranking = (typeof rankings)[number];
export type Method = TrainedMethod | Ranking;

export const methodNames: readonly Method[] = [...(Object.keys(trained) as TrainedMethod[]), ...rankings];

export function isRanking(method: Method): method is Ranking {
  return rankings.includes(method as Ranking);
}

/** @throws ConfigError on names that are not known, given twice, or none. */
export function parseMethods(text: string): Method[] {
  const names = text.split(',').map((name) => name.trim());
  const unknown = names.filter((name) => !methodNames.includes(name as Method));
  if (unknown.length > 0)
    throw new ConfigError(
      `compare: unknown methods: ${unknown.map((name) => `"${name}"`).join(', ')}; known are ${methodNames.join(', ')}`,
    );
  const twice = names.filter((name, i) => names.indexOf(name) !== i);
  if (twice.length > 0) throw new ConfigError(`compare: --methods names ${twice.join(', ')} twice`);
  return names as Method[];
}

/**
 * The configuration of a method with a seed, whose folder is `<method>-<seed>` within `runs/<name>`. Rankings know no
 * clients: theirs is one. @throws ConfigError if the method cannot be with the other settings.
 */
export function methodConfig(config: Config, method: Method, seed: number): Config {
  const { federation, runs, name } = config;
  const settings = isRanking(method) ? trained.centralized() : trained[method](federation);
  const own = {
    ...config,
    runs: join(runs, name),
    name: `${method}-${seed}`,
    seed,
    federation: { ...federation, ...settings },
  };
  return completed(own, `compare: ${method}`);
}

function defaultHeating() {
  return configSchema.shape.federation.parse({}).heating as Exclude<Federation['heating'], false>;
}
