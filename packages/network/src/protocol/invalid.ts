// Refusals of what a message says, whoever reads it.
import { Code, ConnectError } from '@connectrpc/connect';

/** What a message says cannot be: INVALID_ARGUMENT. */
export function invalid(message: string): ConnectError {
  return new ConnectError(message, Code.InvalidArgument);
}

/** @throws INVALID_ARGUMENT, naming the field and both, if they differ. */
export function assertEqual(field: string, found: number, expected: number): void {
  if (found !== expected) throw invalid(`${field}: expected ${expected}, found ${found}`);
}
