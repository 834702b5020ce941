// Rounds of clients that train at the same time, of which some are late or fail.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import type { NamedTensors } from '@fellrec/graph';
import fc from 'fast-check';
import { afterAll, afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  type Client,
  type FederateOptions,
  type FederationEvent,
  type FederationState,
  fedavg,
  federate,
  fellrec,
  type RoundContext,
} from '../src/index.ts';
import type { Job } from '../src/jobs.ts';
import { together } from '../src/participation.ts';
import { halfway, loaded, tensors } from './toy.ts';

const folder = mkdtempSync(join(tmpdir(), 'participation-'));
afterAll(() => rmSync(folder, { recursive: true }));

const initial = tensors({ a: [0, 1], b: [2, 3, 4] });
const strategy = fellrec({
  similarityOn: 'update',
  heating: { alpha: 0.7, beta: 3, temperature: 0.5, exponent: 't/beta' },
});
const four = [1, 2, 3, 4].map((target) => halfway(`client-${target}`, { target, samples: target }));
const [one, two, three] = four as [Client, Client, Client, Client];
const options: FederateOptions = { clients: four.slice(0, 3), strategy, initial, rounds: 3, patience: 9 };
/** Nobody is late. */
const patient = { quorum: 1, deadlineSeconds: 600 };
/** Whoever delivers without a timer of its own is in time. */
const hurried = { quorum: 2, deadlineSeconds: 0.2 };
const never = new Promise<never>(() => {});

async function all(run: FederateOptions): Promise<FederationEvent[]> {
  const events: FederationEvent[] = [];
  for await (const event of federate(run)) events.push(event);
  return events;
}
function only<T extends FederationEvent['type']>(events: readonly FederationEvent[], type: T) {
  return events.filter((event): event is FederationEvent & { type: T } => event.type === type);
}
/** Rounds without what clocks say, their states read while they can be. */
async function finished(run: FederateOptions, listen = async (_: FederationEvent) => {}) {
  const rounds: { record: Record<string, unknown>; parameters: Map<string, NamedTensors>; state: object }[] =
    [];
  for await (const event of federate(run)) {
    await listen(event);
    if (event.type === 'round-finished') {
      const { state, seconds, ...record } = event;
      const read = (await loaded(state)) as { parameters: Map<string, NamedTensors> };
      const timed = { training: Object.keys(seconds.training), evaluation: Object.keys(seconds.evaluation) };
      rounds.push({ record: { ...record, timed }, parameters: read.parameters, state: read });
    }
  }
  return rounds;
}

/** A client that does something else than train, or evaluate, in one round. */
function astray(
  client: Client,
  when: number,
  what: { readonly train?: Client['train']; readonly evaluate?: Client['evaluate'] },
): Client {
  return {
    ...client,
    train: (parameters, context) =>
      (context.round === when ? (what.train ?? client.train) : client.train)(parameters, context),
    evaluate: (parameters, context) =>
      (context.round === when ? (what.evaluate ?? client.evaluate) : client.evaluate)(parameters, context),
  };
}
const delayed = (client: Client, milliseconds: (round: number) => number): Client => ({
  ...client,
  async train(parameters, context) {
    await setTimeout(milliseconds(context.round));
    return client.train(parameters, context);
  },
  async evaluate(parameters, context) {
    await setTimeout(milliseconds(context.round + 1));
    return client.evaluate(parameters, context);
  },
});

let unhandled: unknown[];
const note = (reason: unknown) => unhandled.push(reason);
beforeEach(() => {
  unhandled = [];
  process.on('unhandledRejection', note);
});
afterEach(async () => {
  await setTimeout(0);
  process.off('unhandledRejection', note);
  expect(unhandled).toEqual([]);
});

