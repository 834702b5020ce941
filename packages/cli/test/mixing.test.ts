import { expect, test } from 'vitest';
import { mixingResult } from '../src/mixing.ts';

test('a round in a few numbers: of pairs of different clients, and of rows', () => {
  const cosines = [
    [1, 0.5, 0.1],
    [0.5, 1, -0.3],
    [0.1, -0.3, 1],
  ];
  const matrix = [
    [0.5, 0.5, 0],
    [0, 1, 0],
    [0.25, 0.25, 0.5],
  ];
  const round = {
    round: 4,
    clients: ['a', 'b', 'c'],
    mixing: { matrix, cosines, warmth: [1, 0.5, 0.25], chosen: ['fedavg', 'local', 'fedavg'] },
    seconds: { candidates: { a: 1.5, b: 2, c: 0.5 } },
  };
  const found = mixingResult(round);
  expect(found.round).toBe(5);
  expect(found.cosine).toBeCloseTo((0.5 + 0.1 - 0.3) / 3, 12);
  // 1 / (1/4 + 1/4), 1 / 1, 1 / (1/16 + 1/16 + 1/4)
  expect(found.clients).toEqual({
    a: { effectiveClients: 2, warmth: 1, chosen: 'fedavg' },
    b: { effectiveClients: 1, warmth: 0.5, chosen: 'local' },
    c: { effectiveClients: 8 / 3, warmth: 0.25, chosen: 'fedavg' },
  });
  expect(found.effectiveClients).toBeCloseTo((2 + 1 + 8 / 3) / 3, 12);
  expect(found.chosen).toEqual({ fedavg: 2, local: 1 });
  expect(found.candidateSeconds).toBe(4);
  expect(found).not.toHaveProperty('cosineMeans');
});
