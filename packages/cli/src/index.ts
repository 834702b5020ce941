export { type CompareOptions, compare } from './compare/compare.ts';
export { comparedMetrics } from './compare/compared.ts';
export { type Method, methodNames } from './compare/methods.ts';
export type { ComparedMethod, Comparison } from './compare/result.ts';
export {
  type Config,
  ConfigError,
  loadConfig,
  parseConfig,
  withRanking,
} from './config.ts';
export { configJsonSchema, configSchema } from './config-schema.ts';
export { type ClientData, type Experiment, openExperiment } from './experiment.ts';
export { progressOn } from './progress.ts';
export { type RecommendedTitle, recommend } from './recommend.ts';
export { runDirectory } from './stored-run.ts';
export { clientTable, comparisonTable } from './table.ts';
export { type ClientResult, evaluate, type RunResult, train } from './train.ts';