describe('clients that train at the same time', () => {
  it('all begin before one is done, and evaluate likewise', async () => {
    const barrier = () => {
      let missing = 3;
      let open = () => {};
      const opened = new Promise<void>((resolve) => {
        open = resolve;
      });
      return () => {
        if (--missing === 0) open();
        return opened;
      };
    };
    const [training, evaluation] = [barrier(), barrier()];
    const clients = options.clients.map(
      (client): Client => ({
        ...client,
        train: (parameters, context) => training().then(() => client.train(parameters, context)),
        evaluate: (parameters, context) => evaluation().then(() => client.evaluate(parameters, context)),
      }),
    );
    const events = await all({ ...options, clients, rounds: 1, participation: patient });
    expect(only(events, 'round-finished')[0]!.clients).toEqual(['client-1', 'client-2', 'client-3']);
  });

  it('end with the same bits as one after another, in whatever order they deliver', async () => {
    const expected = await finished({ ...options, clients: four });
    const anyDelays = fc.array(fc.array(fc.nat(4), { minLength: 4, maxLength: 4 }), {
      minLength: 4,
      maxLength: 4,
    });
    await fc.assert(
      fc.asyncProperty(anyDelays, fc.boolean(), async (delays, onDisk) => {
        const clients = four.map((client, c) => delayed(client, (round) => delays[round]![c]!));
        const spill = onDisk ? { directory: folder, aboveBytes: 0 } : undefined;
        const rounds = await finished({
          ...options,
          clients,
          participation: patient,
          ...(spill && { spill }),
        });
        expect(rounds).toEqual(onDisk ? await finished({ ...options, clients: four, spill }) : expected);
      }),
      { numRuns: 12 },
    );
  });

  it('go on at once when all have delivered, and leave no timer', async () => {
    const timers = () => process.getActiveResourcesInfo().filter((name) => name === 'Timeout').length;
    const before = timers();
    const started = performance.now();
    await all({ ...options, participation: patient });
    expect(performance.now() - started).toBeLessThan(10_000);
    expect(timers()).toBeLessThanOrEqual(before);
  });

  it('have their progress told as it comes', async () => {
    const steps = [one, two].map(
      (client): Client => ({
        ...client,
        async train(parameters, context) {
          for (const step of [1, 2]) {
            context.onProgress?.({ step, steps: 2, loss: step });
            await setTimeout(1);
          }
          return client.train(parameters, context);
        },
      }),
    );
    const events = await all({ ...options, clients: steps, rounds: 1, participation: patient });
    expect(only(events, 'client-progress').map(({ client, step }) => `${client} ${step}`)).toEqual([
      'client-1 1',
      'client-2 1',
      'client-1 2',
      'client-2 2',
    ]);
  });

  it('need a quorum that there can be, and a deadline that is a time', async () => {
    for (const quorum of [0, 4, 1.5, Number.NaN])
      await expect(all({ ...options, participation: { ...patient, quorum } })).rejects.toThrow(
        `the quorum is ${quorum}; 3 clients train, so it can be 1 to 3`,
      );
    for (const deadlineSeconds of [-1, Number.NaN])
      await expect(all({ ...options, participation: { ...patient, deadlineSeconds } })).rejects.toThrow(
        'the deadline is',
      );
    const unlimited = { quorum: 1, deadlineSeconds: Number.POSITIVE_INFINITY };
    const slow = options.clients.map((client) => delayed(client, () => 5));
    const rounds = await finished({ ...options, clients: slow, rounds: 1, participation: unlimited });
    expect(rounds[0]!.record['absent']).toBeUndefined();
  });
});

