// The new tokens of beams, checked against what is kept for them.
import type { DecodeRequest } from '@fellrec/models';
import type { DecodeRequest as DecodeMessage } from '#proto/layers_pb';
import { decodeActivations } from '../protocol/activations.ts';
import { assertEqual, invalid } from '../protocol/invalid.ts';
import type { Kept } from './layers-session.ts';
import { notNow } from './refusals.ts';

/** @throws FAILED_PRECONDITION without a kept cache; INVALID_ARGUMENT if the message does not fit it. */
export function decodeNextTokens(
  message: DecodeMessage,
  kept: Kept,
  limits: { readonly hiddenSize: number; readonly tokens: number },
): DecodeRequest {
  if (kept.for !== 'cache')
    throw notNow(
      `Decode: ${kept.for === 'nothing' ? kept.why : 'the last forward pass was kept for Backward'}`,
    );
  const { users, beams, parents } = message;
  if (users.length === 0) throw invalid('users: expected a sequence or more, found none');
  if (beams === 0) throw invalid('beams: expected 1 or more, found 0');
  const rows = users.length * beams;
  if (rows > limits.tokens)
    throw invalid(
      `beams: expected at most ${limits.tokens} rows, found ${users.length} users of ${beams} beams`,
    );
  assertUsers(users, kept.users);
  assertEqual('number of parents', parents.length, rows);
  if (kept.beams !== undefined) assertParents(message, { users: kept.users, beams: kept.beams });
  const states = decodeActivations('states', message.states, { rows, columns: limits.hiddenSize });
  // Ignored in the first call: whatever they are, they have to be rows.
  return { states, users, beams, parents: kept.beams === undefined ? parents.map(() => 0) : parents };
}

function assertUsers(users: readonly number[], goingOn: readonly number[]): void {
  const known = new Set(goingOn);
  for (const [i, user] of users.entries()) {
    if (!known.has(user)) throw invalid(`users[${i}]: expected a sequence that goes on, found ${user}`);
    if (i > 0 && user <= users[i - 1]!)
      throw invalid(`users[${i}]: expected one after ${users[i - 1]}, found ${user}`);
  }
}

/** Each row goes on from a row of its own sequence. */
function assertParents(
  { users, beams, parents }: DecodeMessage,
  before: { readonly users: readonly number[]; readonly beams: number },
): void {
  assertEqual('beams', beams, before.beams);
  const places = new Map(before.users.map((user, place) => [user, place]));
  for (const [row, parent] of parents.entries()) {
    const from = beams * places.get(users[Math.floor(row / beams)]!)!;
    if (parent < from || parent >= from + beams)
      throw invalid(`parents[${row}]: expected ${from} to ${from + beams - 1}, found ${parent}`);
  }
}
