// Who the clients of a run are, in its folder.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { JoinFacts, RemoteClient } from '@fellrec/network';
import { z } from 'zod';
import { ConfigError } from '../config.ts';
import { readJson } from '../read-json.ts';
import type { ServeOptions } from './options.ts';

export function membersOf(clients: readonly RemoteClient[]): z.infer<typeof membersSchema> {
  return { method: 'remote', clients: clients.map(({ name, facts }) => ({ name, ...facts })) };
}

/** clients.json. */
const membersSchema = z.object({
  method: z.literal('remote'),
  clients: z.array(
    z.object({
      name: z.string(),
      modelHash: z.string(),
      layersKept: z.number().optional(),
      trainSamples: z.number(),
      validationSamples: z.number(),
      testUsers: z.number(),
      group: z.string().optional(),
    }),
  ),
});

/**
 * Clients of the run that goes on, and what they said of themselves; undefined if one begins. Stopped before all clients
 * were there, it has not begun.
 * @throws if there is a run that is neither to go on nor to be replaced, or one of clients in its own process
 */
export async function begunBy(
  directory: string,
  { resume = false, force = false }: ServeOptions,
): Promise<ReadonlyMap<string, JoinFacts> | undefined> {
  if (resume && force)
    throw new ConfigError('serve: --resume goes on with a run, --force replaces it; pass one of them');
  if (!existsSync(join(directory, 'config.json')) || force) return undefined;
  if (!resume)
    throw new Error(
      `run: ${directory} exists; go on with it (--resume), replace it (--force) or choose another name`,
    );
  const members = membersSchema.safeParse(await readJson(join(directory, 'clients.json'), z.unknown()));
  if (!members.success)
    throw new Error(
      `run: clients.json of ${directory} is not of a run with remote clients; go on with "fellrec train --resume", or choose another name:\n${z.prettifyError(members.error)}`,
    );
  return new Map(
    members.data.clients.map(({ name, layersKept, group, ...facts }) => [
      name,
      { layersKept, group, ...facts },
    ]),
  );
}