describe('a client that is late', () => {
  const contexts: RoundContext[] = [];
  const starts: NamedTensors[] = [];
  const late = (result: () => Promise<never> = () => never): Client =>
    astray(
      {
        ...two,
        train(parameters, context) {
          starts.push(parameters);
          return two.train(parameters, context);
        },
      },
      1,
      {
        train(parameters, context) {
          starts.push(parameters);
          contexts.push(context);
          return result();
        },
      },
    );
  beforeEach(() => {
    contexts.length = 0;
    starts.length = 0;
  });
  const run = (client: Client): FederateOptions => ({
    ...options,
    clients: [one, client, three],
    participation: hurried,
  });

  for (const [place, spill] of [
    ['in memory', undefined],
    ['on disk', { directory: folder, aboveBytes: 0 }],
  ] as const)
    it(`is absent from the round, keeps its start, and takes part in the next one, ${place}`, async () => {
      const rounds = await finished({ ...run(late()), ...(spill && { spill }) });
      const whole = await finished({ ...options, ...(spill && { spill }) });
      expect(rounds[0]).toEqual(whole[0]);
      const { record, parameters } = rounds[1]!;
      expect(record).toMatchObject({
        clients: ['client-1', 'client-3'],
        absent: ['client-2'],
        samples: { 'client-1': 1, 'client-3': 3 },
        bytes: { down: 2 * 20, up: 2 * 20 },
        timed: { training: ['client-1', 'client-3'], evaluation: ['client-1', 'client-3'] },
      });
      const best = record['best'] as Record<string, unknown>;
      expect(best['client-2']).toEqual((rounds[0]!.record['best'] as typeof best)['client-2']);
      const start = rounds[0]!.parameters.get('client-2');
      expect(parameters.get('client-2')).toEqual(start);
      expect([...parameters.keys()]).toEqual(['client-1', 'client-2', 'client-3']);
      expect(starts).toEqual([initial, start, start]);
      expect(rounds[2]!.record).toMatchObject({ clients: ['client-1', 'client-2', 'client-3'] });
      expect(rounds[2]!.record).not.toHaveProperty('absent');

      // Those who took part mix as if the late one did not exist.
      const two = [one, three];
      const alone = await finished({
        ...options,
        clients: two,
        rounds: 2,
        resume: await stateAfter(whole[0]!),
      });
      expect((record['mixing'] as { matrix: number[][] }).matrix).toEqual(
        (alone[0]!.record['mixing'] as { matrix: number[][] }).matrix,
      );
      for (const name of ['client-1', 'client-3'])
        expect(parameters.get(name)).toEqual(alone[0]!.parameters.get(name));
    });

  it('is told why, and so are those who listen', async () => {
    const events = await all(run(late()));
    expect(only(events, 'client-absent')).toEqual([
      {
        type: 'client-absent',
        round: 1,
        client: 'client-2',
        phase: 'training',
        reason: 'it was later than 0.2 s',
      },
    ]);
    expect(events.some(({ type }) => type === 'client-failed')).toBe(false);
    const { aborted, reason } = contexts[0]!.signal!;
    expect(aborted).toBe(true);
    expect(reason).toEqual(new Error('round 2 went on without client-2: it was later than 0.2 s'));
  });

  it('changes nothing by what it returns later, says or throws', async () => {
    const expected = await finished(run(late()));
    const afterwards = (settle: () => unknown) => {
      let settled = false;
      const client = late(async () => {
        const { signal, onProgress } = contexts[0]!;
        await new Promise<void>((resolve) => {
          signal!.addEventListener('abort', () => {
            onProgress?.({ step: 1, steps: 1, loss: 1 });
            resolve();
          });
        });
        settled = true;
        return settle() as never;
      });
      return { client, settled: () => settled };
    };
    const returns = afterwards(() => ({
      parameters: tensors({ a: [9, 9], b: [9, 9, 9] }),
      loss: 1,
      samples: 9,
    }));
    const garbage = afterwards(() => ({ parameters: tensors({}), loss: Number.NaN, samples: 9 }));
    const throws = afterwards(() => {
      throw new Error('too late');
    });
    for (const { client, settled } of [returns, garbage, throws]) {
      contexts.length = 0;
      // The listener is still busy with another client when the late one has returned.
      const busy = async ({ type, ...event }: FederationEvent) => {
        expect(type).not.toBe('client-failed');
        if (type === 'client-trained' && 'round' in event && event.round === 1) await setTimeout(250);
      };
      expect(await finished(run(client), busy)).toEqual(expected);
      expect(settled()).toBe(true);
    }
    contexts.length = 0;
    const events = await all(run(afterwards(() => never).client));
    expect(only(events, 'client-progress')).toEqual([]);
  });

  it('is waited for until there is a quorum, whatever the deadline', async () => {
    const slow = [0, 60, 500].map((wait, c) => delayed(four[c]!, () => wait));
    const participation = { quorum: 2, deadlineSeconds: 0 };
    const [round] = await finished({ ...options, clients: slow, rounds: 1, participation });
    expect(round!.record).toMatchObject({ clients: ['client-1', 'client-2'], absent: ['client-3'] });
  });

  it('in evaluation has no validation loss in this round, and keeps its best', async () => {
    const reasons: unknown[] = [];
    const client = astray(two, 1, {
      evaluate(_, { signal }) {
        signal!.addEventListener('abort', () => reasons.push(signal!.reason));
        return never;
      },
    });
    const rounds = await finished(run(client));
    const whole = await finished(options);
    const { record } = rounds[1]!;
    const expected = whole[1]!.record as {
      validation: Record<string, { loss: number; samples: number }>;
      mixing: unknown;
    };
    expect(record).toMatchObject({ clients: ['client-1', 'client-2', 'client-3'], mixing: expected.mixing });
    expect(record).not.toHaveProperty('absent');
    const { 'client-1': first, 'client-3': third } = expected.validation;
    expect(record['validation']).toEqual({ 'client-1': first, 'client-3': third });
    const { 'client-2': latest } = rounds[0]!.record['validation'] as typeof expected.validation;
    expect(record['carried']).toEqual({ 'client-2': latest });
    expect(record['validationLoss']).toBeCloseTo((first!.loss + latest!.loss + third!.loss) / 3, 12);
    const best = (round: number) => (rounds[round]!.record['best'] as Record<string, unknown>)['client-2'];
    expect(best(1)).toEqual(best(0));
    expect(rounds[1]!.parameters).toEqual(whole[1]!.parameters);
    expect(reasons).toEqual([new Error('round 2 went on without client-2: it was later than 0.2 s')]);
    const events = await all(run(client));
    expect(only(events, 'client-absent').map(({ phase, client }) => `${phase} ${client}`)).toEqual([
      'evaluation client-2',
    ]);
  });

  it('that was never evaluated has no best', async () => {
    const client = astray(two, 0, { evaluate: () => never });
    const [round] = await finished({ ...run(client), rounds: 1 });
    expect(Object.keys(round!.record['best'] as object)).toEqual(['client-1', 'client-3']);
  });

  async function stateAfter({ state, parameters }: Awaited<ReturnType<typeof finished>>[number]) {
    const read = [...parameters].map(([name, own]) => [name, async () => own] as const);
    return { ...(state as FederationState), parameters: new Map(read) };
  }
});

