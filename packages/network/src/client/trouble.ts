// What a failed call means: try again, join again, or give up.
import { Code, ConnectError } from '@connectrpc/connect';
import { SessionEnd, SessionEndedSchema } from '#proto/federation_pb';

/** Said by a server, they pass. */
const passing: ReadonlySet<Code> = new Set([
  Code.Unavailable,
  Code.ResourceExhausted,
  Code.DeadlineExceeded,
  Code.DataLoss,
]);
/** Not said by the server but by what lies in between, they mean that the connection broke. */
const broken: ReadonlySet<Code> = new Set([Code.Aborted, Code.Canceled, Code.Internal, Code.Unknown]);

/** Whether the same call may work later. */
export function isPassing(error: unknown): error is ConnectError {
  if (!(error instanceof ConnectError)) return false;
  const isBroken = !error.isWireError && (broken.has(error.code) || isCutShort(error));
  return (passing.has(error.code) || isBroken) && !isRefusedByTls(error) && !isTooLarge(error);
}

/** Why the server has no such session; undefined if the error says nothing of sessions. */
export function sessionEndOf(error: unknown): SessionEnd | undefined {
  return error instanceof ConnectError ? error.findDetails(SessionEndedSchema)[0]?.why : undefined;
}

/** Whether the server has gone on without a task; a worker may have wrapped its refusal. */
export function isOvertaken(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  if (error instanceof ConnectError && error.isWireError) return error.code === Code.Aborted;
  return isOvertaken(error.cause);
}

/** After so many tries that the last one is the cause. */
export function hasGivenUp(error: unknown): boolean {
  return error instanceof Error && isPassing(error.cause);
}

/** A clear error where another try makes no sense; the error itself otherwise. */
export function explained(error: unknown): unknown {
  if (!(error instanceof ConnectError)) return error;
  if (sessionEndOf(error) === SessionEnd.REPLACED)
    return new Error(
      'this client joined a second time, from another process; end one of them, and start this one again if it is to stay',
      { cause: error },
    );
  if (error.code === Code.Unauthenticated || isRefusedByTls(error))
    return new Error(`the server or this machine refused the credentials: ${error.rawMessage}`, {
      cause: error,
    });
  if (isTooLarge(error))
    return new Error(
      `a message is too large (${error.rawMessage}); compute fewer sequences at once: training.microBatch, generation.batch`,
      { cause: error },
    );
  return error;
}

/** A message that Connect refuses to send or to read: the next try would be as large. */
function isTooLarge({ code, rawMessage }: ConnectError): boolean {
  return code === Code.ResourceExhausted && /(read|write)MaxBytes/.test(rawMessage);
}

/** A stream that stopped between two messages is INVALID_ARGUMENT to Connect. */
function isCutShort({ code, rawMessage }: ConnectError): boolean {
  return code === Code.InvalidArgument && rawMessage.startsWith('protocol error');
}

/** A certificate that one side does not accept stays as it is. */
function isRefusedByTls(error: ConnectError): boolean {
  for (let cause: unknown = error; cause instanceof Error; cause = cause.cause)
    if (
      'code' in cause &&
      typeof cause.code === 'string' &&
      /CERT|^ERR_SSL_|^ERR_TLS_|^UNABLE_TO_/.test(cause.code)
    )
      return true;
  return false;
}
