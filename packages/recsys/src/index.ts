export { type Baseline, evaluateBaseline } from './baselines/baseline.ts';
export { fitCooccurrence } from './baselines/cooccurrence.ts';
export { fitPopularity } from './baselines/popularity.ts';
export { fitSasrec, type SasrecOptions, type SasrecProgress } from './baselines/sasrec.ts';
export { sentenceNeighbours } from './baselines/sentences.ts';
export { type BigrecOptions, bigrec } from './bigrec/recommender.ts';
export { calibrationSequences, trainingSequence } from './bigrec/text.ts';
export { catalogueTitles, type Titles } from './bigrec/titles.ts';
export { bootstrap, type Interval, type PairedDifference, pairedBootstrap, quantile } from './bootstrap.ts';
export { type Catalogue, catalogue, type Item } from './catalogue.ts';
export { exportRecBole } from './data/export.ts';
export { datasetHash, isDataset, readDataset, refuseExisting, writeUsers } from './data/folder.ts';
export { type ImportOptions, importDataset } from './data/import.ts';
export { type Dataset, type DatasetStats, datasetStats, type SplitName, type User } from './dataset.ts';
export { type Floor, floorMetrics, floors, popularity } from './floors.ts';
export { chooseGammas } from './gamma.ts';
export { evaluatedEach } from './lists.ts';
export { cutoffs, type Metrics, meanMetrics, metricsOf, type Spread, spread } from './metrics.ts';
export {
  joinPartitions,
  type Likeness,
  type Partition,
  type PartitionMethod,
  type PartitionOptions,
  partition,
} from './partition/partition.ts';
export { type Domain, parseAnswer, renderAnswer, renderPrompt, videoGames } from './prompt.ts';
export { type RankingOptions, rank } from './ranking.ts';
export { type RecformerOptions, recformer } from './recformer/recommender.ts';
export { type ItemTableSchedule, tableRound } from './recformer/schedule.ts';
export { itemText } from './recformer/text.ts';
export type {
  Evaluated,
  EvaluateOptions,
  Injection,
  RankingMode,
  Recommendation,
  Recommended,
  Recommender,
  TrainOptions,
  TrainResult,
} from './recommender.ts';
export {
  historyLength,
  type Sample,
  subset,
  testSamples,
  trainingSamples,
  validationSamples,
} from './samples.ts';
export { type Elsewhere, splitRecommender } from './split-recommender.ts';
export { cachedVectors } from './title-vectors.ts';
