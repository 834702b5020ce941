// Strategies and mixing against values from NumPy in float64, and the laws that any mixing must keep.
import { readFileSync } from 'node:fs';
import type { NamedTensors } from '@fellrec/graph';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  applyMixing,
  type ClientUpdate,
  centralized,
  fedavg,
  fellrec,
  type Heating,
  local,
  type Mixing,
  type Strategy,
  uniform,
} from '../src/index.ts';
import { cosines } from '../src/similarity.ts';
import { tensors } from './toy.ts';

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

/** Two tensors from one flat vector: similarity must not care how it is cut. */
const cut = (flat: readonly number[]): NamedTensors => tensors({ a: flat.slice(0, 5), b: flat.slice(5) });
const flat = (named: NamedTensors) => [...named.values()].flatMap(({ data }) => [...data]);
const start = cut(fixture.start);
const updates: ClientUpdate[] = fixture.parameters.map((parameters, c) => ({
  client: `client-${c}`,
  start,
  parameters: cut(parameters),
  loss: fixture.losses[c]!,
  samples: fixture.samples[c]!,
}));

function expectClose(actual: readonly number[], expected: readonly number[], tolerance: number): void {
  expect(actual.length).toBe(expected.length);
  const worst = Math.max(...expected.map((value, i) => Math.abs(value - actual[i]!)));
  expect(worst).toBeLessThanOrEqual(tolerance);
}

describe('the fixture', () => {
  it('has 75 cases', () => expect(fixture.cases.length).toBe(75));
  for (const [number, example] of fixture.cases.entries())
    it(`${number}: ${nameOf(example)}`, () => {
      const { similarity_on: similarityOn, heating_off, alpha, beta, temperature, exponent } = example;
      const heating = heating_off ? (false as const) : { alpha, beta, temperature, exponent };
      const strategy = example.name ? fedavg() : fellrec({ similarityOn, heating });
      const mixing = strategy.mix(updates, example.round ?? 0);
      if (!example.name)
        expectClose(mixing.similarity!.flat(), fixture.similarity[similarityOn].flat(), 1e-12);
      if (!example.name && heating) {
        expectClose(mixing.softmax!, example.softmax, 1e-12);
        expectClose(mixing.warmth!, example.warmth, 1e-12);
      }
      expectClose(mixing.matrix.flat(), example.mixing.flat(), 1e-12);
      const mixed = applyMixing(
        mixing.matrix,
        updates.map(({ parameters }) => parameters),
      ).map(flat);
      expectClose(
        mixed.flatMap((vector) => vector.slice(0, 4)),
        example.mixed_first4.flat(),
        1e-6,
      );
      if (example.mixed_norms)
        expectClose(
          mixed.map((vector) => Math.hypot(...vector)),
          example.mixed_norms,
          1e-6,
        );
    });
});

function nameOf({ name, similarity_on, heating_off, exponent, beta, temperature, round }: Case): string {
  if (name) return name;
  return `${similarity_on}, ${heating_off ? 'no heating' : `${exponent}, beta ${beta}, tau ${temperature}, round ${round}`}`;
}

describe('similarity', () => {
  it('of a zero vector is 0 with everything but itself', () => {
    const zero = tensors({ x: [0, 0] });
    expect(cosines([zero, tensors({ x: [1, 2] }), zero])).toEqual([
      [1, 0, 0],
      [0, 1, 0],
      [0, 0, 1],
    ]);
  });

  it('of any number of clients is what the formula says, across blocks', () => {
    const vector = fc.array(fc.integer({ min: -5, max: 5 }), { minLength: 3, maxLength: 3 });
    fc.assert(
      fc.property(fc.array(fc.tuple(vector, vector), { minLength: 1, maxLength: 13 }), (pairs) => {
        // Repeated, so that a tensor takes more than one block.
        const long = (v: number[]) =>
          Float32Array.from({ length: 8192 + 7 }, (_, i) => v[i % 3]! + (i === 8193 ? 9 : 0));
        const [before, after] = [0, 1].map((k) => pairs.map((pair) => long(pair[k as 0 | 1])));
        const actual = cosines(
          after!.map((x, c) => tensors({ x, y: pairs[c]![1] })),
          before!.map((x, c) => tensors({ x, y: pairs[c]![0] })),
        );
        const flatUpdates = pairs.map(([s, p], c) =>
          [...after![c]!].map((x, i) => x - before![c]![i]!).concat(p.map((x, i) => x - s[i]!)),
        );
        const dot = (a: number[], b: number[]) => a.reduce((sum, x, i) => sum + x * b[i]!, 0);
        for (const [i, a] of flatUpdates.entries())
          for (const [j, b] of flatUpdates.entries()) {
            const norm = Math.sqrt(dot(a, a) * dot(b, b));
            const expected = i === j ? 1 : norm === 0 ? 0 : dot(a, b) / norm;
            expect(actual[i]![j]).toBeCloseTo(expected, 12);
          }
      }),
      { numRuns: 20 },
    );
  });
});

