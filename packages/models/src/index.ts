export { ignoredLabel, type Sequence, type Tokens } from './batch.ts';
export { type Checkpoint, type OpenOptions, openCheckpoint } from './checkpoint/checkpoint.ts';
export type { LlamaConfig } from './checkpoint/config.ts';
export { assertWhole, describePart, holdsPart, type ModelPart } from './checkpoint/part.ts';
export { readSafetensors, writeSafetensors } from './checkpoint/safetensors.ts';
export { cutCheckpoint } from './cut.ts';
export type { BatchOptions, TreeOptions } from './decoding.ts';
export { fuseAdapter, unfuseAdapter } from './fuse.ts';
export type { GenerationOptions, Hypothesis } from './generation.ts';
export {
  type Adapter,
  type LanguageModel,
  languageModel,
  type StepOptions,
  type StepResult,
  type TokenCounts,
  type WholeLanguageModel,
} from './language-model.ts';
export type { LayerContext, LayeredModel } from './layered-model.ts';
export type { Likelihood, LikelihoodOptions } from './likelihood.ts';
export { llama, type QuantizedBase } from './llama.ts';
export {
  addsNothing,
  encoderProjections,
  freshAdapter,
  initialAdapter,
  isMiddle,
  type LoraConfig,
  layerOf,
  type Projection,
  projections,
} from './lora.ts';
export { readAdapter, writeAdapter } from './peft.ts';
export { type Base, bases, type QuantizeOptions, quantizeBase } from './quantize.ts';
export { assertKnown, attentionForm, type ItemSequence } from './recformer/batch.ts';
export {
  holdsEncoder,
  openRecformer,
  type RecformerCheckpoint,
  readParameters,
  writeRecformer,
} from './recformer/checkpoint.ts';
export {
  adaptedEncoderProjections,
  type RecformerConfig,
} from './recformer/config.ts';
export type { LabelledSequence } from './recformer/contrast.ts';
export {
  type EncoderModel,
  type EncoderParameters,
  encoderModel,
  unitRows,
  type WholeEncoderModel,
} from './recformer/model.ts';
export { writeRandomRecformer } from './recformer/random-start.ts';
export { sentenceVectors } from './recformer/sentences.ts';
export { type Fitted, itemSequence, type TokenisedItem } from './recformer/sequence.ts';
export type { CutModel, EmbeddedTokens, LayerRange, Trained } from './split/cut-model.ts';
export { splitEncoder } from './split/encoder.ts';
export { splitLanguageModel } from './split/language-model.ts';
export {
  type CutLayers,
  type CutLayersOptions,
  cutLayers,
  type KeptPass,
  type PassOptions,
} from './split/layers.ts';
export { llamaCut } from './split/llama.ts';
export { type LocalMiddle, localMiddle } from './split/local-middle.ts';
export type {
  DecodeRequest,
  ForwardOptions,
  MiddleDropout,
  MiddleLayers,
  TokenLayout,
} from './split/middle.ts';
export { recformerCut } from './split/recformer.ts';
export { type TokenTree, type TreeBranch, type TreeNode, tokenTree } from './token-tree.ts';
export { loadTokenizer, type Tokenizer } from './tokenizer.ts';
export type { VerifiedGroup } from './verified.ts';
export { verifyFixture } from './verify-fixture.ts';
