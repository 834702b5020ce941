import type { LogLevel } from '@fellrec/network';
import { ConfigError } from '../config.ts';
import type { Progress } from '../progress.ts';

export interface ServeOptions {
  readonly host: string;
  /** 0: any free one. */
  readonly port: number;
  /** PEM files. */
  readonly tls?: { readonly cert: string; readonly key: string } | undefined;
  /** Authority of the clients' certificates, a PEM file. */
  readonly clientCa?: string | undefined;
  /** tokens.json. */
  readonly tokens?: string | undefined;
  /** Names of the clients (default: those that have tokens). */
  readonly clients?: readonly string[] | undefined;
  /** Clients that a round needs (default: all). */
  readonly quorum?: number | undefined;
  /** After which a round goes on with a quorum. */
  readonly deadlineSeconds: number;
  /** How long the start waits for all clients; then a quorum is enough. */
  readonly waitSeconds: number;
  /** The first middle layer that this server computes for clients, unless its part of the model begins later. */
  readonly firstLayer: number;
  /** Held for clients by the middle layers, at most. */
  readonly maxBytes: number;
  readonly maxTokens: number;
  readonly logLevel: LogLevel;
  /** Folder for what clients send, to audit one's own server with; nothing is kept if absent. */
  readonly record?: string | undefined;
  /** Goes on with the run where it was stopped; one that had not begun begins. */
  readonly resume?: boolean | undefined;
  readonly force?: boolean | undefined;
  readonly progress?: Progress;
  /** Aborted to stop: what is in flight is answered, complete rounds stay, and the run can go on later. */
  readonly signal?: AbortSignal;
  readonly onListening?: (address: string) => void;
}

/** `known` are the clients that have tokens. */
export function assertOptions(o: ServeOptions, expected: readonly string[], known: readonly string[]): void {
  const unknown = o.clientCa === undefined ? expected.filter((name) => !known.includes(name)) : [];
  const twice = expected.filter((name, i) => expected.indexOf(name) !== i);
  const problems = [
    o.tokens === undefined &&
      o.clientCa === undefined &&
      'nobody could prove who they are; pass --tokens or --client-ca ("fellrec keys" makes both)',
    expected.length === 0 && 'no client is expected; name them with --names',
    o.tokens !== undefined &&
      unknown.length > 0 &&
      `${unknown.join(', ')}: no such client in ${o.tokens}, so it could not join; there are ${known.join(', ')}`,
    twice.length > 0 && `${twice.join(', ')} is named twice`,
    o.quorum !== undefined &&
      (o.quorum < 1 || o.quorum > expected.length) &&
      `--quorum ${o.quorum} of ${expected.length} clients; 1 to ${expected.length} are possible`,
  ].filter((problem) => typeof problem === 'string');
  if (problems.length > 0) throw new ConfigError(`serve: ${problems.join('\n')}`);
}
