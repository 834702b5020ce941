// What a client does in a round, and what it has to return.
import { differenceOf, notFinite, type Owned } from './checks.ts';
import type { Client, Evaluation, RoundContext, Update } from './client.ts';
import type { ReadParameters } from './parameters/round-parameters.ts';

export interface Job<T> {
  readonly client: string;
  /** @throws {ClientFailure} if it is the client that fails, and not what surrounds it. */
  run(context: RoundContext): Promise<T>;
}

export interface Timed<T> {
  readonly result: T;
  readonly seconds: number;
}

export class ClientFailure extends Error {
  /** The message without the place. */
  readonly reason: string;
  constructor(place: string, reason: string, options?: ErrorOptions) {
    super(`${place}: ${reason}`, options);
    this.reason = reason;
  }
}

/** The client trains from `start`, which has the tensors of `held`, and returns the same. */
export function trainingJob(client: Client, start: ReadParameters, held: Owned): Job<Timed<Update>> {
  return {
    client: client.name,
    async run(context) {
      const place = `round ${context.round + 1}, ${client.name}`;
      const parameters = await start();
      context.signal?.throwIfAborted();
      const seconds = stopwatch();
      const update = await attempt(place, 'training', () => client.train(parameters, context));
      const result = { result: update, seconds: seconds() };
      if (!Number.isFinite(update.loss))
        throw new ClientFailure(
          place,
          `the training loss is ${update.loss}; a lower learning rate or a smaller clipNorm may help`,
        );
      const bad = notFinite(update.parameters);
      if (bad) throw new ClientFailure(place, bad);
      const difference = differenceOf(held, { owner: client.name, tensors: update.parameters });
      if (difference) throw new ClientFailure(`round ${context.round + 1}`, difference);
      return result;
    },
  };
}

export function evaluationJob(client: Client, mixed: ReadParameters): Job<Timed<Evaluation>> {
  return {
    client: client.name,
    async run({ onProgress: _, ...context }) {
      const place = `round ${context.round + 1}, ${client.name}`;
      const parameters = await mixed();
      context.signal?.throwIfAborted();
      const seconds = stopwatch();
      const { loss, samples } = await attempt(place, 'evaluation', () =>
        client.evaluate(parameters, context),
      );
      const result = { result: { loss, samples }, seconds: seconds() };
      if (samples > 0 && !Number.isFinite(loss))
        throw new ClientFailure(place, `the validation loss is ${loss}`);
      return result;
    },
  };
}

/** Evaluates one after another, only the first of them if the client has no validation samples. */
export function judgingJob(client: Client, candidates: readonly ReadParameters[]): Job<Timed<Evaluation[]>> {
  return {
    client: client.name,
    async run(context) {
      const evaluations: Evaluation[] = [];
      let total = 0;
      for (const candidate of candidates) {
        const { result, seconds } = await evaluationJob(client, candidate).run(context);
        evaluations.push(result);
        total += seconds;
        if (result.samples === 0) break;
      }
      return { result: evaluations, seconds: total };
    },
  };
}

/** The evaluation of what the client has judged already. */
export function knownEvaluationJob(client: Client, result: Evaluation): Job<Timed<Evaluation>> {
  return { client: client.name, run: async () => ({ result, seconds: 0 }) };
}

async function attempt<T>(place: string, what: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (cause) {
    const message = cause instanceof Error ? cause.message : String(cause);
    throw new ClientFailure(place, `${what} failed: ${message}`, { cause });
  }
}

/** Seconds since it was made. */
export function stopwatch(): () => number {
  const started = performance.now();
  return () => (performance.now() - started) / 1000;
}
