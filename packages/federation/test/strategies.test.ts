// Strategies and mixing against values from NumPy in float64, and the laws that any mixing must keep.
import { readFileSync } from 'node:fs';
import type { NamedTensors } from '@fellrec/graph';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  type ClusteredOptions,
  centralized,
  chosen,
  clustered,
  type FedampOptions,
  type FellrecOptions,
  fedamp,
  fedavg,
  fedfomo,
  fellrec,
  groups,
  type Heating,
  local,
  type Mixing,
  type Strategy,
  uniform,
} from '../src/index.ts';
import { expectClose } from './expect-close.ts';
import { tensors } from './toy.ts';
import { byParameters, flat, hold, mixingOf, type Trained } from './trained.ts';

interface Case {
  /** What it is, where it is not FELLRec. */
  readonly name?: string;
  readonly similarity_on: 'update' | 'parameters';
  readonly heating_off: boolean;
  readonly alpha: number;
  readonly beta: number;
  readonly temperature: number;
  readonly exponent: Heating['exponent'];
  readonly round: number;
  readonly softmax: number[];
  readonly warmth: number[];
  readonly mixing: number[][];
  readonly mixed_first4: number[][];
  readonly mixed_norms?: number[];
}
interface Fixture {
  readonly start: number[];
  readonly parameters: number[][];
  readonly samples: number[];
  readonly losses: number[];
  readonly similarity: Readonly<Record<'parameters' | 'update', number[][]>>;
  readonly cases: Case[];
}
const fixture = JSON.parse(
  readFileSync(new URL('./fixtures/aggregation.json', import.meta.url), 'utf8'),
) as Fixture;

/** Everyone's parameters after mixing, as flat vectors. */
async function mixed({ matrix }: Mixing, updates: readonly Trained[]): Promise<number[][]> {
  const parameters = await hold(updates);
  await parameters.mix(matrix);
  return Promise.all(parameters.starts().map(async (read) => flat(await read())));
}

/** Two tensors from one flat vector: similarity must not care how it is cut. */
const cut = (flat: readonly number[]): NamedTensors => tensors({ a: flat.slice(0, 5), b: flat.slice(5) });
const start = cut(fixture.start);
const updates: Trained[] = fixture.parameters.map((parameters, c) => ({
  client: `client-${c}`,
  start,
  parameters: cut(parameters),
  loss: fixture.losses[c]!,
  samples: fixture.samples[c]!,
}));

describe('the fixture', () => {
  it('has 75 cases', () => expect(fixture.cases.length).toBe(75));
  for (const [number, example] of fixture.cases.entries())
    it(`${number}: ${nameOf(example)}`, async () => {
      const { similarity_on: similarityOn, heating_off, alpha, beta, temperature, exponent } = example;
      const heating = heating_off ? (false as const) : { alpha, beta, temperature, exponent };
      const strategy = example.name ? fedavg() : fellrec({ similarityOn, heating });
      const mixing = await mixingOf(strategy, updates, { round: example.round ?? 0 });
      if (!example.name)
        expectClose(mixing.similarity!.flat(), fixture.similarity[similarityOn].flat(), 1e-12);
      if (!example.name && heating) {
        expectClose(mixing.softmax!, example.softmax, 1e-12);
        expectClose(mixing.warmth!, example.warmth, 1e-12);
      }
      expectClose(mixing.matrix.flat(), example.mixing.flat(), 1e-12);
      const vectors = await mixed(mixing, updates);
      expectClose(
        vectors.flatMap((vector) => vector.slice(0, 4)),
        example.mixed_first4.flat(),
        1e-6,
      );
      if (example.mixed_norms)
        expectClose(
          vectors.map((vector) => Math.hypot(...vector)),
          example.mixed_norms,
          1e-6,
        );
    });
});

function nameOf({ name, similarity_on, heating_off, exponent, beta, temperature, round }: Case): string {
  if (name) return name;
  return `${similarity_on}, ${heating_off ? 'no heating' : `${exponent}, beta ${beta}, tau ${temperature}, round ${round}`}`;
}

const value = fc.float({ min: -100, max: 100, noNaN: true });
const anyUpdates: fc.Arbitrary<Trained[]> = fc
  .integer({ min: 1, max: 4 })
  .chain((size) => {
    const vector = fc.array(value, { minLength: size, maxLength: size });
    const client = fc.record({
      vector,
      origin: vector,
      loss: fc.double({ min: 0, max: 10, noNaN: true }),
      samples: fc.integer({ min: 1, max: 1000 }),
      group: fc.constantFrom('one', 'other'),
    });
    return fc.array(client, { minLength: 1, maxLength: 12 });
  })
  .map((clients) =>
    clients.map(({ vector, origin, ...report }, c) => ({
      client: `client-${c}`,
      start: tensors({ x: origin, y: [c] }),
      parameters: tensors({ x: vector, y: [2 * c] }),
      ...report,
    })),
  );
