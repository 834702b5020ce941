// Dropout masks of an encoder's adapter.
import type { Feeds, Value } from '@fellrec/graph';
import { dropoutFeeds } from '../batch.ts';

/** Masks of all tokens, and of the first tokens alone: every sequence draws from a stream of its own. */
export function encoderDropout(
  masks: ReadonlyMap<string, Value>,
  rate: number,
  sequences: readonly { readonly stream: number; readonly tokens: number }[],
  time: number,
  seed: readonly [number, ...(string | number)[]],
): Feeds {
  const split = (ofFirst: boolean) =>
    new Map([...masks].filter(([, { shape }]) => (shape[0] === 'batch') === ofFirst));
  const first = sequences.map(({ stream }) => ({ stream, tokens: 1, stride: 1, labels: 0 }));
  const all = sequences.map(({ stream, tokens }) => ({ stream, tokens, stride: time, labels: 0 }));
  return {
    ...dropoutFeeds(split(true), rate, first, seed),
    ...dropoutFeeds(split(false), rate, all, seed),
  };
}
