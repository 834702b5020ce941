// A training step cut in two programs, and a model cut at every place: equal to the uncut.
import { describe, expect, test } from 'vitest';
import { gradients, type Seed } from '../src/gradients.ts';
import {
  add,
  crossEntropy,
  gather,
  input,
  keep,
  linear,
  mul,
  reshape,
  rmsNorm,
  scalar,
  silu,
  sub,
  total,
} from '../src/operations.ts';
import { random } from '../src/random.ts';
import { nodeRuntime } from '../src/runtime/node.ts';
import { type Outputs, splitForwardBackward } from '../src/segments.ts';
import { type Float32Tensor, float32, int64, type Tensor } from '../src/tensor.ts';
import { topological, type Value } from '../src/value.ts';

const runtime = nodeRuntime({ threads: 1 });
const draw = random(1, 'segments');
const normal = (...dims: number[]): Float32Tensor =>
  float32(Array.from({ length: dims.reduce((a, b) => a * b, 1) }, draw.normal), dims);

const layerCount = 3;
const feeds: Record<string, Tensor> = {
  ids: int64([1, 4, 0, 1, 2, 4], [2, 3]),
  labels: int64([0, 3, 2, 2, 1, 0], [6]),
  mask: { dtype: 'bool', dims: [6, 4], data: Uint8Array.from({ length: 24 }, () => draw.integer(2)) },
  embedding: normal(5, 4),
  head: normal(5, 4),
};
for (let i = 0; i < layerCount; i++) {
  feeds[`norm.${i}`] = normal(4);
  feeds[`up.${i}`] = normal(6, 4);
  feeds[`down.${i}`] = normal(4, 6);
}
const parameters = Object.keys(feeds).filter((name) => feeds[name]!.dtype === 'float32');
const parameter = (name: string) => input(name, 'float32', feeds[name]!.dims);

const tokens = 'batch*time';
function embed(): Value {
  const ids = input('ids', 'int64', ['batch', 'time']);
  return gather(parameter('embedding'), reshape(ids, [tokens]));
}
function layer(i: number, h: Value): Value {
  const hidden = silu(linear(rmsNorm(h, parameter(`norm.${i}`), 1e-5), parameter(`up.${i}`)));
  return add(h, linear(hidden, parameter(`down.${i}`)));
}
function lossOf(h: Value): Value {
  const dropped = keep(input('mask', 'bool', [tokens, 4]), h);
  return total(crossEntropy(linear(dropped, parameter('head')), input('labels', 'int64', [tokens])));
}

async function run(outputs: Outputs, more: Record<string, Tensor> = {}): Promise<Record<string, Tensor>> {
  const all = { ...feeds, ...more };
  const wanted = topological(Object.values(outputs)).order.flatMap(({ operation }) =>
    operation.kind === 'input' ? [operation.name] : [],
  );
  const program = await runtime.compile(outputs);
  const found = await program.run(Object.fromEntries(wanted.map((name) => [name, all[name]!])));
  await program.dispose();
  return found;
}
const named = (names: readonly string[], values: readonly Value[]) =>
  Object.fromEntries(names.map((name, i) => [`gradient.${name}`, values[i]!]));

const joint = lossOf(layer(2, layer(1, layer(0, embed()))));
const jointGradients = named(parameters, gradients(joint, parameters.map(parameter)));
const expected = run({ loss: joint, ...jointGradients });

describe('forward and backward', () => {
  const { forward, backward, residuals } = splitForwardBackward({ loss: joint }, jointGradients);

  test('give what the joint graph gives, bit for bit', async () => {
    const { loss, ...kept } = await run(forward);
    expect({ loss, ...(await run(backward, kept)) }).toEqual(await expected);
  });

  test('hand over residuals that are used and are no leaves', () => {
    expect(Object.keys(forward)).toEqual(['loss', ...residuals]);
    expect(new Set(Object.values(forward)).size).toBe(1 + residuals.length);
    for (const name of residuals) expect(forward[name]!.inputs.length).toBeGreaterThan(0);
    const used = topological(Object.values(backward)).order.flatMap(({ operation }) =>
      operation.kind === 'input' && operation.name.startsWith('residual.') ? [operation.name] : [],
    );
    expect(used.toSorted()).toEqual(residuals.toSorted());
  });

  test('compute nothing twice but what is cheap', () => {
    const kinds = (outputs: Outputs) =>
      topological(Object.values(outputs)).order.filter(
        ({ inputs, dtype, operation }) =>
          inputs.length > 0 && dtype === 'float32' && operation.kind !== 'silu',
      );
    expect(kinds(forward).length + kinds(backward).length).toBe(
      kinds({ loss: joint, ...jointGradients }).length,
    );
  });
});

describe.each([0, 1, 2, 3])('a model cut after %i layers', (cut) => {
  test('trains as the uncut', async () => {
    const isAbove = (name: string) => name === 'head' || Number(name.split('.')[1] ?? -1) >= cut;
    const above = parameters.filter(isAbove);
    const below = parameters.filter((name) => !isAbove(name));

    let hidden = embed();
    for (let i = 0; i < cut; i++) hidden = layer(i, hidden);
    const seed: Seed = { value: hidden, gradient: input('dHidden', 'float32', hidden.shape) };
    const client = splitForwardBackward({ hidden }, named(below, gradients([seed], below.map(parameter))));

    const received = input('hidden', 'float32', hidden.shape);
    let h: Value = received;
    for (let i = cut; i < layerCount; i++) h = layer(i, h);
    const loss = lossOf(h);
    const [dHidden, ...found] = gradients(loss, [received, ...above.map(parameter)]);
    const server = { loss, dHidden: dHidden!, ...named(above, found) };

    const sent = await run(client.forward);
    const { dHidden: returned, ...results } = await run(server, { hidden: sent['hidden']! });
    const gradientsBelow = await run(client.backward, { ...sent, dHidden: returned! });
    expect({ ...results, ...gradientsBelow }).toEqual(await expected);
  });
});

test('gradients that are outputs, leaves or constants survive the cut', async () => {
  const [a, b] = [input('a', 'float32', [2]), input('b', 'float32', [2])];
  const product = mul(a, b);
  const { forward, backward, residuals } = splitForwardBackward(
    { loss: total(product), product },
    { same: product, leaf: b, one: scalar(1), fromResidual: sub(product, a) },
  );
  const inputs = { a: float32([2, 3], [2]), b: float32([5, 7], [2]) };
  const { loss, ...kept } = await run(forward, inputs);
  expect(Object.keys(kept)).toEqual(residuals);
  const found = await run(backward, { ...inputs, ...kept });
  expect(
    [loss, kept['product'], found['same'], found['leaf'], found['one'], found['fromResidual']].map((t) => [
      ...t!.data,
    ]),
  ).toEqual([[31], [10, 21], [10, 21], [5, 7], [1], [8, 18]]);
});
