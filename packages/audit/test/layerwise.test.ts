import { encoderModel, languageModel } from '@fellrec/models';
import { describe, expect, test } from 'vitest';
import { withBranches } from '../src/branches.ts';
import { type AuditedModel, depths, rowOf } from '../src/layerwise.ts';
import { openStories, openTinyEncoder, runtime } from './shared.ts';

const all = (sequences: readonly { readonly ids: readonly number[] }[]) =>
  sequences.map(({ ids }) => [...ids.keys()]);

async function statesOf(model: AuditedModel, sequences: readonly { readonly ids: readonly number[] }[]) {
  const found: Float32Array[] = [];
  for await (const { states } of depths(model, [{ sequences, places: all(sequences) }]))
    found.push(states[0]!.data.slice());
  return found;
}

function largestDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let most = 0;
  for (let i = 0; i < a.length; i++) most = Math.max(most, Math.abs(a[i]! - b[i]!));
  return most;
}

describe('hidden states, one layer at a time', () => {
  const lengths = [9, 14, 5, 11];

  test("a language model's are those of the whole model, at every depth but the normalised last", async () => {
    const { checkpoint, model } = await openStories();
    const shared = [1, 20, 21, 22, 23, 24, 25, 26, 27, 28];
    const sequences = lengths.map((length, s) => ({
      ids: [...shared, ...Array.from({ length }, (_, t) => 30 + ((7 * t + 3 * s) % 400))],
    }));
    const found = await statesOf(model, sequences);
    const whole = languageModel(checkpoint, runtime);
    for (const [s, { ids }] of sequences.entries()) {
      const traced = await whole.trace([{ ids }]);
      const d = checkpoint.config.hiddenSize;
      const before = sequences.slice(0, s).reduce((n, one) => n + one.ids.length, 0);
      for (let depth = 0; depth < checkpoint.config.layerCount; depth++) {
        const own = found[depth]!.subarray(before * d, (before + ids.length) * d);
        const theirs = traced[`hidden.${depth}`]!.data as Float32Array;
        expect(largestDifference(own, theirs.subarray(0, own.length))).toBeLessThan(1e-5);
      }
    }
    await whole.release();
  });

  test("an encoder's are those of the whole model, at every depth", async () => {
    const { checkpoint, model } = await openTinyEncoder();
    const sequences = lengths.map((length, s) => {
      const ids = Array.from({ length }, (_, t) => 5 + ((7 * t + 3 * s) % 50));
      return {
        ids,
        tokenTypes: ids.map((_, t) => (t === 0 ? 0 : 1 + (t % 2))),
        itemPositions: ids.map((_, t) => Math.ceil(t / 4)),
      };
    });
    const found = await statesOf(model, sequences);
    const whole = encoderModel(checkpoint, runtime);
    const { hidden, time } = await whole.trace(sequences);
    const d = checkpoint.config.hiddenSize;
    for (let depth = 0; depth <= checkpoint.config.layerCount; depth++) {
      let row = 0;
      for (const [s, { ids }] of sequences.entries())
        for (let place = 0; place < ids.length; place++, row++) {
          const theirs = (hidden[`hidden.${depth}`]!.data as Float32Array).subarray(
            (s * time + place) * d,
            (s * time + place + 1) * d,
          );
          expect(largestDifference(found[depth]!.subarray(row * d, (row + 1) * d), theirs)).toBeLessThan(
            1e-5,
          );
        }
    }
    await whole.release();
  });

  test('a candidate behind a sequence has the state that it would have in its place', async () => {
    const { model } = await openStories();
    const trunk = Array.from({ length: 20 }, (_, t) => (t === 0 ? 1 : 30 + ((11 * t) % 400)));
    const tried = [
      { place: 3, token: 77 },
      { place: 19, token: 78 },
      { place: 12, token: 79 },
    ];
    const branched = { ids: [...trunk, ...tried.map(({ token }) => token)] };
    const layout = withBranches(model.cut.layout([branched]), [tried.map(({ place }) => place)]);
    const embedding = await runtime.compile(model.cut.embedding());
    const { ids } = model.cut.embeddingFeeds([branched], layout);
    const embedded = (await embedding.run({ ids: ids! })).states;
    const { layerCount, hiddenSize: d } = model.cut;
    const found = await model.layers.forward({ from: 0, to: layerCount }, embedded as never, layout, {});
    for (const [i, { place, token }] of tried.entries()) {
      const alone = [...trunk.slice(0, place), token];
      const states = (await statesOf(model, [{ ids: alone }]))[layerCount]!;
      const row = rowOf(trunk.length + i, 0, layout);
      expect(
        largestDifference(found.data.subarray(row * d, (row + 1) * d), states.subarray(place * d)),
      ).toBeLessThan(1e-4);
    }
    await embedding.dispose();
  });
});
