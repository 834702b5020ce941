export type { Claim } from './attacks/attack.ts';

export { readCapture } from './capture.ts';
export {
  composed,
  type GaussianMechanism,
  gaussianDelta,
  gaussianEpsilon,
  repeated,
} from './defences/accountant.ts';
export {
  type Defence,
  defenceForms,
  defenceName,
  defendedMiddle,
  parseDefence,
  releaseOf,
  typicalNorms,
} from './defences/defence.ts';
export { gradientAttacks } from './gradients/attacks.ts';
export { type AuditedModel, auditedModel, depths } from './layerwise.ts';
export { claimedPlaces } from './metrics.ts';
export type { Release, StudyOptions } from './options.ts';
export { cutCosts, recommendation, smallestCut } from './recommendation.ts';
export * from './result.ts';
export {
  type AuditedSequence,
  itemSequences,
  type PromptOptions,
  promptSequences,
  type SequenceMaker,
} from './sequences.ts';
export { attackStates, type StudyResult } from './study.ts';
