// Configurations: read from YAML or JSON, overridden by settings, checked as a whole.
import { readFile } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { encoderProjections, projections } from '@fellrec/models';
import { parse as parseYaml } from 'yaml';
import { z } from 'zod';
import { configSchema, type Parsed } from './config-schema.ts';

type TargetModules = NonNullable<Parsed['lora']['targetModules']>;
export type Config = Parsed & { readonly lora: { readonly targetModules: TargetModules } };

const defaultTargets: Record<Config['recommender'], TargetModules> = {
  bigrec: ['q_proj', 'v_proj'],
  recformer: ['query', 'value', 'query_global', 'value_global'],
};

/** A configuration that is wrong: the command line answers with a usage error. */
export class ConfigError extends Error {}

const unreadable: Readonly<Record<string, string>> = { ENOENT: 'no such file', EISDIR: 'it is a folder' };

/** Stands for data that is with the clients, whose groups are what they say of themselves. */
export const remoteData = '(with the clients)';

/**
 * Reads YAML or JSON, applies `settings` (`federation.rounds=5`) and checks. Relative paths of data and
 * model start from the file's folder. With `remote`, data is the clients' affair. @throws ConfigError naming every key that is wrong.
 */
export async function loadConfig(
  file: string,
  settings: readonly string[] = [],
  { remote = false }: { readonly remote?: boolean } = {},
): Promise<Config> {
  const text = await readFile(file, 'utf8').catch((cause) => {
    throw new ConfigError(
      `config: cannot read ${file}: ${unreadable[cause.code as string] ?? cause.message}`,
    );
  });
  let raw: unknown;
  try {
    raw = parseYaml(text);
  } catch (cause) {
    throw new ConfigError(`config: ${file} is neither YAML nor JSON: ${(cause as Error).message}`);
  }
  if (typeof raw !== 'object' || raw === null) throw new ConfigError(`config: ${file} holds no settings`);
  const settable = raw as Record<string, unknown>;
  delete settable.$schema;
  for (const setting of settings) applySetting(settable, setting);
  if (remote) {
    settable.data = { path: remoteData };
    delete settable.groups;
  }
  const source = settings.length === 0 ? file : `${file} with --set ${settings.join(' ')}`;
  const config = parseConfig(settable, source);
  if (remote) assertForRemote(config, source);
  return resolvePaths(config, dirname(file), settings);
}

/** @throws ConfigError on what remote clients cannot do */
export function assertForRemote({ federation, training, ranking }: Config, file: string): void {
  const problems = [
    federation.strategy === 'ditto' &&
      'federation.strategy: under ditto clients keep a model of their own, which remote ones cannot yet; take another one, or clients in this process',
    federation.strategy === 'centralized' &&
      'federation.strategy: centralized has one client with all data, which remote ones do not share; take fedavg, or clients in this process',
    training.targetsPerUser > 1 &&
      'training.targetsPerUser: remote clients count their samples before they know the settings, one target a user; leave it out',
    usesFedamp(federation) &&
      federation.fedamp.alpha > federation.fedamp.sigma &&
      "federation.fedamp: with alpha above sigma a client's mixture can be another's adapter as it is, which remote ones must not see; take alpha at most sigma",
    ranking.sentences !== undefined &&
      'ranking.sentences: remote clients have no such folder; take co-occurrence or popularity',
  ].filter((problem) => typeof problem === 'string');
  if (problems.length > 0) throw new ConfigError(`config: ${file}:\n${problems.join('\n')}`);
}

export function parseConfig(raw: unknown, source: string): Config {
  const parsed = configSchema.safeParse(raw, { error: withKnownKeys });
  if (!parsed.success) {
    const problems = [z.prettifyError(parsed.error), ...missingData(raw)];
    throw new ConfigError(`config: ${source}:\n${problems.join('\n')}`);
  }
  return completed(parsed.data, source);
}

/** Names, beside a key that there is not, those that there are. */
const withKnownKeys: z.core.$ZodErrorMap = (issue) =>
  issue.code === 'unrecognized_keys' && issue.inst instanceof z.ZodObject
    ? `Unrecognized key: ${issue.keys.map((key) => `"${key}"`).join(', ')}; there are ${Object.keys(issue.inst.shape).join(', ')}`
    : undefined;

