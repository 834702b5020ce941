// Methods compared on one configuration: what is not there yet is computed, and nothing twice.
import type { Partition } from '@fellrec/recsys';
import { type Config, ConfigError } from '../config.ts';
import { type Experiment, openExperiment } from '../experiment.ts';
import { type Progress, silent } from '../progress.ts';
import { changesOf, readRun, runDirectory } from '../stored-run.ts';
import { train } from '../train.ts';
import { compared, type Trial } from './compared.ts';
import {
  isRanked,
  isRanking,
  type Method,
  methodConfig,
  type Ranked,
  type Ranking,
  type TrainedMethod,
  unranked,
} from './methods.ts';
import { type RankedMethod, storeRanked, storeRanking } from './rankings.ts';
import type { Comparison } from './result.ts';
import { hasBegun, isStored, readTrial } from './trials.ts';

export interface CompareOptions {
  readonly methods: readonly Method[];
  readonly seeds: readonly number[];
  /** One of the methods. */
  readonly baseline: Method;
  readonly progress?: Progress;
}

/**
 * Trains every method with every seed in a folder of its own within `runs/<name>`, where that is not done, or goes on
 * with it. A method that fails is shown as incomplete, and the others go on. @throws ConfigError on a choice that cannot be.
 */
export async function compare(config: Config, o: CompareOptions): Promise<Comparison> {
  assertOptions(config, o);
  const { methods, seeds, progress = silent } = o;
  let opened: Experiment | undefined;
  const trials: Trial[] = [];
  try {
    for (const seed of seeds) {
      let parted = await storedPartition(config, o.methods, seed);
      for (const method of methods) {
        const own = methodConfig(config, method, seed);
        const directory = runDirectory(own);
        const plain = unranked(method);
        const base = await baseConfig(config, method, seed);
        const trained = runDirectory(base);
        const isBaseStored = isRanking(plain) || (await isStored(trained, plain, base));
        if (isBaseStored && (await isStored(directory, method, own))) {
          trials.push(await readTrial(directory, method));
          continue;
        }
        progress.line(`== ${method}, seed ${seed}`);
        // All share what is opened first, which needs no partition.
        opened ??= await openExperiment(methodConfig(config, 'random', seed), progress.report);
        const shared = opened;
        const failure = await attempt(`${method}, seed ${seed}`, progress, async () => {
          const experiment = shared.sharing(own, isParted(plain) ? parted : undefined);
          if (isParted(plain)) parted = experiment.partition;
          if (isRanking(plain))
            return storeRanking(method as Ranking | Ranked, directory, experiment, progress);
          if (!isBaseStored) {
            const training = isRanked(method) ? shared.sharing(base, experiment.partition) : experiment;
            await train(base, { resume: hasBegun(trained), experiment: training, progress });
          }
          // The same run trained again ranks the same.
          if (!isRanked(method) || (await isStored(directory, method, own))) return;
          const alike = await scoredAlike(config, method, o, seed);
          if (alike.length > 1) progress.line(`scored at once: ${alike.map((one) => one.method).join(', ')}`);
          await storeRanked(alike, trained, experiment, progress).catch(async (error) => {
            if (alike.length === 1) throw error;
            // What one of them cannot have must not cost the others theirs.
            progress.line(`scored at once, failed: ${(error as Error).message}; ${method} goes on alone`);
            await storeRanked([{ method, config: own }], trained, experiment, progress);
          });
        });
        if (failure === undefined) trials.push(await readTrial(directory, method));
        else {
          const { data } = shared;
          trials.push({ method, seed, directory, data, users: new Map(), missing: failure });
        }
      }
    }
  } finally {
    await opened?.dispose();
  }
  return compared(trials, o.baseline);
}

/** Of the run that is trained for a method. One that is there may itself rank otherwise than is asked now. */
async function baseConfig(config: Config, method: Method, seed: number): Promise<Config> {
  const base = methodConfig(config, unranked(method), seed);
  const directory = runDirectory(base);
  if (!isRanked(method) || !hasBegun(directory)) return base;
  const { ranking } = (await readRun(directory)).config;
  return { ...base, ranking };
}

/** A method, and those not there yet that differ from it in what they inject only. */
async function scoredAlike(
  config: Config,
  method: Ranked,
  { methods }: CompareOptions,
  seed: number,
): Promise<RankedMethod[]> {
  const scores = ({ ranking: { inject: _, ...ranking } }: Config) => JSON.stringify(ranking);
  const wanted = scores(methodConfig(config, method, seed));
  const alike: RankedMethod[] = [];
  for (const other of methods) {
    if (!isRanked(other) || unranked(other) !== unranked(method)) continue;
    const own = methodConfig(config, other, seed);
    if (scores(own) === wanted && !(await isStored(runDirectory(own), other, own)))
      alike.push({ method: other, config: own });
  }
  return alike;
}

/** Why it failed; undefined if it did not. */
async function attempt(
  what: string,
  progress: Progress,
  work: () => Promise<void>,
): Promise<string | undefined> {
  try {
    await work();
    return undefined;
  } catch (error) {
    const { message } = error as Error;
    progress.line(`${what}, failed: ${message}`);
    return message;
  }
}

/** Whether its clients are those of the partition. */
function isParted(method: TrainedMethod | Ranking): method is Exclude<TrainedMethod, 'centralized'> {
  return !isRanking(method) && method !== 'centralized';
}

/** That of a run of this seed which has begun. */
async function storedPartition(
  config: Config,
  methods: readonly Method[],
  seed: number,
): Promise<Partition | undefined> {
  for (const method of new Set(methods.map(unranked).filter(isParted))) {
    const own = methodConfig(config, method, seed);
    const directory = runDirectory(own);
    if (!hasBegun(directory)) continue;
    const { stored, partition } = await readRun(directory);
    const { dataset, modelHash } = stored;
    const changes = changesOf(stored, { ...own, dataset, modelHash });
    if (!changes.some((key) => /^(partition|data|groups)/.test(key))) return partition;
  }
  return undefined;
}

function assertOptions(config: Config, { methods, seeds, baseline }: CompareOptions): void {
  const twice = seeds.filter((seed, i) => seeds.indexOf(seed) !== i);
  if (twice.length > 0)
    throw new ConfigError(
      `compare: --seeds names ${[...new Set(twice)].join(', ')} twice; a seed gives one run`,
    );
  if (!methods.includes(baseline))
    throw new ConfigError(
      `compare: the baseline "${baseline}" is none of the methods: ${methods.join(', ')}`,
    );
  // Before anything is trained.
  for (const method of methods) methodConfig(config, method, seeds[0]!);
}
