import { constant, float32, linear, type Value } from '@fellrec/graph';
import { expect, test } from 'vitest';
import { nearestAttacks } from '../src/attacks/nearest.ts';
import type { StudyOptions } from '../src/options.ts';
import { runtime } from './shared.ts';

test('an embedding of zeros, as padding has, is no neighbour of anything', async () => {
  const words = constant(float32([0, 0, 3, 0, 0, 1], [3, 2]));
  const cut = { hiddenSize: 2, words: () => words, head: (hidden: Value) => linear(hidden, words) };
  const victims = [{ user: 'u', ids: [1, 2], items: [{ item: 0, places: [0, 1] }], answer: [], target: 0 }];
  const attacks = ['head', 'embedding-cosine', 'embedding-l2'] as const;
  const attack = await nearestAttacks({
    model: { cut, runtime },
    victims,
    attacks,
  } as unknown as StudyOptions);
  const none = float32([], [0, 2]);
  const observed = { victims: float32([2, 0, 0, 0.9], [2, 2]), taught: none, auxiliary: none, held: none };
  const found = (await attack.at(1, observed, []))!;
  expect(found.map(({ attack }) => attack)).toEqual(attacks);
  for (const { claims } of found) expect(claims).toEqual([{ tokens: Int32Array.of(1, 2) }]);
  await attack.dispose();
});
