// Rivals from the literature, and the comparisons that they ask for, against NumPy.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { comparisonsOf } from '../src/comparisons.ts';
import { clustered, fedamp, fedfomo, fellrec, type PreviousRound, type Strategy } from '../src/index.ts';
import { expectClose } from './expect-close.ts';
import { fixture, reports } from './strategies-fixture.ts';
import { tensors } from './toy.ts';
import { hold, mixingOf, type Trained } from './trained.ts';

/** Two tensors from one vector. */
const cut = (vector: readonly number[]) => tensors({ a: vector.slice(0, 5), b: vector.slice(5) });
const common = cut(fixture.common);
const updates: Trained[] = reports.map((report, c) => ({
  ...report,
  start: cut(fixture.starts[c]!),
  parameters: cut(fixture.parameters[c]!),
}));
const names = reports.map(({ client }) => client);
const all = [...reports.keys()];

describe('comparisons', () => {
  const asking = (strategy: Partial<Strategy>) =>
    hold(updates, common).then((parameters) =>
      comparisonsOf(
        { name: 'asking', mix: () => ({ matrix: [] }), ...strategy },
        parameters,
        all,
        all.length,
      ),
    );

  it('are what their formulas say', async () => {
    for (const on of ['update', 'parameters', 'displacement'] as const)
      expectClose((await asking({ similarityOn: on })).cosines!.flat(), fixture.cosines[on].flat(), 1e-10);
    const { squaredDistances, squaredMoves } = await asking({
      compares: ['squaredDistances', 'squaredMoves'],
    });
    expectClose(squaredDistances!.flat(), fixture.squaredDistances.flat(), 1e-10);
    expectClose(squaredMoves!.flat(), fixture.squaredMoves.flat(), 1e-10);
    const { innerProducts } = await asking({ similarityOn: 'update', compares: ['innerProducts'] });
    const moved = fixture.parameters.map((x, c) => x.map((value, k) => value - fixture.starts[c]![k]!));
    const dot = (a: readonly number[], b: readonly number[]) => a.reduce((sum, x, k) => sum + x * b[k]!, 0);
    expectClose(
      innerProducts!.flat(),
      moved.flatMap((a) => moved.map((b) => dot(a, b))),
      1e-10,
    );
  });

  it('are there where they are asked for only', async () => {
    expect(await asking({})).toEqual({});
    expect(Object.keys(await asking({ compares: ['squaredMoves'] }))).toEqual(['squaredMoves']);
    await expect(asking({ compares: ['innerProducts'] })).rejects.toThrow(
      'asking: it asks for inner products',
    );
  });
});

describe('FELLRec', () => {
  for (const { form, matrix } of fixture.forms)
    it(`${form.form} ${form.sharpness ?? ''} is what its formula says, from the parameters on`, async () => {
      const strategy = fellrec({ similarityOn: 'update', similarity: form, heating: false });
      expectClose((await mixingOf(strategy, updates, { common })).matrix.flat(), matrix.flat(), 1e-10);
    });
});

describe('FedAMP', () => {
  for (const { options, matrix } of fixture.fedamp)
    it(`alpha ${options.alpha}, sigma ${options.sigma} is what its formula says`, async () => {
      expectClose((await mixingOf(fedamp(options), updates, { common })).matrix.flat(), matrix.flat(), 1e-10);
    });

  it('takes nothing from a client that shares nothing', () => {
    const squaredDistances = [
      [0, Number.POSITIVE_INFINITY],
      [Number.POSITIVE_INFINITY, 0],
    ];
    const { matrix } = fedamp({ alpha: 1, sigma: 1 }).mix(reports.slice(0, 2), {
      round: 0,
      squaredDistances,
    });
    expect(matrix).toEqual([
      [1, 0],
      [0, 1],
    ]);
  });

  it('has options above 0', () => {
    expect(() => fedamp({ alpha: 0, sigma: 1 })).toThrow('fedamp: alpha is 0; it must be a number above 0');
    expect(() => fedamp({ alpha: 1, sigma: Number.NaN })).toThrow('fedamp: sigma is NaN');
  });
});

