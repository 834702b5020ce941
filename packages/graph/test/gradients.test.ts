// What differentiation does beyond the rules of single operations.
import { expect, test } from 'vitest';
import { gradients } from '../src/gradients.ts';
import {
  add,
  constant,
  exp,
  gather,
  input,
  minusOneHot,
  mul,
  rmsNorm,
  rotary,
  scalar,
  scale,
  sigmoid,
  topValues,
  total,
  weight,
} from '../src/operations.ts';
import { nodeRuntime } from '../src/runtime/node.ts';
import { float32 } from '../src/tensor.ts';
import { topological, type Value } from '../src/value.ts';

const runtime = nodeRuntime({ threads: 1 });
const x = input('x', 'float32', [2]);
const y = input('y', 'float32', [2]);

async function run(outputs: Record<string, Value>, feeds: Record<string, number[]>) {
  const program = await runtime.compile(outputs);
  const found = await program.run(
    Object.fromEntries(Object.entries(feeds).map(([name, data]) => [name, float32(data, [data.length])])),
  );
  await program.dispose();
  return Object.fromEntries(Object.entries(found).map(([name, { data }]) => [name, [...data].map(Number)]));
}

test('a value that is used several times gets the sum, however it was built', async () => {
  // x^2 + x y + x, where x occurs as different objects
  const again = input('x', 'float32', [2]);
  const loss = total(add(add(mul(x, again), mul(again, y)), x));
  const [dx, dy] = gradients(loss, [input('x', 'float32', [2]), y]);
  expect(await run({ dx: dx!, dy: dy!, loss }, { x: [3, -2], y: [5, 7] })).toEqual({
    dx: [12, 4],
    dy: [3, -2],
    loss: [9 + 15 + 3 + 4 - 14 - 2],
  });
});

test('third derivatives', async () => {
  // f = x^3 e^x: f''' = (x^3 + 9 x^2 + 18 x + 6) e^x
  let f: Value = mul(mul(x, mul(x, x)), exp(x));
  for (let order = 0; order < 3; order++) f = gradients(total(f), [x])[0]!;
  const { third } = await run({ third: f }, { x: [0.5, -1] });
  expect(third![0]).toBeCloseTo((0.125 + 2.25 + 9 + 6) * Math.exp(0.5), 4);
  expect(third![1]).toBeCloseTo((-1 + 9 - 18 + 6) * Math.exp(-1), 4);
});

test('seeds pull given gradients back', async () => {
  const seeds = [
    { value: mul(x, x), gradient: y },
    { value: scale(x, 3), gradient: constant(float32([1, 10], [2])) },
  ];
  const [dx] = gradients(seeds, [x]);
  expect(await run({ dx: dx! }, { x: [2, 3], y: [1, -1] })).toEqual({ dx: [4 + 3, -6 + 30] });
});

test('the gradient of a value with respect to itself is its seed', () => {
  const loss = total(x);
  expect(gradients(loss, [loss])[0]).toEqual(scalar(1));
});

test('what does not influence the loss is named', () => {
  const labels = input('labels', 'int64', [2]);
  expect(() => gradients(total(x), [x, y])).toThrow('value 1 of wrt (y) has no influence on the loss');
  expect(() => gradients(total(x), [mul(x, y)])).toThrow('value 0 of wrt (mul) has no influence');
  const logits = input('logits', 'float32', [2, 3]);
  expect(() => gradients(total(minusOneHot(logits, labels)), [labels])).toThrow('(labels) has no influence');
  expect(() => gradients(total(gather(x, labels)), [labels])).toThrow('(labels) has no influence');
  const [h, positions, cos, sin] = [
    input('h', 'float32', ['n', 8]),
    input('positions', 'int64', ['n']),
    input('cos', 'float32', [8, 2]),
    input('sin', 'float32', [8, 2]),
  ];
  expect(() => gradients(total(rotary(h, positions, cos, sin)), [cos])).toThrow('(cos) has no influence');
});

test('an influence that has no gradient is refused', () => {
  const largest = topValues(x, 1);
  expect(() => gradients(add(total(mul(largest, largest)), total(x)), [x])).toThrow(
    'topValues has no gradient',
  );
});

test('a loss that is not a scalar, or a seed of another shape, is refused', () => {
  expect(() => gradients(mul(x, x), [x])).toThrow('the gradient of mul is [], the value is [2]');
  expect(() => gradients([{ value: x, gradient: input('d', 'float32', [3]) }], [x])).toThrow('x is [3]');
});

test('rules that divide by the size of the last axis need it', () => {
  const h = input('h', 'float32', ['batch', 'd']);
  const message = 'a gradient over the last axis needs its size, found d';
  expect(() => gradients(total(rmsNorm(h, input('w', 'float32', ['d']), 1e-5)), [h])).toThrow(message);
});

test('nothing is computed for what no gradient is asked of', () => {
  const w = weight('w', { dtype: 'float32', dims: [2], file: '/absent', byteOffset: 0, byteLength: 8 });
  const [dx] = gradients(total(mul(x, sigmoid(w))), [x]);
  expect(
    topological([dx!])
      .order.map(({ operation }) => operation.kind)
      .sort(),
  ).toEqual(['constant', 'expand', 'mul', 'reshape', 'sigmoid', 'weight'].sort());
});
