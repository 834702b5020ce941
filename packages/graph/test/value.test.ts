// Graphs as data: common subexpressions, order, text.
import { expect, test } from 'vitest';
import { gradients } from '../src/gradients.ts';
import {
  add,
  constant,
  crossEntropy,
  input,
  linear,
  mul,
  rmsNorm,
  scalar,
  sigmoid,
  silu,
  slice,
  total,
  weight,
} from '../src/operations.ts';
import { print } from '../src/print.ts';
import { float32, int64 } from '../src/tensor.ts';
import { topological } from '../src/value.ts';

const x = input('x', 'float32', ['batch', 3]);
const kinds = (...outputs: Parameters<typeof topological>[0]) =>
  topological(outputs).order.map(({ operation }) => operation.kind);

test('equal operations on equal inputs are one value', () => {
  const again = () => sigmoid(input('x', 'float32', ['batch', 3]));
  const [a, b] = [again(), again()];
  const { order, canonical } = topological([mul(a, b), again()]);
  expect(order.map(({ operation }) => operation.kind)).toEqual(['input', 'sigmoid', 'mul']);
  expect(canonical.get(a)).toBe(canonical.get(b));
  expect(order[2]!.inputs).toEqual([order[1], order[1]]);
});

test('different settings, inputs or order of inputs are different values', () => {
  expect(kinds(slice(x, 1, 0, 2), slice(x, 1, 1, 2))).toEqual(['input', 'slice', 'slice']);
  expect(kinds(add(x, sigmoid(x)), add(sigmoid(x), x))).toEqual(['input', 'sigmoid', 'add', 'add']);
  expect(kinds(x, input('x', 'float32', [1, 3]))).toEqual(['input', 'input']);
  const stored = { dtype: 'float32', dims: [3], file: '/weights', byteLength: 12 } as const;
  expect(
    kinds(weight('w', { ...stored, byteOffset: 0 }), weight('w', { ...stored, byteOffset: 12 })),
  ).toEqual(['weight', 'weight']);
});

test('small constants are equal by content and type, large ones by identity', () => {
  expect(kinds(scalar(2), scalar(2), scalar(3))).toEqual(['constant', 'constant']);
  expect(
    kinds(constant(float32([1], [1])), constant(int64([1], [1])), constant(float32([1], []))),
  ).toHaveLength(3);
  const large = float32(new Float32Array(17), [17]);
  expect(kinds(constant(large), constant(large), constant(float32(new Float32Array(17), [17])))).toHaveLength(
    2,
  );
});

test('inputs come before users, in a graph too deep for recursion', () => {
  let y = x;
  for (let i = 0; i < 20_000; i++) y = sigmoid(y);
  const { order } = topological([y]);
  const place = new Map(order.map((value, i) => [value, i]));
  expect(order).toHaveLength(20_001);
  expect(order.every((value, i) => value.inputs.every((operand) => place.get(operand)! < i))).toBe(true);
});

test('a graph prints as text', () => {
  const a = input('lora.a', 'float32', [2, 3]);
  const logits = linear(rmsNorm(silu(x), constant(float32([1, 2, 3], [3])), 1e-5), a);
  const loss = total(crossEntropy(logits, input('labels', 'int64', ['batch'])));
  const [gradient] = gradients(loss, [a]);
  expect(print({ loss, gradient: gradient! })).toMatchInlineSnapshot(`
    "%0 = input() {name: x} : [batch, 3]
    %1 = silu(%0) : [batch, 3]
    %2 = constant() {3 values} : [3]
    %3 = rmsNorm(%1, %2) {epsilon: 0.00001} : [batch, 3]
    %4 = input() {name: lora.a} : [2, 3]
    %5 = matmul(%3, %4) {transposeB} : [batch, 2]
    %6 = input() {name: labels} : int64[batch]
    %7 = crossEntropy(%5, %6) : [batch]
    %8 = sum(%7) {axes: 0} : [1]
    %9 = reshape(%8) : []
    %10 = softmax(%5) : [batch, 2]
    %11 = minusOneHot(%10, %6) : [batch, 2]
    %12 = constant() {1} : []
    %13 = reshape(%12) : [1]
    %14 = expand(%13) : [batch]
    %15 = reshape(%14) : [batch, 1]
    %16 = mul(%11, %15) : [batch, 2]
    %17 = matmul(%16, %3) {transposeA} : [2, 3]
    return loss: %9, gradient: %17
    "
  `);
});
