// A run's folder, which survives being killed at any point. A round is complete when its folder has its name: it is
// written under another one, flushed and renamed. Everything else is derived from complete rounds when it is opened.
//
//   config.json, clients.json    what the run is
//   rounds/0007/round.json       a RoundRecord
//   rounds/0007/<client>/        parameters after mixing; of the last two rounds, and of those that are to be kept
//   best/<client>/               parameters of the client's best round, and best.json that says which
//   events.jsonl                 everything the federation said
//   result.json, test-users.json what it came to, written by who evaluates it
//   lock                         the process that has it open
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import type { NamedTensors } from '@fellrec/graph';
import type { BestRound, FederationEvent, FederationState, RoundRecord } from '../events.ts';
import { eventsFile } from './events-file.ts';
import { asideSuffix, copyInto, namesIn, placeWhole, toJson, writeWhole } from './files.ts';
import { lock } from './lock.ts';

/** How parameters lie in a folder, and which stay. */
export interface ParametersFormat {
  /** Whether a round's parameters are kept for good (default: of no round). */
  readonly keeps?: (round: number) => boolean;
  write(directory: string, parameters: NamedTensors): Promise<void>;
  read(directory: string): Promise<NamedTensors>;
}

export interface RunStore {
  readonly directory: string;
  /** config.json and clients.json, as they were given. */
  config(): unknown;
  clients(): unknown;
  /** Writes what an event says. @throws if it cannot be written; the folder is then as after the last complete round. */
  record(event: FederationEvent): Promise<void>;
  /** Where the run goes on, from the disk; undefined before a round is complete. */
  state(): Promise<FederationState | undefined>;
  /** All complete rounds. */
  history(): Promise<RoundRecord[]>;
  /** A client's best parameters; undefined if it has none. */
  best(client: string): Promise<(BestRound & { readonly parameters: NamedTensors }) | undefined>;
  /** A client's parameters after a round that was kept. @throws if they are not there. */
  parameters(client: string, round: number): Promise<NamedTensors>;
  /** @throws if the client has none. */
  bestParameters(client: string): Promise<NamedTensors>;
  /** Lets other processes in. */
  close(): Promise<void>;
}

export interface RunContents {
  readonly config: unknown;
  readonly clients: unknown;
  /** Replaces a run that is there. */
  readonly force?: boolean;
}

const ours = [
  'config.json',
  'clients.json',
  'rounds',
  'best',
  'events.jsonl',
  'report.html',
  'result.json',
  'test-users.json',
  'lock',
];

/** @throws if a folder holds a run already, unless `force`, or if it holds anything else. */
export async function assertCreatable(directory: string, { force = false } = {}): Promise<void> {
  const present = await namesIn(directory);
  const isRun = present.includes('config.json');
  if (isRun && !force)
    throw new Error(
      `run: ${directory} exists; go on with it (--resume), replace it (--force) or choose another name`,
    );
  const foreign = present.filter((name) => !ours.includes(name.replace(/(\.tmp|(?<=^lock)\.\d+\..*)$/, '')));
  if (!isRun && foreign.length > 0)
    throw new Error(
      `run: ${directory} holds other files (${foreign.slice(0, 3).join(', ')}); choose another name`,
    );
}

/** Makes a run's folder. @throws as `assertCreatable` does. */
export async function createRun(
  directory: string,
  { config, clients, force = false }: RunContents,
  format: ParametersFormat,
): Promise<RunStore> {
  await assertCreatable(directory, { force });
  return writing(directory, 'make the run', async () => {
    await mkdir(directory, { recursive: true });
    const unlock = await lock(directory);
    try {
      // config.json goes first and comes last: only a folder that has it is a run.
      for (const name of ours.filter((name) => name !== 'lock'))
        await rm(join(directory, name), { recursive: true, force: true });
      await mkdir(join(directory, 'rounds'));
      await mkdir(join(directory, 'best'));
      await writeFile(join(directory, 'events.jsonl'), '');
      await writeWhole(join(directory, 'clients.json'), toJson(clients));
      await writeWhole(join(directory, 'config.json'), toJson(config));
      return await openLocked(directory, format, unlock);
    } catch (error) {
      await unlock();
      throw error;
    }
  });
}

/**
 * Opens a run's folder for one process and mends what a killed one left. @throws if it is no run, or if another process
 * has it open.
 */
export async function openRun(directory: string, format: ParametersFormat): Promise<RunStore> {
  if (!(await namesIn(directory)).includes('config.json'))
    throw new Error(`run: ${directory} is no run (it has no config.json)`);
  const unlock = await lock(directory);
  try {
    return await openLocked(directory, format, unlock);
  } catch (error) {
    await unlock();
    throw error;
  }
}

