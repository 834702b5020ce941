// The span test finds the tokens that a gradient was made of, and claims nothing where it cannot.
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { adamW, float32, type NamedTensors, nodeRuntime, random } from '@fellrec/graph';
import {
  type Adapter,
  initialAdapter,
  type LoraConfig,
  languageModel,
  loadTokenizer,
  openCheckpoint,
  type Sequence,
} from '@fellrec/models';
import { afterAll, describe, expect, test } from 'vitest';
import { complementProjector, rowSpace } from '../src/gradients/row-space.ts';
import { adapterEvidence, openSpanTest, tokensOf, weightGradients } from '../src/gradients/span.ts';

const stories = join(import.meta.dirname, '../../cli/quickstart/stories260k');
const checkpoint = await openCheckpoint(stories, { cacheDir: tmpdir() });
const runtime = nodeRuntime({ threads: 1 });
const model = languageModel(checkpoint, runtime);
const tokenizer = await loadTokenizer(checkpoint.directory);
const spanTest = await openSpanTest(checkpoint, runtime);
afterAll(async () => {
  await spanTest.dispose();
  await model.release();
});

function sequence(text: string): Sequence {
  const ids = tokenizer.encode(text);
  return { ids, labels: ids };
}
const dog = sequence('Once upon a time there was a little dog who liked the sun.');
const girl = sequence('The girl gave her mother a big red ball to play with.');
/** More distinct tokens than the model has dimensions (64). Those below 259 are bytes, whose embeddings are alike. */
const everything = [270, 330, 390, 450].map((from): Sequence => {
  const ids = Array.from({ length: 40 }, (_, i) => from + i);
  return { ids, labels: ids };
});
const ascending = (tokens: ReadonlySet<number>) => [...tokens].sort((a, b) => a - b);

async function adapterAt(rank: number, steps: number): Promise<Adapter> {
  const config: LoraConfig = { rank, alpha: 2 * rank, dropout: 0, targetModules: ['q_proj', 'v_proj'] };
  const optimizer = adamW();
  let state = optimizer.init(initialAdapter(checkpoint.config, config, 1));
  for (let step = 0; step < steps; step++) {
    const { gradients } = await model.gradients(everything, { config, tensors: state.parameters });
    ({ state } = optimizer.update(gradients, state, 1e-3));
  }
  return { config, tensors: state.parameters };
}

describe('row space', () => {
  const { normal } = random(1, 'row space');
  const matrix = (rows: number, columns: number) =>
    Array.from({ length: rows }, () => Array.from({ length: columns }, normal));
  const [left, right] = [matrix(20, 5), matrix(5, 12)];
  const product = left.flatMap((row) =>
    right[0]!.map((_, column) => row.reduce((sum, x, i) => sum + x * right[i]![column]!, 0)),
  );
  const space = rowSpace([float32(product, [20, 12])], 1e-5);

  test('of a product of rank 5 has 5 orthonormal directions', () => {
    expect(space).toMatchObject({ rows: 20, columns: 12 });
    expect(space.basis).toHaveLength(5);
    for (const [i, a] of space.basis.entries())
      for (const [j, b] of space.basis.entries())
        expect(a.reduce((sum, x, c) => sum + x * b[c]!, 0)).toBeCloseTo(i === j ? 1 : 0, 12);
  });

  test('holds the factor, and its complement is all the rest', () => {
    const projector = complementProjector(space);
    const outside = (x: readonly number[]) =>
      x.map((_, i) => x.reduce((sum, value, j) => sum + projector[i * 12 + j]! * value, 0));
    for (const row of right) for (const left of outside(row)) expect(left).toBeCloseTo(0, 5);
    const other = matrix(1, 12)[0]!;
    expect(Math.hypot(...outside(other))).toBeGreaterThan(0.1);
    // A projection: twice is as good as once.
    for (const [i, left] of outside(outside(other)).entries())
      expect(left).toBeCloseTo(outside(other)[i]!, 5);
  });
});

describe('full weights', () => {
  test.each([
    [1, [dog]],
    [2, [dog, girl]],
  ])('a batch of %i: exactly its tokens', async (_, batch) => {
    const found = await spanTest.tokens([await weightGradients(model, batch)]);
    const expected = ascending(tokensOf(batch));
    expect(expected.length).toBeGreaterThan(10);
    expect(found).toEqual({ isDecidable: true, ranks: [expected.length], tokens: expected });
  });

  test('nothing is claimed of a batch with more tokens than dimensions', async () => {
    expect(await spanTest.tokens([await weightGradients(model, everything)])).toEqual({
      isDecidable: false,
      ranks: [64],
      tokens: [],
    });
  });
});

describe('LoRA', () => {
  const test1 = async (adapter: Adapter, changes: NamedTensors) =>
    spanTest.tokens(adapterEvidence(changes, adapter.tensors));

  test('a fresh adapter: the gradient of A is zero, that of B tells the tokens of a short sequence', async () => {
    const short = sequence('The dog ran.');
    const adapter = await adapterAt(32, 0);
    const { gradients } = await model.gradients([short], adapter);
    const found = await test1(adapter, gradients);
    expect(found.ranks[0]).toBe(0);
    // All but the first, which has nothing to attend to but itself: no gradient of its query.
    expect(found.tokens).toEqual(ascending(tokensOf([short])).filter((token) => token !== short.ids[0]));
  });

  test('a rank that is high enough: exactly the tokens, after a step', async () => {
    const adapter = await adapterAt(32, 1);
    const { gradients } = await model.gradients([dog], adapter);
    const { rows } = adapterEvidence(gradients, adapter.tensors)[0]!;
    expect((await spanTest.tokens([{ rows }])).tokens).toEqual(ascending(tokensOf([dog])));
  });

  test.each([0, 1])('a rank that is too low, after %i steps: nothing is claimed', async (steps) => {
    const adapter = await adapterAt(4, steps);
    const { gradients } = await model.gradients([dog], adapter);
    expect(await test1(adapter, gradients)).toMatchObject({ isDecidable: false, tokens: [] });
  });
});

test('a step of AdamW leaves nothing to claim', async () => {
  const { rows } = await weightGradients(model, [dog]);
  const weights = new Map(rows.map((row, i) => [`${i}`, row]));
  const optimizer = adamW();
  const { parameters } = optimizer.update(
    weights,
    optimizer.init(
      new Map(
        [...weights].map(([name, { dims, data }]) => [
          name,
          float32(
            data.map(() => 0),
            dims,
          ),
        ]),
      ),
    ),
    1e-3,
  );
  const found = await spanTest.tokens([{ rows: [...parameters.values()] }]);
  expect(found).toMatchObject({ isDecidable: false, tokens: [] });
});
