import { expect, test } from 'vitest';
import { elementCount, float32, int64, zeros } from '../src/tensor.ts';

test('tensors hold as many values as their dimensions say', () => {
  expect(float32([1, 2], [2, 1])).toEqual({ dtype: 'float32', dims: [2, 1], data: Float32Array.of(1, 2) });
  expect(int64([1, -2], [2]).data).toEqual(BigInt64Array.of(1n, -2n));
  expect(zeros([2, 0, 3]).data).toHaveLength(0);
  expect(elementCount([])).toBe(1);
  expect(() => float32([1, 2], [3])).toThrow('tensor: 2 values do not fill [3]');
  expect(() => int64([1, 2], [])).toThrow('tensor: 2 values do not fill []');
});

test('float32 takes an array as it is', () => {
  const data = Float32Array.of(1);
  expect(float32(data, [1]).data).toBe(data);
});