describe('a client that fails', () => {
  const failing =
    (message: string): Client['train'] =>
    () =>
      Promise.reject(new Error(message));

  it('is absent from the round, with its reason, and takes part in the next one', async () => {
    const client = astray(two, 1, { train: failing('out of memory') });
    const events = await all({ ...options, clients: [one, client, three], participation: patient });
    const failure = {
      round: 1,
      client: 'client-2',
      phase: 'training',
      reason: 'training failed: out of memory',
    };
    expect(only(events, 'client-failed')).toEqual([{ type: 'client-failed', ...failure }]);
    expect(only(events, 'client-absent')).toEqual([{ type: 'client-absent', ...failure }]);
    const rounds = only(events, 'round-finished');
    expect(rounds.map(({ absent }) => absent)).toEqual([undefined, ['client-2'], undefined]);
    const read = (round: number) => rounds[round]!.state.parameters.get('client-2')!();
    expect(await read(1)).toEqual(await read(0));
  });

  it('by what it returns, or throws at once, is absent likewise', async () => {
    const returns =
      (update: Partial<Awaited<ReturnType<Client['train']>>>): Client['train'] =>
      async (parameters) => ({ parameters, loss: 1, samples: 1, ...update });
    const reasonOf = async (train: Client['train']) => {
      const clients = [one, astray(two, 0, { train }), three];
      const events = await all({ ...options, clients, rounds: 1, participation: patient });
      return only(events, 'client-absent').map(({ reason }) => reason);
    };
    expect(await reasonOf(returns({ loss: Number.NaN }))).toEqual([
      'the training loss is NaN; a lower learning rate or a smaller clipNorm may help',
    ]);
    expect(await reasonOf(returns({ parameters: tensors({ a: [0, Number.NaN], b: [1, 2, 3] }) }))).toEqual([
      'NaN or infinity in 1 of 2 tensors: a',
    ]);
    expect(await reasonOf(returns({ parameters: tensors({ a: [0, 1] }) }))).toEqual([
      'tensors differ from those of the common start:\n  client-2 has no "b"',
    ]);
    const atOnce = () => {
      throw new Error('no connection');
    };
    expect(await reasonOf(atOnce)).toEqual(['training failed: no connection']);
  });

  it('in evaluation lacks a validation loss', async () => {
    const client = astray(two, 0, { evaluate: async () => ({ loss: Number.NaN, samples: 3 }) });
    const events = await all({
      ...options,
      clients: [one, client, three],
      rounds: 1,
      participation: patient,
    });
    expect(only(events, 'client-failed')).toEqual([
      {
        type: 'client-failed',
        round: 0,
        client: 'client-2',
        phase: 'evaluation',
        reason: 'the validation loss is NaN',
      },
    ]);
    expect(Object.keys(only(events, 'round-finished')[0]!.validation)).toEqual(['client-1', 'client-3']);
  });

  it('with so many others that there can be no quorum ends the run, which names all', async () => {
    const signals: AbortSignal[] = [];
    const hanging = astray(three, 1, {
      train(_, { signal }) {
        signals.push(signal!);
        return never;
      },
    });
    const clients = [
      astray(one, 1, { train: async () => setTimeout(5).then(() => Promise.reject(new Error('gone'))) }),
      astray(two, 1, { train: failing('out of memory') }),
      hanging,
    ];
    const seen: string[] = [];
    const failed = (async () => {
      for await (const event of federate({ ...options, clients, participation: { ...patient, quorum: 2 } }))
        if (event.type === 'client-failed') seen.push(event.client);
    })();
    await expect(failed).rejects.toThrow(
      /^round 2: 2 of 3 clients failed, so a quorum of 2 is out of reach:\n {2}client-1: training failed: gone\n {2}client-2: training failed: out of memory$/,
    );
    expect(seen).toEqual(['client-2', 'client-1']);
    expect(signals[0]!.reason).toEqual(new Error('round 2 ended before client-3 was done'));
  });
});

