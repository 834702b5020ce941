// Why a client failed, in its own words: fit to be printed, whoever wrote it.

const maxCharacters = 500;

/** One line, without the control and formatting characters that could rewrite a terminal or a log. */
export function plainReason(text: string): string {
  const line = text
    .slice(0, 4 * maxCharacters)
    .replace(/[\p{C}\p{Z}]+/gu, ' ')
    .trim();
  return line.slice(0, maxCharacters).toWellFormed() || 'no reason given';
}
