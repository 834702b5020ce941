// A client's training sequences as a server recorded them, and which sample each of them is: to attack what really came.
import {
  type AuditedModel,
  type AuditedSequence,
  depths,
  type Release,
  readCapture,
  type SequenceMaker,
} from '@fellrec/audit';
import type { Float32Tensor } from '@fellrec/graph';
import type { Trained } from '@fellrec/models';
import { type Dataset, trainingSamples } from '@fellrec/recsys';

export interface Captured {
  /** The depth that the states come from. */
  readonly k: number;
  /** Under names of their own; and whose they are. */
  readonly sequences: readonly AuditedSequence[];
  readonly users: ReadonlySet<string>;
  /** Puts what was recorded in place of their states. */
  readonly release: Release;
}

export interface CaptureOptions {
  readonly folder: string;
  /** Whose states (default: those of the only client that sent any). */
  readonly client?: string | undefined;
}

interface Recorded {
  readonly sequence: AuditedSequence;
  readonly states: Float32Tensor;
}

/**
 * At most `count` different sequences. Each is the client's own sequence of that length whose states are nearest: that
 * is how it is scored, the attacks do not know it.
 * @throws if the recording has no training of such a client, or none that is of this data
 */
export async function capturedSequences(
  { folder, client }: CaptureOptions,
  { model, maker, trained }: { model: AuditedModel; maker: SequenceMaker; trained: Trained | undefined },
  { users }: Dataset,
  count: number,
): Promise<Captured> {
  const { passes } = await readCapture(folder);
  const training = passes.filter((pass) => pass.keep === 'gradient');
  const names = [...new Set(training.map((pass) => pass.client))];
  const name = client ?? names[0];
  if (name === undefined || !names.includes(name) || (client === undefined && names.length > 1))
    throw new Error(
      `audit: ${folder} has training of ${names.join(', ') || 'nobody'}; ${names.length > 1 ? 'say whose, with --client' : 'has the client kept some layers only?'}`,
    );
  const own = users.flatMap((user) => trainingSamples(user)).flatMap((sample) => maker.history(sample) ?? []);
  const found = new Map<AuditedSequence, Recorded>();
  const [{ k }] = training.filter((pass) => pass.client === name) as [(typeof training)[number]];
  const known = await statesAt(model, own, k, trained);
  for (const pass of training) {
    if (pass.client !== name || pass.k !== k || found.size >= count) continue;
    for (const states of await pass.states()) {
      const nearest = nearestOf(states, known);
      if (nearest && found.size < count && !found.has(nearest))
        found.set(nearest, { sequence: { ...nearest, user: `recorded ${found.size}` }, states });
    }
  }
  if (found.size === 0)
    throw new Error(`audit: no sequence of ${name} in ${folder} is one of this data folder`);
  const recorded = new Map([...found.values()].map(({ sequence, states }) => [sequence.user, states]));
  return {
    k,
    sequences: [...found.values()].map(({ sequence }) => sequence),
    users: new Set([...found.keys()].map(({ user }) => user)),
    release: (states, user) => recorded.get(user) ?? states,
  };
}

/** The states of each sequence, [tokens, d]. */
async function statesAt(
  model: AuditedModel,
  sequences: readonly AuditedSequence[],
  k: number,
  trained: Trained | undefined,
): Promise<Map<AuditedSequence, Float32Array>> {
  const places = sequences.map(({ ids }) => [...ids.keys()]);
  const found = new Map<AuditedSequence, Float32Array>();
  for await (const { depth, states } of depths(model, [{ sequences, places, trained }], k)) {
    if (depth !== k) continue;
    const { data, dims } = states[0]!;
    let from = 0;
    for (const sequence of sequences) {
      const size = sequence.ids.length * dims[1]!;
      found.set(sequence, data.subarray(from, from + size));
      from += size;
    }
  }
  return found;
}

function nearestOf(
  { data }: Float32Tensor,
  known: ReadonlyMap<AuditedSequence, Float32Array>,
): AuditedSequence | undefined {
  let best: { readonly sequence: AuditedSequence; readonly distance: number } | undefined;
  for (const [sequence, states] of known) {
    if (states.length !== data.length) continue;
    let distance = 0;
    for (let i = 0; i < data.length; i++) distance += (data[i]! - states[i]!) ** 2;
    if (!best || distance < best.distance) best = { sequence, distance };
  }
  return best?.sequence;
}
