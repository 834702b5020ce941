// Forms of similarity and smoothed cosines against NumPy, and what they keep to whatever the cosines.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { fellrec, type PreviousRound, type SimilarityForm } from '../src/index.ts';
import { similarities, smoothCosines } from '../src/similarity-forms.ts';
import { expectClose } from './expect-close.ts';
import { fixture, reports } from './strategies-fixture.ts';

const of = (similarity?: SimilarityForm) => fellrec({ similarityOn: 'update', heating: false, similarity });

const anyForm: fc.Arbitrary<SimilarityForm> = fc.oneof(
  fc.constantFrom<SimilarityForm>({ form: 'shifted' }, { form: 'relative' }),
  fc
    .double({ min: 0.1, max: 100, noNaN: true })
    .map((sharpness) => ({ form: 'attention' as const, sharpness })),
);
const anyCosines = fc.integer({ min: 1, max: 8 }).chain((n) =>
  fc
    .array(fc.array(fc.double({ min: -1, max: 1, noNaN: true }), { minLength: n, maxLength: n }), {
      minLength: n,
      maxLength: n,
    })
    .map((rows) =>
      rows.map((row, i) => row.map((_, j) => (i === j ? 1 : rows[Math.min(i, j)]![Math.max(i, j)]!))),
    ),
);

describe('a form of similarity', () => {
  for (const { form, matrix, similarity } of fixture.forms)
    it(`${form.form}${form.sharpness ? ` ${form.sharpness}` : ''} is what its formula says`, () => {
      const mixing = of(form).mix(reports, { round: 0, cosines: fixture.cosines.update });
      expectClose(mixing.similarity!.flat(), similarity.flat(), 1e-12);
      expectClose(mixing.matrix.flat(), matrix.flat(), 1e-12);
    });

  it('is shifted without smoothing where none is named', () => {
    const statistics = { round: 0, cosines: fixture.cosines.update };
    const expected = of({ form: 'shifted', smoothing: 0 }).mix(reports, statistics);
    expect(of().mix(reports, statistics)).toEqual(expected);
    expect(expected).not.toHaveProperty('smoothed');
  });

  it('is in [0, 1], 1 of a client with itself, and larger where the cosine is', () => {
    fc.assert(
      fc.property(anyForm, anyCosines, (form, cosines) => {
        for (const [i, row] of similarities(cosines, form).entries()) {
          expect(row[i]).toBe(1);
          for (const [j, d] of row.entries()) {
            expect(d).toBeGreaterThanOrEqual(0);
            expect(d).toBeLessThanOrEqual(1);
            for (const [k, other] of row.entries())
              if (j !== i && k !== i && cosines[i]![j]! > cosines[i]![k]!)
                expect(d).toBeGreaterThanOrEqual(other);
          }
        }
      }),
    );
  });

  it('relative has a 1 between two clients, attention in every row, if only there is a cosine above 0', () => {
    fc.assert(
      fc.property(anyCosines, (cosines) => {
        const others = (rows: readonly (readonly number[])[]) =>
          rows.map((row, i) => row.filter((_, j) => j !== i));
        fc.pre(cosines.length > 1 && Math.max(...others(cosines).flat()) > 1e-9);
        expect(Math.max(...others(similarities(cosines, { form: 'relative' })).flat())).toBe(1);
        for (const row of others(similarities(cosines, { form: 'attention' })))
          expect(Math.max(...row)).toBe(1);
      }),
    );
  });

  it('relative is the identity where no cosine between two clients is above 0', () => {
    const cosines = [
      [1, -0.5, 0],
      [-0.5, 1, -0.1],
      [0, -0.1, 1],
    ];
    expect(similarities(cosines, { form: 'relative' })).toEqual([
      [1, 0, 0],
      [0, 1, 0],
      [0, 0, 1],
    ]);
  });

  it('has a sharpness above 0 and a smoothing from 0 to below 1', () => {
    for (const sharpness of [0, -1, Number.NaN, Number.POSITIVE_INFINITY])
      expect(() => of({ form: 'attention', sharpness })).toThrow(`the sharpness is ${sharpness}; it must be`);
    for (const smoothing of [1, -0.1, Number.NaN])
      expect(() => of({ form: 'shifted', smoothing })).toThrow(`the smoothing is ${smoothing}; it can be`);
  });
});

describe('cosines smoothed over rounds', () => {
  it('are what the formula says for each pair by name, while clients come and go', () => {
    const strategy = of({ form: 'relative', smoothing: fixture.smoothing });
    let previous: PreviousRound | undefined;
    for (const [round, { clients, cosines, smoothed }] of fixture.smoothed.entries()) {
      const present = clients.map((client) => ({ client, loss: 1, samples: 1 }));
      const mixing = strategy.mix(present, { round, cosines, previous });
      expectClose(mixing.smoothed!.flat(), smoothed.flat(), 1e-12);
      expectClose(mixing.similarity!.flat(), similarities(smoothed, { form: 'relative' }).flat(), 1e-12);
      previous = { clients, mixing };
    }
  });

  it('stay where they are while the cosines do', () => {
    fc.assert(
      fc.property(anyCosines, fc.double({ min: 0, max: 0.99, noNaN: true }), (cosines, smoothing) => {
        const clients = cosines.map((_, c) => `${c}`);
        const before = { clients, smoothed: cosines };
        expectClose(smoothCosines({ cosines, clients, before, smoothing }).flat(), cosines.flat(), 1e-12);
      }),
    );
  });
});
