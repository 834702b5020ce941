// The algebra of dimensions: laws, and agreement with arithmetic once the names have sizes.
import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import { broadcast, type Dim, plus, sameShape, terms, times } from '../src/dim.ts';
import { sizeOf } from './closed-form.ts';

const sizes = { batch: 3, time: 5, past: 7, rows: 2 };
const { dim } = fc.letrec<{ dim: Dim; leaf: Dim }>((tie) => ({
  leaf: fc.oneof(fc.nat(9), fc.constantFrom<Dim[]>('batch', 'time', 'past', 'rows')),
  dim: fc.oneof(
    { depthSize: 'small', withCrossShrink: true },
    tie('leaf'),
    fc.tuple(tie('dim'), tie('dim')).map(([a, b]) => plus(a, b)),
    fc.tuple(tie('dim'), tie('dim')).map(([a, b]) => times(a, b)),
  ),
}));
const law = (holds: (a: Dim, b: Dim, c: Dim) => void) => fc.assert(fc.property(dim, dim, dim, holds));

test('sum and product commute', () =>
  law((a, b) => {
    expect(plus(a, b)).toBe(plus(b, a));
    expect(times(a, b)).toBe(times(b, a));
  }));

test('sum and product associate, and take any number of dimensions', () =>
  law((a, b, c) => {
    expect(plus(plus(a, b), c)).toBe(plus(a, plus(b, c)));
    expect(plus(a, b, c)).toBe(plus(plus(a, b), c));
    expect(times(times(a, b), c)).toBe(times(a, times(b, c)));
    expect(times(a, b, c)).toBe(times(times(a, b), c));
  }));

test('product distributes over sum', () =>
  law((a, b, c) => {
    expect(times(a, plus(b, c))).toBe(plus(times(a, b), times(a, c)));
  }));

test('0 and 1 are neutral, 0 absorbs', () =>
  law((a) => {
    expect(plus(a, 0)).toBe(plus(a));
    expect(times(a, 1)).toBe(times(a));
    expect(times(a, 0)).toBe(0);
    expect([plus(), times()]).toEqual([0, 1]);
  }));

test('expressions stand for what arithmetic gives', () =>
  law((a, b) => {
    expect(sizeOf(plus(a, b), sizes)).toBe(sizeOf(a, sizes) + sizeOf(b, sizes));
    expect(sizeOf(times(a, b), sizes)).toBe(sizeOf(a, sizes) * sizeOf(b, sizes));
    const product = (names: readonly string[]) => names.reduce((p, name) => p * sizeOf(name, sizes), 1);
    const bySum = terms(a).reduce((sum, { coefficient, names }) => sum + coefficient * product(names), 0);
    expect(bySum).toBe(sizeOf(a, sizes));
  }));

test('what is known is a number, what is named is readable', () => {
  expect(plus(2, times(3, 4))).toBe(14);
  expect(times('time', 'batch', 2)).toBe('2*batch*time');
  expect(plus('time+2*past+time')).toBe('2*time+2*past');
  expect(plus('past', 'time', 'past', 1)).toBe('time+2*past+1');
});

test('shapes broadcast as in NumPy', () => {
  expect(broadcast(['batch', 1, 3], ['time', 1])).toEqual(['batch', 'time', 3]);
  expect(broadcast([], [2])).toEqual([2]);
  expect(() => broadcast(['batch', 3], ['time', 3])).toThrow(
    'graph: shapes [batch, 3] and [time, 3] do not broadcast: batch is not time',
  );
  expect(sameShape(['batch', 3], ['batch', 3])).toBe(true);
  expect(sameShape(['batch', 3], ['batch'])).toBe(false);
});
