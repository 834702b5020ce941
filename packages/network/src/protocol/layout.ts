// Which tokens activations belong to, and which streams of random numbers drop them out, as messages.
import { create } from '@bufbuild/protobuf';
import type { MiddleDropout, TokenLayout } from '@fellrec/models';
import { type Dropout, DropoutSchema } from '#proto/layers_pb';
import { type TokenLayout as LayoutMessage, TokenLayoutSchema } from '#proto/tensor_pb';
import { assertEqual, invalid } from './invalid.ts';

/** Rows of the activations of a layout. */
export function rowsOf({ lengths, time, prefix }: TokenLayout): number {
  return prefix + lengths.length * time;
}

export function encodeLayout({ lengths, time, prefix }: TokenLayout): LayoutMessage {
  return create(TokenLayoutSchema, { lengths: [...lengths], paddedLength: time, prefix });
}

/**
 * The layout of a message, of at most `maxTokens` rows.
 * @throws INVALID_ARGUMENT, naming the field, if it is none.
 */
export function decodeLayout(
  field: string,
  message: LayoutMessage | undefined,
  maxTokens: number,
): TokenLayout {
  if (!message) throw invalid(`${field}: missing`);
  const { lengths, paddedLength: time, prefix } = message;
  if (lengths.length === 0) throw invalid(`${field}.lengths: expected a sequence or more, found none`);
  if (time === 0) throw invalid(`${field}.padded_length: expected 1 or more, found 0`);
  const rows = rowsOf({ lengths, time, prefix });
  if (rows > maxTokens)
    throw invalid(
      `${field}: expected at most ${maxTokens} tokens, ` +
        `found a prefix of ${prefix} and ${lengths.length} sequences of ${time}`,
    );
  const wrong = lengths.findIndex((length) => length <= prefix || length > prefix + time);
  if (wrong >= 0)
    throw invalid(
      `${field}.lengths[${wrong}]: expected ${prefix + 1} to ${prefix + time}, found ${lengths[wrong]}`,
    );
  return { lengths, time, prefix };
}

/** @throws if a number of the stream is not a whole number from 0. */
export function encodeDropout({ seed: [seed, ...stream], sequences }: MiddleDropout): Dropout {
  return create(DropoutSchema, {
    seed: BigInt(wholeNumber(seed)),
    stream: stream.map(encodeName),
    sequences: [...sequences],
  });
}

const maxNames = 16;
const maxNameLength = 256;

/**
 * The streams that a message names.
 * @throws INVALID_ARGUMENT, naming the field, unless there is one of each of `sequences`.
 */
export function decodeDropout(field: string, message: Dropout, sequences: number): MiddleDropout {
  assertEqual(`number of ${field}.sequences`, message.sequences.length, sequences);
  if (message.seed > Number.MAX_SAFE_INTEGER)
    throw invalid(`${field}.seed: expected at most 2^53 - 1, found ${message.seed}`);
  if (message.stream.length > maxNames)
    throw invalid(`${field}.stream: expected at most ${maxNames} names, found ${message.stream.length}`);
  const names = message.stream.map((name, i) => decodeName(`${field}.stream[${i}]`, name));
  return { seed: [Number(message.seed), ...names], sequences: message.sequences };
}

/** A number is `#` and its digits; a string that begins with `#` gets another one in front. */
function encodeName(name: string | number): string {
  if (typeof name === 'number') return `#${wholeNumber(name)}`;
  return name.startsWith('#') ? `#${name}` : name;
}

function decodeName(field: string, name: string): string | number {
  if (name.length > maxNameLength)
    throw invalid(`${field}: expected at most ${maxNameLength} characters, found ${name.length}`);
  if (!name.startsWith('#')) return name;
  if (name.startsWith('##')) return name.slice(1);
  const number = Number(name.slice(1));
  if (!Number.isSafeInteger(number) || number < 0 || name !== `#${number}`)
    throw invalid(`${field}: expected the digits of a number behind "#", found ${JSON.stringify(name)}`);
  return number;
}

function wholeNumber(value: number): number {
  if (!Number.isSafeInteger(value) || value < 0)
    throw new Error(`dropout: ${value} in the name of a stream; a whole number from 0 is needed`);
  return value;
}