const value = fc.float({ min: -100, max: 100, noNaN: true });
const anyUpdates: fc.Arbitrary<ClientUpdate[]> = fc
  .integer({ min: 1, max: 4 })
  .chain((size) => {
    const vector = fc.array(value, { minLength: size, maxLength: size });
    const client = fc.record({
      vector,
      origin: vector,
      loss: fc.double({ min: 0, max: 10, noNaN: true }),
      samples: fc.integer({ min: 1, max: 1000 }),
    });
    return fc.array(client, { minLength: 1, maxLength: 12 });
  })
  .map((clients) =>
    clients.map(({ vector, origin, loss, samples }, c) => ({
      client: `client-${c}`,
      start: tensors({ x: origin, y: [c] }),
      parameters: tensors({ x: vector, y: [2 * c] }),
      loss,
      samples,
    })),
  );
const anyHeating: fc.Arbitrary<Heating> = fc.record({
  alpha: fc.double({ min: 0.01, max: 3, noNaN: true }),
  beta: fc.double({ min: 0.2, max: 20, noNaN: true }),
  temperature: fc.double({ min: 0.05, max: 2, noNaN: true }),
  exponent: fc.constantFrom('t/beta' as const, '(t+1)/beta' as const, 't+1/beta' as const),
});
const anyFellrec = fc
  .record({
    similarityOn: fc.constantFrom('update' as const, 'parameters' as const),
    heating: fc.oneof(fc.constant(false as const), anyHeating),
  })
  .map(fellrec);
const anyStrategy: fc.Arbitrary<Strategy> = fc.oneof(
  anyFellrec,
  fc.constantFrom(fedavg(), uniform(), local()),
);
const anyRound = fc.integer({ min: 0, max: 80 });
const mixed = (mixing: Mixing, of: readonly ClientUpdate[]) =>
  applyMixing(
    mixing.matrix,
    of.map(({ parameters }) => parameters),
  ).map(flat);

describe('every strategy', () => {
  it('has rows of weights from 0 that sum to 1', () => {
    fc.assert(
      fc.property(anyStrategy, anyUpdates, anyRound, (strategy, clients, round) => {
        for (const row of strategy.mix(clients, round).matrix) {
          expect(Math.min(...row)).toBeGreaterThanOrEqual(0);
          expect(row.reduce((sum, weight) => sum + weight, 0)).toBeCloseTo(1, 12);
        }
      }),
    );
  });

  it('leaves a client alone unchanged', () => {
    fc.assert(
      fc.property(anyStrategy, anyUpdates, anyRound, (strategy, [client], round) => {
        expect(mixed(strategy.mix([client!], round), [client!])).toEqual([flat(client!.parameters)]);
      }),
    );
  });

  it('does not care about the order of clients', () => {
    const permuted = anyUpdates.chain((clients) =>
      fc.tuple(
        fc.constant(clients),
        fc.shuffledSubarray([...clients.keys()], { minLength: clients.length, maxLength: clients.length }),
      ),
    );
    fc.assert(
      fc.property(anyStrategy, permuted, anyRound, (strategy, [clients, order], round) => {
        const { matrix } = strategy.mix(clients, round);
        const other = order.map((c) => clients[c]!);
        const permutedMixing = strategy.mix(other, round);
        const expected = order.map((c) => order.map((j) => matrix[c]![j]!));
        expectClose(permutedMixing.matrix.flat(), expected.flat(), 1e-12);
        const before = mixed({ matrix }, clients);
        expectClose(
          mixed(permutedMixing, other).flat(),
          order.flatMap((c) => before[c]!),
          1e-4,
        );
      }),
    );
  });

  it('leaves its inputs as they are', () => {
    fc.assert(
      fc.property(anyStrategy, anyUpdates, anyRound, (strategy, clients, round) => {
        const before = structuredClone(clients);
        mixed(strategy.mix(clients, round), clients);
        expect(clients).toEqual(before);
      }),
    );
  });

  it('mixes as the definition says', () => {
    fc.assert(
      fc.property(anyStrategy, anyUpdates, anyRound, (strategy, clients, round) => {
        const mixing = strategy.mix(clients, round);
        const vectors = clients.map(({ parameters }) => flat(parameters));
        const expected = mixing.matrix.map((row) =>
          vectors[0]!.map((_, k) => Math.fround(row.reduce((sum, w, j) => sum + w * vectors[j]![k]!, 0))),
        );
        expectClose(mixed(mixing, clients).flat(), expected.flat(), 1e-4);
      }),
    );
  });
});

