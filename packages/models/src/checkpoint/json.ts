// JSON files of a checkpoint's folder.
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { z } from 'zod';

/** A JSON file that holds an object. @throws naming the file if it is missing, no JSON, or something else. */
export async function readJsonObject(file: string): Promise<Record<string, unknown>> {
  if (!existsSync(file)) throw new Error(`model: ${file} does not exist`);
  let json: unknown;
  try {
    json = JSON.parse(await readFile(file, 'utf8'));
  } catch (cause) {
    throw new Error(`model: ${file} is not valid JSON: ${(cause as Error).message}`, { cause });
  }
  const parsed = z.record(z.string(), z.unknown()).safeParse(json);
  if (!parsed.success) throw new Error(`model: ${file} holds no JSON object`);
  return parsed.data;
}
