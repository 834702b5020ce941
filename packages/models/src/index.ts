export { ignoredLabel, type Sequence, type Tokens } from './batch.ts';
export { type Checkpoint, type OpenOptions, openCheckpoint } from './checkpoint/checkpoint.ts';
export type { LlamaConfig } from './checkpoint/config.ts';
export { readSafetensors, writeSafetensors } from './checkpoint/safetensors.ts';
export { fuseAdapter, unfuseAdapter } from './fuse.ts';
export type { GenerationOptions, Hypothesis } from './generation.ts';
export {
  type Adapter,
  type LanguageModel,
  languageModel,
  type StepOptions,
  type StepResult,
  type TokenCounts,
} from './language-model.ts';
export type { LayerContext, LayeredModel } from './layered-model.ts';
export { llama, type QuantizedBase } from './llama.ts';
export { initialAdapter, type LoraConfig, type Projection, projections } from './lora.ts';
export { readAdapter, writeAdapter } from './peft.ts';
export { type Base, bases, type QuantizeOptions, quantizeBase } from './quantize.ts';
export { loadTokenizer, type Tokenizer } from './tokenizer.ts';
export { type VerifiedGroup, verifyLlama } from './verify.ts';
