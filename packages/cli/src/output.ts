/** A result on standard output: JSON where asked for, text otherwise. */
export function print(result: unknown, text: string, { json }: { readonly json?: boolean }): void {
  process.stdout.write(`${json ? JSON.stringify(result, undefined, 2) : text}\n`);
}
