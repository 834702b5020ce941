// Golden fixtures, and how far computed values are from theirs.
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { NamedTensors, Tensor } from '@fellrec/graph';
import { z } from 'zod';

/** `cases.json` of a fixture. @throws naming the file if it is missing, no JSON, or not as `schema` says. */
export async function readCases<T>(directory: string, schema: z.ZodType<T>): Promise<T> {
  const file = join(directory, 'cases.json');
  const text = await readFile(file, 'utf8').catch((cause) => {
    throw new Error(`verify: cannot read ${file}; give a folder of golden values`, { cause });
  });
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new Error(`verify: ${file} is not valid JSON: ${(cause as Error).message}`, { cause });
  }
  const parsed = schema.safeParse(json);
  if (!parsed.success) throw new Error(`verify: ${file}:\n${z.prettifyError(parsed.error)}`);
  return parsed.data;
}

export interface VerifiedGroup {
  readonly group: string;
  /** Largest difference found; for sequences the number of tokens that differ. */
  readonly difference: number;
  readonly tolerance: number;
  readonly pass: boolean;
}

/** The largest difference of each tensor from the expected one of its name, or its share of that one's largest value. */
export function namedDifferences(
  found: NamedTensors,
  expected: ReadonlyMap<string, Tensor>,
  prefix: string,
  kind: 'absolute' | 'relative',
): number[] {
  return [...found].map(([name, { data }]) => {
    const golden = expectedTensor(expected, `${prefix}${name}`).data as Float32Array;
    let difference = 0;
    let largest = 0;
    for (let i = 0; i < data.length; i++) {
      difference = worse(difference, Math.abs(data[i]! - golden[i]!));
      largest = Math.max(largest, Math.abs(golden[i]!));
    }
    return kind === 'absolute' || largest === 0 ? difference : difference / largest;
  });
}

/** The larger of two differences; one that is no number is worst of all. */
export function worse(a: number, b: number): number {
  return Number.isNaN(b) ? Number.POSITIVE_INFINITY : Math.max(a, b);
}

/** @throws if the fixture has no such tensor. */
export function expectedTensor(tensors: ReadonlyMap<string, Tensor>, name: string): Tensor {
  const tensor = tensors.get(name);
  if (!tensor) throw new Error(`verify: expected.safetensors has no "${name}"`);
  return tensor;
}
