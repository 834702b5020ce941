// Who is there: one session a client, which ends when it is left, idle for too long, or replaced.
import { randomBytes } from 'node:crypto';
import { exhausted, notAllowed, replacedSession, unknownSession } from './refusals.ts';

/** What a client says of itself when it joins. */
export interface JoinFacts {
  readonly modelHash: string;
  /** k: layers 0 .. k - 1 and the last one are the client's; undefined: all are. */
  readonly layersKept: number | undefined;
  readonly trainSamples: number;
  readonly validationSamples: number;
  readonly testUsers: number;
  /** Whose users these are: a label. */
  readonly group?: string | undefined;
}

export interface Session {
  readonly id: string;
  readonly client: string;
  readonly facts: JoinFacts;
  /** Aborted when it ends; the reason is what its later requests are refused with. */
  readonly ended: AbortSignal;
}

export interface SessionsOptions {
  readonly maxSessions: number;
  /** A session without a request for so long ends. */
  readonly idleSeconds: number;
}

export interface Sessions {
  readonly idleSeconds: number;
  /** Ends the client's earlier session. @throws RESOURCE_EXHAUSTED */
  open(client: string, facts: JoinFacts): Session;
  /** The client's open session, no longer idle. @throws UNAUTHENTICATED, and PERMISSION_DENIED if it is another client's */
  get(id: string, client: string): Session;
  /** It is not idle: a request that takes long is at work. */
  touch(session: Session): void;
  leave(session: Session): void;
  /** Who has a session. */
  clients(): readonly string[];
  /** Told of every session that ends from now on. */
  onEnd(listener: (session: Session) => void): void;
  /** Resolves as soon as no session is open. */
  empty(): Promise<void>;
  /** Ends all sessions. */
  close(): void;
}

interface Open {
  readonly session: Session;
  readonly ending: AbortController;
  /** By the monotonic clock, in milliseconds. */
  touched: number;
}

export function openSessions({ maxSessions, idleSeconds }: SessionsOptions): Sessions {
  const sessions = new Map<string, Open>();
  const byClient = new Map<string, Open>();
  /** Oldest first. A client whose old session is no longer here is told that it is unknown. */
  const replaced = new Set<string>();
  const listeners: ((session: Session) => void)[] = [];
  const waiting: (() => void)[] = [];
  const idleMs = 1000 * idleSeconds;

  function end(open: Open, reason: Error): void {
    const { session, ending } = open;
    sessions.delete(session.id);
    if (byClient.get(session.client) === open) byClient.delete(session.client);
    ending.abort(reason);
    for (const listener of listeners) listener(session);
    if (sessions.size === 0) for (const resolve of waiting.splice(0)) resolve();
  }
  function endIdle(): void {
    const now = performance.now();
    for (const open of sessions.values()) if (now - open.touched > idleMs) end(open, unknownSession());
  }
  const timer = setInterval(endIdle, Math.min(idleMs, 60_000)).unref();

  return {
    idleSeconds,
    open(client, facts) {
      endIdle();
      const earlier = byClient.get(client);
      if (!earlier && sessions.size >= maxSessions)
        throw exhausted(`${sessions.size} sessions are open, which is the limit; try again later`);
      const id = randomBytes(16).toString('base64url');
      const ending = new AbortController();
      const session: Session = { id, client, facts, ended: ending.signal };
      const opened = { session, ending, touched: performance.now() };
      sessions.set(id, opened);
      byClient.set(client, opened);
      if (earlier) {
        replaced.add(earlier.session.id);
        if (replaced.size > 4 * maxSessions) replaced.delete(replaced.values().next().value!);
        end(earlier, replacedSession());
      }
      return session;
    },
    get(id, client) {
      endIdle();
      const open = sessions.get(id);
      if (!open) throw replaced.has(id) ? replacedSession() : unknownSession();
      if (open.session.client !== client)
        throw notAllowed(`this session is not one of ${client}; join to get one`);
      open.touched = performance.now();
      return open.session;
    },
    touch({ id }) {
      const open = sessions.get(id);
      if (open) open.touched = performance.now();
    },
    leave({ id }) {
      const open = sessions.get(id);
      if (open) end(open, unknownSession());
    },
    clients: () => [...byClient.keys()],
    onEnd(listener) {
      listeners.push(listener);
    },
    async empty() {
      if (sessions.size > 0) await new Promise<void>((resolve) => waiting.push(resolve));
    },
    close() {
      clearInterval(timer);
      for (const open of [...sessions.values()]) end(open, unknownSession());
    },
  };
}
