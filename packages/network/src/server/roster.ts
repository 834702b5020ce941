// Which clients the run is made for, which of them are there, and when it can begin.
import { notAllowed, notNow } from './refusals.ts';
import { RemoteClient, type RemoteClientOptions } from './remote-client.ts';
import type { JoinFacts } from './sessions.ts';
import { ClientTasks } from './tasks.ts';

export interface RosterOptions {
  /** Names of the clients that the run is made for. */
  readonly expected: readonly string[];
  /** Clients that it begins with at least. */
  readonly quorum: number;
  /** How long it waits for all of them; from then on a quorum is enough. */
  readonly waitSeconds: number;
  /** What clients said of themselves when the run began, where it goes on. They belong to it when they are late, too. */
  readonly known?: ReadonlyMap<string, JoinFacts> | undefined;
  /** Why a client with these facts cannot take part; undefined if it can. */
  readonly unfit?: ((facts: JoinFacts) => string | undefined) | undefined;
  /** What of the model a client with these facts trains itself; everything if absent. */
  readonly shareOf?: (facts: JoinFacts) => Pick<RemoteClientOptions, 'holds' | 'split'>;
}

export interface Member {
  readonly client: RemoteClient;
  readonly tasks: ClientTasks;
}

export interface Roster {
  readonly expected: number;
  /** Clients that have joined. */
  count(): number;
  /** @throws PERMISSION_DENIED if the run is not made for it, FAILED_PRECONDITION if it does not fit, or the run began with something else of it, or without it */
  assertMayJoin(name: string, facts: JoinFacts): void;
  join(name: string, facts: JoinFacts): void;
  /** It left because of an error. Before the run begins it has not joined then; later its tasks fail until it joins again. */
  fail(name: string, reason: string): void;
  /** One that has joined. */
  member(name: string): Member;
  /** Everyone of the run, in the order of `expected`, once it can begin. */
  complete(): Promise<readonly RemoteClient[]>;
  /** There is nothing left to do for anyone. */
  finish(): void;
  /** Nobody is to wait for a task any longer. */
  release(): void;
}

export function openRoster({
  expected,
  quorum,
  waitSeconds,
  known = new Map(),
  unfit,
  shareOf,
}: RosterOptions): Roster {
  const members = new Map<string, Member>();
  const joined = new Set<string>();
  const { promise, resolve } = Promise.withResolvers<readonly RemoteClient[]>();
  let isLate = false;
  let hasBegun = false;

  function beginIfReady(): void {
    const isReady = joined.size === expected.length || (isLate && joined.size >= quorum);
    if (hasBegun || !isReady) return;
    hasBegun = true;
    clearTimeout(timer);
    for (const [name, facts] of known) if (!members.has(name)) addMember(name, facts);
    resolve(expected.flatMap((name) => members.get(name)?.client ?? []));
  }
  function addMember(name: string, facts: JoinFacts): void {
    const tasks = members.get(name)?.tasks ?? new ClientTasks(name);
    members.set(name, { tasks, client: new RemoteClient({ name, facts, tasks, ...shareOf?.(facts) }) });
  }
  const timer = setTimeout(
    () => {
      isLate = true;
      beginIfReady();
    },
    Math.min(1000 * waitSeconds, 2 ** 31 - 1),
  ).unref();

  return {
    expected: expected.length,
    count: () => joined.size,
    assertMayJoin(name, facts) {
      if (!expected.includes(name)) throw notAllowed(`the run is not made for ${JSON.stringify(name)}`);
      const member = members.get(name);
      if (!member && hasBegun) throw notNow(`the run has begun without ${name}; join the next one`);
      const reason = unfit?.(facts);
      if (reason !== undefined) throw notNow(reason);
      // Until the run begins, a client may think better of it, after a failed attempt for instance.
      const before = known.get(name) ?? (hasBegun ? member?.client.facts : undefined);
      if (!before) return;
      for (const key of Object.keys(before) as (keyof JoinFacts)[])
        if (facts[key] !== before[key])
          throw notNow(
            `${key} is ${facts[key]}, but was ${before[key]} when the run began with ${name}; go on with the same data and layers`,
          );
    },
    join(name, facts) {
      joined.add(name);
      if (hasBegun) {
        members.get(name)!.tasks.goOn();
        return;
      }
      addMember(name, facts);
      beginIfReady();
    },
    fail(name, reason) {
      if (hasBegun) {
        members.get(name)!.tasks.fail(reason);
        return;
      }
      joined.delete(name);
      members.delete(name);
    },
    member: (name) => members.get(name)!,
    complete: () => promise,
    finish() {
      for (const { tasks } of members.values()) tasks.finish();
    },
    release() {
      for (const { tasks } of members.values()) tasks.release();
    },
  };
}
