// What a server can be watched by: numbers for Prometheus, and one line of JSON for each RPC. Neither ever holds what
// messages, tokens or keys are made of, and no number is told apart by client.
import { Code, ConnectError, type ContextKey, createContextKey, type Interceptor } from '@connectrpc/connect';
import { type Logger, pino, stdTimeFunctions } from 'pino';
import { Counter, Gauge, Histogram, Registry } from 'prom-client';

/** An RPC from the arrival of its headers to the end of its answer. */
export interface Call {
  /** As the services declare it, such as "GetTask". */
  readonly method: string;
  /** Empty where nobody was authenticated. */
  readonly client: string;
  receivedBytes: number;
  sentBytes: number;
  /** Why it failed; absent while nothing has. */
  code?: Code;
}

/** The call that a context belongs to; there is none without a network. */
export const callKey: ContextKey<Call | undefined> = createContextKey(undefined, { description: 'call' });

/** Notes on the call what its service fails with. */
export function failures(log: Logger): Interceptor {
  return (next) => async (request) => {
    const call = request.contextValues.get(callKey);
    const note = (reason: unknown) => {
      const known = reason instanceof ConnectError;
      // Whoever is torn from its work by a client that has gone did not fail.
      const code = known ? reason.code : request.signal.aborted ? Code.Canceled : Code.Internal;
      if (call) call.code = code;
      // Connect answers anything but its own errors with "internal error": what it was is written here or nowhere.
      if (!known && code === Code.Internal)
        log.error({ method: request.method.name, stack: (reason as Error)?.stack }, 'a service failed');
    };
    try {
      const response = await next(request);
      return response.stream ? { ...response, message: watched(response.message, note) } : response;
    } catch (reason) {
      note(reason);
      throw reason;
    }
  };
}

async function* watched<T>(messages: AsyncIterable<T>, note: (reason: unknown) => void): AsyncIterable<T> {
  try {
    yield* messages;
  } catch (reason) {
    note(reason);
    throw reason;
  }
}

export interface ServerMetrics {
  /** Rounds that are over. */
  readonly rounds: Counter;
  /** The present round, from 0. */
  readonly round: Gauge;
  /** Counts what a call of the middle layers took and gave, in bytes of activations. */
  layers(call: { readonly bytesIn: number; readonly bytesOut: number }): void;
  /** Counts an RPC that has ended. */
  observe(call: Call, seconds: number): void;
  /** Everything in Prometheus' text format. */
  text(): Promise<string>;
  readonly contentType: string;
}

/** What is read when somebody asks. */
export interface ServerReadings {
  /** Clients with an open session. */
  readonly clientsJoined: number;
  /** Passes that wait for the middle layers. */
  readonly queueLength: number;
  /** Bytes that the middle layers keep for clients. */
  readonly heldBytes: number;
}

/** Metrics of one server, in a registry of its own. */
export function serverMetrics(readings: () => ServerReadings | undefined = () => undefined): ServerMetrics {
  const registry = new Registry();
  const registers = [registry];
  const reading = (name: string, help: string, of: keyof ServerReadings) =>
    new Gauge({
      name,
      help,
      registers,
      collect() {
        this.set(readings()?.[of] ?? 0);
      },
    });
  reading('fellrec_clients_joined', 'Clients with an open session', 'clientsJoined');
  reading('fellrec_queue_length', 'Passes that wait for the middle layers', 'queueLength');
  reading('fellrec_held_bytes', 'Bytes that the middle layers keep for clients', 'heldBytes');
  const bytes = new Counter({
    name: 'fellrec_rpc_bytes_total',
    help: 'Bytes of RPC bodies',
    labelNames: ['direction'],
    registers,
  });
  const activations = new Counter({
    name: 'fellrec_activation_bytes_total',
    help: 'Bytes of activations and their gradients through the middle layers',
    labelNames: ['direction'],
    registers,
  });
  const seconds = new Histogram({
    name: 'fellrec_rpc_seconds',
    help: 'Seconds from the headers of an RPC to the end of its answer',
    labelNames: ['method'],
    // A token through a few layers takes milliseconds, waiting for a task a minute.
    buckets: [0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60],
    registers,
  });
  const errors = new Counter({
    name: 'fellrec_rpc_errors_total',
    help: 'RPCs that failed',
    labelNames: ['method', 'code'],
    registers,
  });
  new Gauge({
    name: 'process_resident_memory_bytes',
    help: 'Resident memory of the process',
    registers,
    collect() {
      this.set(process.memoryUsage.rss());
    },
  });
  return {
    rounds: new Counter({ name: 'fellrec_rounds_total', help: 'Rounds that are over', registers }),
    round: new Gauge({ name: 'fellrec_round', help: 'The present round, from 0', registers }),
    layers({ bytesIn, bytesOut }) {
      activations.inc({ direction: 'received' }, bytesIn);
      activations.inc({ direction: 'sent' }, bytesOut);
    },
    observe({ method, code, receivedBytes, sentBytes }, taken) {
      seconds.observe({ method }, taken);
      bytes.inc({ direction: 'received' }, receivedBytes);
      bytes.inc({ direction: 'sent' }, sentBytes);
      if (code !== undefined) errors.inc({ method, code: codeName(code) });
    },
    text: () => registry.metrics(),
    contentType: registry.contentType,
  };
}

/** Connect's name of a code, such as "resource_exhausted". */
function codeName(code: Code): string {
  return Code[code].replace(/(?<!^)[A-Z]/g, '_$&').toLowerCase();
}

/** A line for an RPC that has ended: debug if it went well, else warn. */
export function logCall(
  log: Logger,
  { method, client, code, receivedBytes, sentBytes }: Call,
  seconds: number,
): void {
  const milliseconds = Math.round(seconds * 1000);
  const level = code === undefined ? 'debug' : 'warn';
  const outcome = code === undefined ? 'ok' : codeName(code);
  log[level]({ method, client, code: outcome, milliseconds, receivedBytes, sentBytes }, 'rpc');
}

export type LogLevel = 'debug' | 'info' | 'warn' | 'error' | 'silent';

/** Lines of JSON on standard error. */
export function serverLog(level: LogLevel): Logger {
  const formatters = { level: (label: string) => ({ level: label }) };
  return pino({ level, base: null, timestamp: stdTimeFunctions.isoTime, formatters }, process.stderr);
}