/** Fills in what depends on the recommender. @throws on what the recommender does not have. */
export function completed(config: Parsed, source: string): Config {
  const { recommender, lora, recformer, model } = config;
  const known: readonly string[] = recommender === 'bigrec' ? projections : encoderProjections;
  const targetModules = lora.targetModules ?? defaultTargets[recommender];
  const foreign = targetModules.filter((name) => !known.includes(name));
  const problems = [
    ...dataProblems(config),
    foreign.length > 0 &&
      `lora.targetModules: ${foreign.join(', ')} are none of ${recommender}'s; it has ${known.join(', ')}`,
    recommender === 'bigrec' &&
      recformer.tune === 'full' &&
      'recformer.tune: full fine-tuning is there for recommender: recformer only',
    (config.ranking.inject === 'sentences' || config.ranking.shortlist.of === 'sentences') &&
      config.ranking.sentences === undefined &&
      'ranking.sentences: the folder of a sentence encoder is missing',
    recommender === 'recformer' &&
      config.ranking.mode !== 'grounded' &&
      `ranking.mode: ${config.ranking.mode} is there for recommender: bigrec only`,
    config.federation.strategy === 'centralized' &&
      typeof config.split.k === 'object' &&
      'split.k: centralized has one client, which none of these names is; give one number',
    config.split.k !== undefined &&
      model.base !== 'float32' &&
      `model.base: ${model.base} cannot be cut; leave split.k out, or take float32`,
    config.split.k !== undefined &&
      config.split.adapters === 'all-layers' &&
      recommender === 'recformer' &&
      (recformer.itemTable.every > 1 || recformer.itemTable.stage1Rounds !== undefined) &&
      'recformer.itemTable: with split.adapters all-layers the item table is computed in every round; leave it out',
    ['fedprox', 'fedamp'].includes(config.federation.strategy) &&
      config.split.k !== undefined &&
      config.split.adapters === 'all-layers' &&
      `federation.strategy: ${config.federation.strategy} holds only what clients train; with split.adapters all-layers take another one`,
    config.federation.strategy === 'ditto' &&
      config.split.k !== undefined &&
      config.split.adapters === 'all-layers' &&
      'federation.strategy: ditto needs two models in each client; with split.adapters all-layers take another one',
    recommender === 'recformer' &&
      model.base !== 'float32' &&
      `model.base: ${model.base} is there for recommender: bigrec only`,
  ].filter((problem) => typeof problem === 'string');
  if (problems.length > 0) throw new ConfigError(`config: ${source}:\n${problems.join('\n')}`);
  return { ...config, lora: { ...lora, targetModules } };
}

/** A run's configuration with other settings of how it ranks. @throws ConfigError on others: they need another run */
export function withRanking(settings: readonly string[]): (config: Config) => Config {
  const foreign = settings.filter((one) => !/^(ranking\.|generation\.|data\.testUsers=)/.test(one));
  if (foreign.length > 0)
    throw new ConfigError(
      `--set ${foreign.join(' ')}: of a run that was trained, ranking.*, generation.* and data.testUsers can be set; train another run for the rest`,
    );
  return (config) => {
    const raw = structuredClone(config) as Record<string, unknown>;
    for (const setting of settings) applySetting(raw, setting);
    return parseConfig(raw, 'the run with --set');
  };
}

/** Whether clients are averaged inside their groups. */
export function usesGroups({ federation }: Pick<Config, 'federation'>): boolean {
  const { strategy, candidates } = federation;
  return strategy === 'groups' || (strategy === 'chosen' && candidates.includes('groups'));
}

export function usesFedamp({ strategy, candidates }: Parsed['federation']): boolean {
  return strategy === 'fedamp' || (strategy === 'chosen' && candidates.includes('fedamp'));
}

/** The schema lets each of the two be absent. */
function missingData(raw: unknown): string[] {
  const { data, groups } = (raw ?? {}) as { data?: { path?: unknown }; groups?: unknown };
  return groups === undefined && data?.path === undefined
    ? ['data.path: the data folder is missing; give it, or groups']
    : [];
}

function dataProblems(config: Parsed): string[] {
  const { data, groups } = config;
  const names = (groups ?? []).map(({ name }) => name);
  const twice = names.filter((name, i) => names.indexOf(name) !== i);
  return [
    ...missingData(config),
    !groups &&
      data.path !== remoteData &&
      usesGroups(config) &&
      'federation: averages inside groups need groups; give them, or take another strategy',
    groups && data.path !== undefined && 'data.path: the groups have data folders of their own; leave it out',
    twice.length > 0 &&
      `groups: ${[...new Set(twice)].join(', ')} is there twice; each needs a name of its own`,
  ].filter((problem) => typeof problem === 'string');
}

/** Sets one key of a configuration that is not checked yet, such as `federation.rounds=5`. */
export function applySetting(raw: Record<string, unknown>, setting: string): void {
  const match = /^([\w.]+)=(.*)$/s.exec(setting);
  if (!match) throw new ConfigError(`config: --set ${setting}: write key=value, such as federation.rounds=5`);
  const keys = match[1]!.split('.');
  let target = raw;
  for (const key of keys.slice(0, -1)) {
    if (['__proto__', 'constructor', 'prototype'].includes(key))
      throw new ConfigError(`config: no key "${key}"`);
    if (typeof target[key] !== 'object' || target[key] === null) target[key] = {};
    target = target[key] as Record<string, unknown>;
  }
  try {
    target[keys.at(-1)!] = parseYaml(match[2]!);
  } catch (cause) {
    throw new ConfigError(`config: --set ${setting}: the value is no YAML: ${(cause as Error).message}`);
  }
}

/** A path set on the command line starts from the working directory, one in the file from the file's folder. */
function resolvePaths(config: Config, folder: string, settings: readonly string[]): Config {
  // It, or what it is in.
  const wasSet = (key: string) =>
    settings.some((setting) => `${key}.`.startsWith(`${setting.split('=', 1)[0]}.`));
  const from = (key: string, path: string) => resolve(wasSet(key) ? '.' : folder, path);
  const { data, groups, ranking } = config;
  return {
    ...config,
    data: { ...data, ...(data.path !== undefined && { path: from('data.path', data.path) }) },
    ...(groups && { groups: groups.map((one, i) => ({ ...one, path: from(`groups.${i}.path`, one.path) })) }),
    model: { ...config.model, path: from('model.path', config.model.path) },
    ranking: {
      ...ranking,
      ...(ranking.sentences !== undefined && { sentences: from('ranking.sentences', ranking.sentences) }),
    },
  };
}