const anyHeating: fc.Arbitrary<Heating> = fc.record({
  alpha: fc.double({ min: 0.01, max: 3, noNaN: true }),
  beta: fc.double({ min: 0.2, max: 20, noNaN: true }),
  temperature: fc.double({ min: 0.05, max: 2, noNaN: true }),
  exponent: fc.constantFrom('t/beta' as const, '(t+1)/beta' as const, 't+1/beta' as const),
});
const anyFellrecOptions: fc.Arbitrary<FellrecOptions> = fc.record({
  similarityOn: fc.constantFrom('update' as const, 'parameters' as const, 'displacement' as const),
  similarity: fc.option(
    fc.record({
      form: fc.constantFrom('shifted' as const, 'relative' as const, 'attention' as const),
      sharpness: fc.double({ min: 0.1, max: 30, noNaN: true }),
      smoothing: fc.double({ min: 0, max: 0.99, noNaN: true }),
    }),
    { nil: undefined },
  ),
  heating: fc.oneof(fc.constant(false as const), anyHeating),
  weighting: fc.constantFrom('clients' as const, 'samples' as const),
});
const anyFedampOptions: fc.Arbitrary<FedampOptions> = fc.record({
  alpha: fc.double({ min: 0.01, max: 1e4, noNaN: true }),
  sigma: fc.double({ min: 0.1, max: 1e4, noNaN: true }),
});
const unit = fc.double({ min: 0, max: 1, noNaN: true });
const anyClusteredOptions: fc.Arbitrary<ClusteredOptions> = fc.record({
  epsilon1: unit,
  epsilon2: fc.double({ min: 0, max: 100, noNaN: true }),
  gammaMax: unit,
});
const anyFellrec = anyFellrecOptions.map(fellrec);
/** Those that have nothing to decide between clients that are equally similar. */
const anyTieless: fc.Arbitrary<Strategy> = fc.oneof(
  anyFellrec,
  fc.constantFrom(fedavg(), uniform(), local(), groups(), fedfomo()),
  anyFedampOptions.map(fedamp),
  fc.tuple(anyFellrec, anyFedampOptions).map(([strategy, options]) =>
    chosen([
      { name: 'fedavg', strategy: fedavg() },
      { name: 'fellrec', strategy },
      { name: 'fedamp', strategy: fedamp(options) },
    ]),
  ),
);
const anyStrategy = fc.oneof(
  { arbitrary: anyTieless, weight: 4 },
  { arbitrary: anyClusteredOptions.map(clustered), weight: 1 },
);
const anyRound = fc.integer({ min: 0, max: 80 });

