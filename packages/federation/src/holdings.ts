// Which tensors of the common start each client holds.
import { elementCount, type NamedTensors } from '@fellrec/graph';
import type { Owned } from './checks.ts';
import type { Client } from './client.ts';

/** A client and the tensors that it holds. */
export interface Held extends Owned {
  readonly client: string;
}

export function heldBy(client: Client, initial: NamedTensors): Held {
  const { name } = client;
  if (!client.holds) return { client: name, owner: 'the common start', tensors: initial };
  const tensors = new Map([...initial].filter(([tensor]) => client.holds!(tensor)));
  return { client: name, owner: `what ${name} holds of the common start`, tensors };
}

/** @throws naming the clients that hold nothing, and the tensors that nobody holds. */
export function assertHeld(held: readonly Held[], initial: NamedTensors): void {
  const idle = held.filter(({ tensors }) => tensors.size === 0).map(({ client }) => client);
  if (idle.length > 0)
    throw new Error(`federation: ${idle.join(', ')} would hold no tensor of the common start`);
  const orphans = [...initial.keys()].filter((name) => !held.some(({ tensors }) => tensors.has(name)));
  if (orphans.length > 0)
    throw new Error(
      `federation: no client holds ${orphans.length} of ${initial.size} tensors of the common start: ${orphans.slice(0, 5).join(', ')}`,
    );
}

/** Of all clients together, 4 bytes an element, without the tensors that stay with them. */
export function bytesOf(held: readonly Owned[], stays: (tensor: string) => boolean = () => false): number {
  let elements = 0;
  for (const { tensors } of held)
    for (const [name, { dims }] of tensors) if (!stays(name)) elements += elementCount(dims);
  return 4 * elements;
}
