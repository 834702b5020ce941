// What must hold between clients before their parameters may be mixed.
import { elementCount, type NamedTensors } from '@fellrec/graph';
import type { Candidate } from './strategies/strategy.ts';

export interface Owned {
  readonly owner: string;
  readonly tensors: NamedTensors;
}

/** Names every tensor that is missing, unknown or of another shape, compared with those of `first`; undefined if none. */
export function differenceOf(first: Owned, { owner, tensors }: Owned): string | undefined {
  const mismatches: string[] = [];
  for (const [name, { dims }] of first.tensors) {
    const other = tensors.get(name);
    if (!other) mismatches.push(`${owner} has no "${name}"`);
    else if (other.dims.join() !== dims.join())
      mismatches.push(`"${name}" of ${owner} is [${other.dims.join(', ')}], not [${dims.join(', ')}]`);
    else if (other.data.length !== elementCount(dims))
      mismatches.push(`"${name}" of ${owner} has ${other.data.length} values, not [${dims.join(', ')}]`);
  }
  for (const name of tensors.keys())
    if (!first.tensors.has(name)) mismatches.push(`${owner} has a "${name}"`);
  if (mismatches.length === 0) return undefined;
  return `tensors differ from those of ${first.owner}:\n  ${mismatches.join('\n  ')}`;
}

/** Names the tensors that hold NaN or an infinity; undefined if none do. */
export function notFinite(tensors: NamedTensors): string | undefined {
  const bad = [...tensors].filter(([, { data }]) => !isAllFinite(data)).map(([name]) => name);
  if (bad.length === 0) return undefined;
  return `NaN or infinity in ${bad.length} of ${tensors.size} tensors: ${bad.slice(0, 5).join(', ')}`;
}

/** x - x is 0, or NaN if x is not finite; four sums, so that additions do not wait for each other. */
function isAllFinite(data: Float32Array): boolean {
  let a = 0;
  let b = 0;
  let c = 0;
  let d = 0;
  const whole = data.length - (data.length % 4);
  for (let i = 0; i < whole; i += 4) {
    a += data[i]! - data[i]!;
    b += data[i + 1]! - data[i + 1]!;
    c += data[i + 2]! - data[i + 2]!;
    d += data[i + 3]! - data[i + 3]!;
  }
  for (let i = whole; i < data.length; i++) a += data[i]! - data[i]!;
  return a + b + c + d === 0;
}

/** @throws if a strategy's matrix is not `size` x `size`, has a negative or infinite weight, or a row that is not 1 in sum. */
export function assertRowStochastic(
  matrix: readonly (readonly number[])[],
  size: number,
  strategy: string,
): void {
  if (matrix.length !== size) throw new Error(`${strategy}: ${matrix.length} rows for ${size} clients`);
  for (const [c, row] of matrix.entries()) assertWeights(row, size, `${strategy}: row ${c}`);
}

/** @throws if a client has no candidate, or one that is neither 'start' nor a row of `size` weights as in a matrix. */
export function assertCandidates(
  candidates: readonly (readonly Candidate[])[],
  size: number,
  strategy: string,
): void {
  if (candidates.length !== size)
    throw new Error(`${strategy}: candidates of ${candidates.length} clients for ${size}`);
  for (const [c, own] of candidates.entries()) {
    if (own.length === 0) throw new Error(`${strategy}: client ${c} has no candidate; it needs one at least`);
    for (const { name, row } of own)
      if (row !== 'start') assertWeights(row, size, `${strategy}: candidate "${name}" of client ${c}`);
  }
}

function assertWeights(row: readonly number[], size: number, what: string): void {
  const sum = row.reduce((total, weight) => total + weight, 0);
  if (row.length !== size || !row.every((weight) => weight >= 0) || !(Math.abs(sum - 1) < 1e-9))
    throw new Error(`${what} is [${row.join(', ')}]; it must hold ${size} weights from 0 that sum to 1`);
}