describe('every strategy', () => {
  it('has rows of weights from 0 that sum to 1', async () => {
    await fc.assert(
      fc.asyncProperty(anyStrategy, anyUpdates, anyRound, async (strategy, clients, round) => {
        for (const row of (await mixingOf(strategy, clients, { round })).matrix) {
          expect(Math.min(...row)).toBeGreaterThanOrEqual(0);
          expect(row.reduce((sum, weight) => sum + weight, 0)).toBeCloseTo(1, 12);
        }
      }),
    );
  });

  it('leaves a client alone unchanged', async () => {
    await fc.assert(
      fc.asyncProperty(anyStrategy, anyUpdates, anyRound, async (strategy, [client], round) => {
        const mixing = await mixingOf(strategy, [client!], { round });
        expect(await mixed(mixing, [client!])).toEqual([flat(client!.parameters)]);
      }),
    );
  });

  it('does not care about the order of clients', async () => {
    const permuted = anyUpdates.chain((clients) =>
      fc.tuple(
        fc.constant(clients),
        fc.shuffledSubarray([...clients.keys()], { minLength: clients.length, maxLength: clients.length }),
      ),
    );
    await fc.assert(
      fc.asyncProperty(anyTieless, permuted, anyRound, async (strategy, [clients, order], round) => {
        const { matrix } = await mixingOf(strategy, clients, { round });
        const other = order.map((c) => clients[c]!);
        const permutedMixing = await mixingOf(strategy, other, { round });
        const expected = order.map((c) => order.map((j) => matrix[c]![j]!));
        expectClose(permutedMixing.matrix.flat(), expected.flat(), 1e-12);
        const before = await mixed({ matrix }, clients);
        expectClose(
          (await mixed(permutedMixing, other)).flat(),
          order.flatMap((c) => before[c]!),
          1e-4,
        );
      }),
    );
  });

  it('does not care about their order with neighbours or clusters either, where no two are equally similar', async () => {
    const drawn = fc.array(fc.array(value, { minLength: 3, maxLength: 3 }), { minLength: 2, maxLength: 8 });
    const cases = drawn.chain((vectors) =>
      fc.tuple(
        fc.constant(vectors),
        fc.shuffledSubarray([...vectors.keys()], { minLength: vectors.length, maxLength: vectors.length }),
        fc
          .nat(vectors.length)
          .chain((neighbours) =>
            fc.oneof(
              fc.constant(fellrec({ similarityOn: 'update', heating: false, neighbours })),
              anyClusteredOptions.map(clustered),
            ),
          ),
      ),
    );
    await fc.assert(
      fc.asyncProperty(cases, async ([vectors, order, strategy]) => {
        const clients = vectors.map((x, c) => ({
          ...updates[c % updates.length]!,
          start: tensors({ x: [0, 0, 0] }),
          parameters: tensors({ x }),
        }));
        const { matrix } = await mixingOf(strategy, clients);
        const all = fellrec({ similarityOn: 'update', heating: false });
        const { similarity } = await mixingOf(all, clients);
        const gaps = similarity!.flatMap((row, c) => {
          const sorted = row.filter((_, j) => j !== c).sort((a, b) => a - b);
          return sorted.slice(1).map((d, i) => d - sorted[i]!);
        });
        fc.pre(gaps.every((gap) => gap > 1e-9));
        const permuted = await mixingOf(
          strategy,
          order.map((c) => clients[c]!),
        );
        const expected = order.flatMap((c) => order.map((j) => matrix[c]![j]!));
        expectClose(permuted.matrix.flat(), expected, 1e-12);
      }),
    );
  });

  it('weighs clients alike that are alike', async () => {
    await fc.assert(
      fc.asyncProperty(anyStrategy, anyUpdates, anyRound, async (strategy, clients, round) => {
        const twin = clients.at(-1)!;
        fc.pre(flat(twin.start).some((x, k) => x !== flat(twin.parameters)[k]));
        const all = [...clients, { ...twin, client: 'twin' }];
        const { matrix } = await mixingOf(strategy, all, { round, judge: byParameters });
        for (const row of matrix.slice(0, -2)) expect(row.at(-1)).toBeCloseTo(row.at(-2)!, 12);
      }),
    );
  });

  it('leaves its inputs as they are', async () => {
    await fc.assert(
      fc.asyncProperty(anyStrategy, anyUpdates, anyRound, async (strategy, clients, round) => {
        const before = structuredClone(clients);
        await mixed(await mixingOf(strategy, clients, { round }), clients);
        expect(clients).toEqual(before);
      }),
    );
  });

  it('mixes as the definition says', async () => {
    await fc.assert(
      fc.asyncProperty(anyStrategy, anyUpdates, anyRound, async (strategy, clients, round) => {
        const mixing = await mixingOf(strategy, clients, { round });
        const vectors = clients.map(({ parameters }) => flat(parameters));
        const expected = mixing.matrix.map((row) =>
          vectors[0]!.map((_, k) => Math.fround(row.reduce((sum, w, j) => sum + w * vectors[j]![k]!, 0))),
        );
        expectClose((await mixed(mixing, clients)).flat(), expected.flat(), 1e-4);
      }),
    );
  });
});

describe('weighting by samples', () => {
  it('weighs each client by its training samples beside its similarity and warmth', async () => {
    await fc.assert(
      fc.asyncProperty(anyFellrecOptions, anyUpdates, anyRound, async (options, clients, round) => {
        const of = (weighting: 'clients' | 'samples') =>
          mixingOf(fellrec({ ...options, weighting }), clients, { round });
        const [alike, weighed] = [await of('clients'), await of('samples')];
        for (const [c, row] of weighed.matrix.entries()) {
          const scaled = alike.matrix[c]!.map((weight, j) => weight * clients[j]!.samples);
          const total = scaled.reduce((sum, weight) => sum + weight, 0);
          expectClose(
            row,
            scaled.map((weight) => weight / total),
            1e-12,
          );
        }
      }),
    );
  });

  it('is FedAvg where all are equally similar and warm', async () => {
    const equal = fellrec({ similarityOn: 'none', heating: false, weighting: 'samples' });
    await fc.assert(
      fc.asyncProperty(anyUpdates, async (clients) => {
        const { matrix } = await mixingOf(equal, clients);
        expectClose(matrix.flat(), (await mixingOf(fedavg(), clients)).matrix.flat(), 1e-12);
      }),
    );
  });
});

