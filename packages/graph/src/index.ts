export { type Random, random } from './random.ts';
export {
  type BoolTensor,
  elementCount,
  type Float32Tensor,
  float32,
  type Int64Tensor,
  int64,
  type NamedTensors,
  type StoredTensor,
  type Tensor,
  zeros,
} from './tensor.ts';
