export { type Dim, plus, type Shape, times } from './dim.ts';
export { gradients, partialGradients, type Seed } from './gradients.ts';
export * from './operations.ts';
export { type AdamWOptions, type AdamWState, adamW, globalNorm, type Optimizer } from './optimizers/adamw.ts';
export { linearSchedule } from './optimizers/schedule.ts';
export { print } from './print.ts';
export { type RowProducts, rowProducts } from './products.ts';
export { type Random, random } from './random.ts';
export { type NodeRuntimeOptions, nodeRuntime } from './runtime/node.ts';
export type { CompileOptions, Feeds, Program, RunOptions, Runtime } from './runtime/runtime.ts';
export { type Outputs, type Segments, splitForwardBackward } from './segments.ts';
export {
  type BoolTensor,
  elementCount,
  type Float32Tensor,
  float32,
  freeTensor,
  type Int64Tensor,
  int64,
  type NamedTensors,
  type StoredTensor,
  type Tensor,
  zeros,
} from './tensor.ts';
export type { QuantizedMatrix, Value, ValueType } from './value.ts';
