import { readFile } from 'node:fs/promises';
import { z } from 'zod';

/** A file of a run, as its schema says. @throws naming what is wrong with it */
export async function readJson<T>(file: string, schema: z.ZodType<T>): Promise<T> {
  const damaged = (what: string, cause: unknown) =>
    new Error(`run: ${file} is damaged: ${what}; put it back, or train again`, { cause });
  const text = await readFile(file, 'utf8').catch((cause) => {
    throw damaged(cause.code === 'ENOENT' ? 'it is not there' : cause.message, cause);
  });
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw damaged((cause as Error).message, cause);
  }
  const found = schema.safeParse(value);
  if (!found.success) throw damaged(z.prettifyError(found.error), found.error);
  return found.data;
}
