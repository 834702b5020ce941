export type { Client, Evaluation, Proximal, RoundContext, TrainingProgress, Update } from './client.ts';
export { type CosineMeans, effectiveClients } from './diagnostics.ts';
export type { BestRound, FederationEvent, FederationState, Phase, RoundRecord } from './events.ts';
export { type FederateOptions, federate, type SpillOptions } from './federation.ts';
export type { ReadParameters, SimilarityOn } from './parameters/round-parameters.ts';
export type { Participation } from './participation.ts';
export { type Block, type Products, plainProducts, type Rows } from './products/products.ts';
export type { SimilarityForm } from './similarity-forms.ts';
export { placeWhole, writeWhole } from './store/files.ts';
export {
  assertCreatable,
  createRun,
  openRun,
  type ParametersFormat,
  type RunContents,
  type RunStore,
} from './store/run-store.ts';
export { centralized, fedavg, fedprox, local, uniform } from './strategies/averages.ts';
export { type Choice, chosen } from './strategies/chosen.ts';
export { type ClusteredOptions, clustered } from './strategies/clustered.ts';
export {
  ditto,
  dittoClient,
  dittoFormat,
  dittoStart,
  personalTensors,
} from './strategies/ditto.ts';
export { type FedampOptions, fedamp } from './strategies/fedamp.ts';
export { fedfomo } from './strategies/fedfomo.ts';
export { type FellrecOptions, fellrec, type Heating } from './strategies/fellrec.ts';
export { groups } from './strategies/groups.ts';
export type {
  Candidate,
  ClientReport,
  Comparison,
  Mixing,
  PreviousRound,
  RoundStatistics,
  Strategy,
} from './strategies/strategy.ts';