async function openLocked(
  directory: string,
  format: ParametersFormat,
  unlock: () => Promise<void>,
): Promise<RunStore> {
  const folder = (round: number) => join(directory, 'rounds', String(round).padStart(4, '0'));
  const bestFolder = (client: string) => join(directory, 'best', client);
  const [config, clients] = await Promise.all([
    readJson(join(directory, 'config.json')),
    readJson(join(directory, 'clients.json')),
  ]);

  const recordOf = async (round: number) =>
    (await readJson(join(folder(round), 'round.json'))) as RoundRecord;

  async function completeRounds(): Promise<number[]> {
    const names = (await namesIn(join(directory, 'rounds'))).filter((name) => /^\d+$/.test(name));
    return names.map(Number).sort((a, b) => a - b);
  }

  async function lastRecord(): Promise<RoundRecord | undefined> {
    const last = (await completeRounds()).at(-1);
    return last === undefined ? undefined : recordOf(last);
  }

  async function finishRound(event: FederationEvent & { type: 'round-finished' }): Promise<void> {
    const { type: _, state, ...record } = event;
    // The events first: if it ends in between, they are cut back to the last complete round.
    await events.append(event);
    await events.flush();
    await placeWhole(folder(record.round), async (aside) => {
      for (const client of everyone(record)) {
        assertFolderName(client);
        await mkdir(join(aside, client));
        await format.write(join(aside, client), await state.parameters.get(client)!());
      }
      await writeFile(join(aside, 'round.json'), toJson(record));
    });
    await derive(record);
  }

  /** best/ and the space of old rounds follow from the last complete round. */
  async function derive(last: RoundRecord): Promise<void> {
    for (const [client, best] of Object.entries(last.best)) {
      const stored = await readJson(join(bestFolder(client), 'best.json')).catch(() => undefined);
      if (isDeepStrictEqual(stored, best)) continue;
      // Its round is the last one, or the one before if a process died here: both still have their parameters.
      await placeWhole(bestFolder(client), async (aside) => {
        await copyInto(join(folder(best.round), client), aside);
        await writeFile(join(aside, 'best.json'), toJson(best));
      });
    }
    for (let round = last.round - 2; round >= 0; round--) {
      if (format.keeps?.(round)) continue;
      const old = (await namesIn(folder(round))).filter((name) => name !== 'round.json');
      for (const client of old) await rm(join(folder(round), client), { recursive: true });
    }
  }

  const finished = await lastRecord();
  for (const parent of [directory, join(directory, 'rounds'), join(directory, 'best')])
    for (const name of await namesIn(parent))
      if (name.endsWith(asideSuffix)) await rm(join(parent, name), { recursive: true });
  const events = eventsFile(join(directory, 'events.jsonl'), finished?.round);
  if (finished) await derive(finished);

  /** From its own folder, which follows from the last complete round: round.json grows with the square of the clients. */
  async function best(client: string) {
    if (!(await namesIn(bestFolder(client))).includes('best.json')) return undefined;
    const found = (await readJson(join(bestFolder(client), 'best.json'))) as BestRound;
    return { ...found, parameters: await format.read(bestFolder(client)) };
  }

  return {
    directory,
    config: () => config,
    clients: () => clients,
    record: (event) =>
      event.type === 'round-finished'
        ? writing(directory, `write round ${event.round + 1}`, () => finishRound(event))
        : writing(directory, 'write events.jsonl', () => events.append(event)),
    async state() {
      const last = await lastRecord();
      if (!last) return undefined;
      const parameters = new Map(
        everyone(last).map((client) => [client, () => format.read(join(folder(last.round), client))]),
      );
      const best = new Map(Object.entries(last.best));
      const validation = new Map(Object.entries({ ...last.carried, ...last.validation }));
      const { bestOverall, roundsWithoutImprovement, clients, mixing } = last;
      return {
        nextRound: last.round + 1,
        parameters,
        best,
        validation,
        bestOverall,
        roundsWithoutImprovement,
        previous: { clients, mixing },
      };
    },
    history: async () => Promise.all((await completeRounds()).map(recordOf)),
    best,
    async parameters(client, round) {
      if (!(await namesIn(folder(round))).includes(client))
        throw new Error(
          `run: ${folder(round)} has no parameters of "${client}", which its item vectors were computed with; start the run again with --force`,
        );
      return format.read(join(folder(round), client));
    },
    async bestParameters(client) {
      const found = await best(client);
      if (!found) throw new Error(`run: ${directory} has no best parameters of "${client}"`);
      return found.parameters;
    },
    close: unlock,
  };
}

/** Whose parameters a round has. */
function everyone({ clients, absent = [] }: RoundRecord): readonly string[] {
  return [...clients, ...absent];
}

/** Says what could not be written, and that the run is as it was before. */
async function writing<T>(directory: string, what: string, write: () => Promise<T>): Promise<T> {
  try {
    return await write();
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    if (code === undefined) throw cause;
    const reason = code === 'ENOSPC' ? 'no space is left on the disk' : message;
    throw new Error(
      `run: cannot ${what} in ${directory}: ${reason}. Complete rounds are safe; go on with --resume once that is solved`,
      { cause },
    );
  }
}

function assertFolderName(client: string): void {
  if (
    !/^[\p{L}\p{N}_][\p{L}\p{N}_. -]*$/u.test(client) ||
    client === 'round.json' ||
    client.endsWith(asideSuffix)
  )
    throw new Error(`run: "${client}" cannot name a folder; use letters, digits, "_", "-" and "."`);
}

async function readJson(file: string): Promise<unknown> {
  const text = await readFile(file, 'utf8');
  try {
    return JSON.parse(text) as unknown;
  } catch (cause) {
    throw new Error(`run: ${file} is damaged: ${(cause as Error).message}`, { cause });
  }
}