describe('mixing', () => {
  it('of long vectors, by a number of clients that has no path of its own, and by five', () => {
    for (const n of [3, 5, 7]) {
      const vectors = Array.from({ length: n }, (_, c) =>
        Float32Array.from({ length: 2 * 4096 + 3 }, (_, k) => Math.sin(k * (c + 1))),
      );
      const matrix = vectors.map((_, c) => vectors.map((_, j) => ((c + j) % n) / ((n * (n - 1)) / 2)));
      const actual = applyMixing(
        matrix,
        vectors.map((x) => tensors({ x })),
      );
      for (const [c, row] of matrix.entries())
        expectClose(
          flat(actual[c]!),
          [...vectors[0]!.keys()].map((k) => row.reduce((sum, w, j) => sum + w * vectors[j]![k]!, 0)),
          1e-7,
        );
    }
  });

  it('shares one result between equal rows', () => {
    const [first, ...others] = applyMixing(
      fedavg().mix(updates, 0).matrix,
      updates.map(({ parameters }) => parameters),
    );
    for (const other of others) expect(other).toBe(first);
  });
});

describe('limits', () => {
  it('warmth 0 is local', () => {
    const cold: Heating = { alpha: 1e-300, beta: 1, temperature: 1, exponent: 't/beta' };
    const { matrix, warmth } = fellrec({ similarityOn: 'update', heating: cold }).mix(updates, 0);
    expect(Math.max(...warmth!)).toBeLessThan(1e-290);
    expectClose(matrix.flat(), local().mix(updates, 0).matrix.flat(), 1e-200);
  });

  it('similarity 1 and warmth 1 is uniform', () => {
    const same = updates.map((update) => ({ ...update, parameters: updates[0]!.parameters }));
    const warm: Heating = { alpha: 100, beta: 1, temperature: 1, exponent: 't/beta' };
    for (const heating of [warm, false as const]) {
      const { matrix } = fellrec({ similarityOn: 'update', heating }).mix(same, 10);
      expectClose(matrix.flat(), uniform().mix(same, 10).matrix.flat(), 1e-12);
    }
  });

  it('the client with the largest loss listens least', () => {
    const heating: Heating = { alpha: 0.7, beta: 5, temperature: 0.05, exponent: 't+1/beta' };
    // Losses of the reference log's round 0; the warmth follows from the formula.
    const losses = [2.091, 2.08, 2.211, 2.152, 2.089];
    const logged = updates.map((update, c) => ({ ...update, loss: losses[c]! }));
    const { warmth } = fellrec({ similarityOn: 'update', heating }).mix(logged, 0);
    expectClose(warmth!, [0.845, 0.86, 0.644, 0.748, 0.847], 1e-3);
  });

  it('fedavg weighs by samples, the same for all', () => {
    const total = fixture.samples.reduce((sum, n) => sum + n, 0);
    const expected = fixture.samples.map((n) => n / total);
    expect(fedavg().mix(updates, 3).matrix).toEqual(updates.map(() => expected));
  });

  it('centralized is for one client', () => {
    expect(centralized().mix([updates[0]!], 0).matrix).toEqual([[1]]);
    expect(() => centralized().mix(updates, 0)).toThrow('put all data into one client');
  });
});
