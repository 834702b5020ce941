// States as they are handed to a defence: rows of `width` numbers, one row a token.

/** Number of tokens of states [tokens, width]. @throws if the rows are not whole or a number is not finite. */
export function tokensOf(states: Float32Array, width: number): number {
  if (!(Number.isInteger(width) && width >= 1))
    throw new Error(`width: expected an integer from 1, found ${width}`);
  if (states.length % width !== 0)
    throw new Error(`states: ${states.length} numbers are not whole rows of ${width}; is the width right?`);
  const wrong = states.findIndex((x) => !Number.isFinite(x));
  if (wrong >= 0)
    throw new Error(
      `states: expected finite numbers, found ${states[wrong]} in token ${Math.floor(wrong / width)}`,
    );
  return states.length / width;
}
