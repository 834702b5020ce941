// What a client says of an error to the server: which part failed, by the word that our messages begin with. The message
// stays here, for it may quote a title or name a file.

export function failedPart(error: unknown): string {
  const message = error instanceof Error ? error.message : String(error);
  return /^([a-z]{2,20}): /.exec(message)?.[1] ?? 'unknown';
}
