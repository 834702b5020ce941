// A client's session with the server, which outlives broken connections: calls are repeated, and it joins again if the
// server no longer knows it.
import { setTimeout as sleep } from 'node:timers/promises';
import type { DescService, MessageInitShape } from '@bufbuild/protobuf';
import { type Client, ConnectError, createClient, type Transport } from '@connectrpc/connect';
import {
  FederationService,
  type JoinRequestSchema,
  type JoinResponse,
  SessionEnd,
} from '#proto/federation_pb';
import { failedPart } from './failed-part.ts';
import { explained, isPassing, sessionEndOf } from './trouble.ts';

export interface ConnectOptions {
  readonly transport: Transport;
  /** What the client says of itself. */
  readonly facts: MessageInitShape<typeof JoinRequestSchema>;
  /** How long a call is repeated without getting any further. */
  readonly giveUpSeconds: number;
  /** Told what goes wrong, and what is done about it. */
  readonly onNote?: (text: string) => void;
}

/** How a call goes: repeated, so it must have the same effect twice as once. `progressed` starts the time to give up anew. */
export type Call<S extends DescService, T> = (
  client: Client<S>,
  sessionId: string,
  progressed: () => void,
) => Promise<T>;

export interface Connection {
  /** The present session, as the server opened it. */
  session(): JoinResponse;
  /**
   * Makes calls of any service in the present session, again if they fail for reasons that pass.
   * @throws what `use` throws otherwise, and if all tries within `giveUpSeconds` failed
   */
  call<S extends DescService, T>(service: S, use: Call<S, T>): Promise<T>;
  /** Told of every session after the first one: what the server held for the one before is gone. */
  onSession(listener: (session: JoinResponse) => void): void;
  /** Ends the session. */
  leave(): Promise<void>;
  /** Ends it and tells the server which part of this client failed, if that can be told. Never fails. */
  fail(error: unknown): Promise<void>;
}

/** Of calls that are answered at once. */
export const promptly = { timeoutMs: 30_000 };

/** Of a client that ends with an error, perhaps because there is no server. */
const lastWords = { timeoutMs: 5000 };

const firstDelayMs = 100;
const longestDelayMs = 10_000;

/** Joins. @throws if the server refuses, or cannot be reached within `giveUpSeconds` */
export async function connect(options: ConnectOptions): Promise<Connection> {
  const { transport, facts } = options;
  const federation = createClient(FederationService, transport);
  const listeners: ((session: JoinResponse) => void)[] = [];
  let session = await persistently(options, () => federation.join(facts, promptly));
  let joining: Promise<void> | undefined;

  /** Several calls may find that the session is gone; one of them joins for all. */
  function joinAgain(lost: string): Promise<void> {
    if (session.sessionId !== lost) return Promise.resolve();
    joining ??= federation
      .join(facts, promptly)
      .then((joined) => {
        session = joined;
        for (const listener of listeners) listener(joined);
      })
      .finally(() => {
        joining = undefined;
      });
    return joining;
  }

  return {
    session: () => session,
    call(service, use) {
      const client = createClient(service, transport);
      let lost: string | undefined;
      return persistently(options, async (progressed) => {
        if (lost !== undefined) await joinAgain(lost);
        const { sessionId } = session;
        try {
          return await use(client, sessionId, progressed);
        } catch (error) {
          if (sessionEndOf(error) === SessionEnd.UNKNOWN) lost = sessionId;
          throw error;
        }
      });
    },
    onSession(listener) {
      listeners.push(listener);
    },
    async leave() {
      await federation.leave({ sessionId: session.sessionId }, promptly);
    },
    async fail(error) {
      const reason = failedPart(error);
      await federation.leave({ sessionId: session.sessionId, reason }, lastWords).catch(() => {});
    },
  };
}

/** Tries until it works, after exponentially longer pauses with jitter, so that clients do not come back all at once. */
async function persistently<T>(
  { giveUpSeconds, onNote }: Pick<ConnectOptions, 'giveUpSeconds' | 'onNote'>,
  attempt: (progressed: () => void) => Promise<T>,
): Promise<T> {
  let failedSince: number | undefined;
  let delayMs = firstDelayMs;
  const progressed = () => {
    failedSince = undefined;
    delayMs = firstDelayMs;
  };
  for (;;) {
    try {
      return await attempt(progressed);
    } catch (error) {
      if (!(isPassing(error) || sessionEndOf(error) === SessionEnd.UNKNOWN)) throw explained(error);
      const now = performance.now();
      failedSince ??= now;
      const pauseMs = delayMs * (0.5 + Math.random() / 2);
      delayMs = Math.min(2 * delayMs, longestDelayMs);
      const seconds = (now + pauseMs - failedSince) / 1000;
      const { message } = ConnectError.from(error);
      if (seconds > giveUpSeconds)
        throw new Error(`no success for ${giveUpSeconds} s, so this client gives up: ${message}`, {
          cause: error,
        });
      onNote?.(`${message}; trying again in ${(pauseMs / 1000).toFixed(1)} s`);
      await sleep(pauseMs);
    }
  }
}