describe('FedFomo', () => {
  const losses = ({ client }: { client: string }) => fixture.losses[names.indexOf(client)]!;
  /** By place among the candidates: its own, the others in their order, the start. */
  const judge = (update: Trained, { name }: { name: string }) => {
    const others = names.filter((other) => other !== update.client);
    return losses(update)[[update.client, ...others, 'start'].indexOf(name)]!;
  };

  it('is what its formula says', async () => {
    const { matrix } = await mixingOf(fedfomo(), updates, { common, judge });
    expectClose(matrix.flat(), fixture.fedfomo.flat(), 1e-10);
  });

  it('leaves its own to a client that judged nothing', () => {
    const squaredMoves = fixture.squaredMoves.slice(0, 2).map((row) => row.slice(0, 2));
    const { matrix } = fedfomo().mix(reports.slice(0, 2), {
      round: 0,
      squaredMoves,
      judged: [undefined, [3, 2, 3]],
    });
    expect(matrix).toEqual([
      [1, 0],
      [1, 0],
    ]);
  });

  it('says that it shows clients what others trained', () => {
    expect(fedfomo().showsOthers).toBe(true);
  });
});

describe('clustered', () => {
  const after = (clusters: readonly number[], clients = names): PreviousRound => ({
    clients,
    mixing: { matrix: [], clusters },
  });
  for (const { before, options, after: expected, matrix } of fixture.clustered)
    it(`from ${before.join()} with ${Object.values(options).join()} is what its formula says`, async () => {
      const mixing = await mixingOf(clustered(options), updates, { common, previous: after(before) });
      expect(mixing.clusters).toEqual(expected);
      expectClose(mixing.matrix.flat(), matrix.flat(), 1e-12);
    });

  const eager = { epsilon1: 1, epsilon2: 0, gammaMax: 0 };
  const stay = { epsilon1: 0, epsilon2: 0, gammaMax: 0 };

  it('begins with one cluster of all', async () => {
    expect((await mixingOf(clustered(stay), updates, { common })).clusters).toEqual([0, 0, 0, 0, 0, 0]);
  });

  it('keeps clusters by name, and puts who was away to whom it is most similar', async () => {
    const shuffled = [4, 0, 5, 2, 3, 1];
    const before = after(
      shuffled.slice(0, 4).map((c) => c % 3),
      shuffled.slice(0, 4).map((c) => names[c]!),
    );
    const mixing = await mixingOf(clustered(stay), updates, { common, previous: before });
    // Of 4, 0, 5 and 2 these are the most similar to 1 and 3, by the cosines of the fixture.
    expect(mixing.clusters).toEqual([0, 1, 2, 0, 1, 2]);
  });

  it('splits where the largest cosine across is the smallest of all divisions', () => {
    const anyCosines = fc
      .integer({ min: 2, max: 7 })
      .chain((n) =>
        fc
          .array(fc.double({ min: -0.9, max: 0.9, noNaN: true }), { minLength: n * n, maxLength: n * n })
          .map((values) =>
            Array.from({ length: n }, (_, i) =>
              Array.from({ length: n }, (_, j) =>
                i === j ? 1 : values[Math.min(i, j) * n + Math.max(i, j)]!,
              ),
            ),
          ),
      );
    fc.assert(
      fc.property(anyCosines, (cosines) => {
        const clients = cosines.map((_, c) => ({ client: `${c}`, loss: 1, samples: 1 }));
        // Equally long updates that cancel, so that only the cosines decide.
        const innerProducts = cosines.map((row, i) => row.map((_, j) => (i === j ? 1 : -1)));
        const { clusters } = clustered(eager).mix(clients, { round: 0, cosines, innerProducts });
        const across = (isOne: (c: number) => boolean) =>
          Math.max(...cosines.flatMap((row, i) => row.filter((_, j) => isOne(i) && !isOne(j))));
        const divisions = Array.from({ length: 2 ** (cosines.length - 1) - 1 }, (_, bits) =>
          across((c) => c === cosines.length - 1 || ((bits >> c) & 1) === 1),
        );
        expect(new Set(clusters).size).toBe(2);
        expect(across((c) => clusters![c] === 0)).toBe(Math.min(...divisions));
      }),
    );
  });

  it('has options in their ranges', () => {
    expect(() => clustered({ ...eager, epsilon1: 1.5 })).toThrow(
      'clustered: epsilon1 is 1.5; it can be 0 to 1',
    );
    expect(() => clustered({ ...eager, epsilon2: -1 })).toThrow('clustered: epsilon2 is -1');
    expect(() => clustered({ ...eager, gammaMax: Number.NaN })).toThrow('clustered: gammaMax is NaN');
  });
});
