export type { Client, Evaluation, RoundContext, TrainingProgress, Update } from './client.ts';
export type { BestRound, FederationEvent, FederationState, RoundRecord } from './events.ts';
export { type FederateOptions, federate } from './federation.ts';
export { applyMixing } from './mixing.ts';
export {
  createRun,
  openRun,
  type ParametersFormat,
  type RunContents,
  type RunStore,
} from './store/run-store.ts';
export { centralized, fedavg, local, uniform } from './strategies/averages.ts';
export { type FellrecOptions, fellrec, type Heating } from './strategies/fellrec.ts';
export type { ClientUpdate, Mixing, Strategy } from './strategies/strategy.ts';