describe('a listener that leaves', () => {
  it('has those who still work told', async () => {
    const signals: AbortSignal[] = [];
    const hanging: Client = {
      ...two,
      train(_, { signal }) {
        signals.push(signal!);
        return never;
      },
    };
    const run = { ...options, clients: [one, hanging], participation: { ...patient, quorum: 2 } };
    for await (const event of federate(run)) if (event.type === 'client-trained') break;
    expect(signals[0]!.reason).toEqual(new Error('round 1 ended before client-2 was done'));
  });
});

describe('what is no fault of a client', () => {
  it('ends the round as it is', async () => {
    const jobs: Job<number>[] = [
      { client: 'a', run: async () => 1 },
      { client: 'b', run: () => Promise.reject(new Error('the disk is gone')) },
    ];
    const reading = (async () => {
      for await (const _ of together(jobs, 0, patient));
    })();
    await expect(reading).rejects.toThrow(/^the disk is gone$/);
  });
});

describe('a round that nobody with validation samples took part in', () => {
  const blind: Client = { ...one, evaluate: async () => ({ loss: 0, samples: 0 }) };
  const run = (absent: number) => ({
    ...options,
    clients: [blind, astray(two, absent, { train: () => never })],
    strategy: fedavg(),
    participation: { ...hurried, quorum: 1 },
  });

  it('counts the losses of the round before', async () => {
    const [first, second] = await finished(run(1));
    expect(second!.record['validationLoss']).toBe(first!.record['validationLoss']);
    expect(second!.record['roundsWithoutImprovement']).toBe(1);
  });

  it('cannot be judged if there was none', async () => {
    await expect(all(run(0))).rejects.toThrow('no client has validation samples in round 1');
  });
});

describe('a client without validation samples that is first evaluated later', () => {
  it('changes nothing in what all together have', async () => {
    const rising: Client = { ...one, evaluate: async (_, { round }) => ({ loss: 1 + round, samples: 10 }) };
    const late = astray({ ...two, evaluate: async () => ({ loss: 0, samples: 0 }) }, 0, {
      train: () => never,
    });
    const events = await all({
      ...options,
      clients: [rising, late],
      strategy: fedavg(),
      rounds: 2,
      participation: { ...hurried, quorum: 1 },
    });
    const records = only(events, 'round-finished');
    expect(records.map(({ clients }) => clients.length)).toEqual([1, 2]);
    expect(records[1]!.bestOverall).toEqual({ round: 0, loss: 1 });
    expect(records[1]!.roundsWithoutImprovement).toBe(1);
  });
});

describe('a client of high loss that misses the first round', () => {
  it('does not make that round the best of all', async () => {
    const falling = (client: Client, height: number): Client => ({
      ...client,
      evaluate: async (_, { round }) => ({ loss: height * 0.9 ** round, samples: 10 }),
    });
    const blind: Client = { ...three, evaluate: async () => ({ loss: 0, samples: 0 }) };
    const late = astray(falling(one, 4), 0, { train: () => never });
    const events = await all({
      ...options,
      clients: [late, falling(two, 1), blind],
      strategy: fedavg(),
      rounds: 6,
      patience: 2,
      participation: { ...hurried, quorum: 2 },
    });
    const records = only(events, 'round-finished');
    expect(records.map(({ bestOverall }) => bestOverall.round)).toEqual([0, 1, 2, 3, 4, 5]);
    expect(records.at(-1)!.best['client-3']!.round).toBe(5);
  });
});
