// Refusals of requests by code; those of a message's content are in protocol/invalid.ts.
import { Code, ConnectError } from '@connectrpc/connect';
import { SessionEnd, SessionEndedSchema } from '#proto/federation_pb';

/** Right, but not now. */
export function notNow(message: string): ConnectError {
  return new ConnectError(message, Code.FailedPrecondition);
}

/** Too late: things went on without it. */
export function late(message: string): ConnectError {
  return new ConnectError(message, Code.Aborted);
}

export function notFound(message: string): ConnectError {
  return new ConnectError(message, Code.NotFound);
}

export function notAllowed(message: string): ConnectError {
  return new ConnectError(message, Code.PermissionDenied);
}

/** Asked again later it may work. */
export function exhausted(message: string): ConnectError {
  return new ConnectError(message, Code.ResourceExhausted);
}

export function unknownSession(): ConnectError {
  return sessionEnded('unknown session: it has expired or was left; join again', SessionEnd.UNKNOWN);
}

export function replacedSession(): ConnectError {
  return sessionEnded('the session was replaced by a newer one of the same client', SessionEnd.REPLACED);
}

function sessionEnded(message: string, why: SessionEnd): ConnectError {
  return new ConnectError(message, Code.Unauthenticated, undefined, [
    { desc: SessionEndedSchema, value: { why } },
  ]);
}