describe('neighbours', () => {
  const limited = (options: FellrecOptions, neighbours?: number) => fellrec({ ...options, neighbours });

  it('of a row are itself and the m most similar others, and its weights keep their proportions', async () => {
    await fc.assert(
      fc.asyncProperty(
        anyFellrecOptions,
        anyUpdates,
        anyRound,
        fc.nat(11),
        async (options, clients, round, m) => {
          const all = await mixingOf(limited(options), clients, { round });
          const { matrix, similarity } = await mixingOf(limited(options, m), clients, { round });
          expect(similarity).toEqual(all.similarity);
          for (const [c, row] of matrix.entries()) {
            expect(row.reduce((sum, weight) => sum + weight, 0)).toBeCloseTo(1, 12);
            const whole = all.matrix[c]!;
            const d = similarity![c]!;
            const others = [...row.keys()].filter((j) => j !== c);
            // Ranked by how many others come before it: a larger similarity, or an equal one of an earlier client.
            const before = (j: number) =>
              others.filter((i) => d[i]! > d[j]! || (d[i]! === d[j]! && i < j)).length;
            const kept = others.filter((j) => before(j) < m);
            expectClose(
              others.map((j) => row[j]! * whole[c]!),
              others.map((j) => (kept.includes(j) ? whole[j]! * row[c]! : 0)),
              1e-12,
            );
          }
        },
      ),
    );
  });

  it('as many as there are, or more, change nothing', async () => {
    await fc.assert(
      fc.asyncProperty(
        anyFellrecOptions,
        anyUpdates,
        anyRound,
        fc.nat(3),
        async (options, clients, round, more) => {
          const expected = await mixingOf(limited(options), clients, { round });
          expect(await mixingOf(limited(options, clients.length - 1 + more), clients, { round })).toEqual(
            expected,
          );
        },
      ),
    );
  });

  it('equally similar are taken in the order of clients', () => {
    const cosines = [0, 1, 2, 3].map((i) => [0, 1, 2, 3].map((j) => (i === j ? 1 : 0.5)));
    const reports = updates.slice(0, 4);
    const strategy = fellrec({ similarityOn: 'update', heating: false, neighbours: 1 });
    const { matrix } = strategy.mix(reports, { round: 0, cosines });
    expect(matrix.map((row) => row.map((weight) => weight > 0))).toEqual([
      [true, true, false, false],
      [true, true, false, false],
      [true, false, true, false],
      [true, false, false, true],
    ]);
  });
});

describe('limits', () => {
  it('warmth 0 is local', async () => {
    const cold: Heating = { alpha: 1e-300, beta: 1, temperature: 1, exponent: 't/beta' };
    const { matrix, warmth } = await mixingOf(fellrec({ similarityOn: 'update', heating: cold }), updates);
    expect(Math.max(...warmth!)).toBeLessThan(1e-290);
    expectClose(matrix.flat(), (await mixingOf(local(), updates)).matrix.flat(), 1e-200);
  });

  it('similarity 1 and warmth 1 is uniform', async () => {
    const same = updates.map((update) => ({ ...update, parameters: updates[0]!.parameters }));
    const warm: Heating = { alpha: 100, beta: 1, temperature: 1, exponent: 't/beta' };
    for (const heating of [warm, false as const]) {
      const { matrix } = await mixingOf(fellrec({ similarityOn: 'update', heating }), same, { round: 10 });
      expectClose(matrix.flat(), (await mixingOf(uniform(), same, { round: 10 })).matrix.flat(), 1e-12);
    }
  });

  it('the client with the largest loss listens least', async () => {
    const heating: Heating = { alpha: 0.7, beta: 5, temperature: 0.05, exponent: 't+1/beta' };
    // Losses of the reference log's round 0; the warmth follows from the formula.
    const losses = [2.091, 2.08, 2.211, 2.152, 2.089];
    const logged = updates.map((update, c) => ({ ...update, loss: losses[c]! }));
    const { warmth } = await mixingOf(fellrec({ similarityOn: 'update', heating }), logged);
    expectClose(warmth!, [0.845, 0.86, 0.644, 0.748, 0.847], 1e-3);
  });

  it('fedavg weighs by samples, the same for all', async () => {
    const total = fixture.samples.reduce((sum, n) => sum + n, 0);
    const expected = fixture.samples.map((n) => n / total);
    expect((await mixingOf(fedavg(), updates, { round: 3 })).matrix).toEqual(updates.map(() => expected));
  });

  it('centralized is for one client', async () => {
    expect((await mixingOf(centralized(), [updates[0]!])).matrix).toEqual([[1]]);
    await expect(mixingOf(centralized(), updates)).rejects.toThrow('put all data into one client');
  });
});
