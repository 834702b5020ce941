// The round: order, early stopping, bests, and every way in which a client can go wrong.
import { describe, expect, it } from 'vitest';
import type { Client, FederateOptions, FederationEvent, Update } from '../src/index.ts';
import { fedavg, federate, fellrec, local } from '../src/index.ts';
import { loaded, quadratic, tensors } from './toy.ts';

const initial = tensors({ x: [0, 0] });
const defaults = { strategy: local(), initial, rounds: 3, patience: 5 };

async function all(options: FederateOptions): Promise<FederationEvent[]> {
  const events: FederationEvent[] = [];
  for await (const event of federate(options)) events.push(event);
  return events;
}

function only<T extends FederationEvent['type']>(events: readonly FederationEvent[], type: T) {
  return events.filter((event): event is FederationEvent & { type: T } => event.type === type);
}

/** A client that learns nothing and whose validation losses are given. */
function scripted(name: string, losses: readonly number[], samples = 1): Client {
  return {
    name,
    samples: 1,
    train: async (parameters) => ({ parameters, loss: 1, samples: 1 }),
    evaluate: async (_, { round }) => ({ loss: losses[round]!, samples }),
  };
}

describe('early stopping', () => {
  // The validation losses over all clients of the reference implementation's log, rounds 0 to 29.
  const log = [
    2.2158, 1.96977, 1.54431, 1.20488, 1.0613, 0.99559, 0.92854, 0.86371, 0.83146, 0.82295, 0.81714, 0.81293,
    0.80963, 0.80696, 0.80434, 0.80226, 0.80009, 0.79878, 0.79717, 0.7959, 0.79554, 0.79454, 0.79429, 0.79446,
    0.79423, 0.79494, 0.79509, 0.79636, 0.7969, 0.79909,
  ];

  it('ends at round 29 of the reference log, the best is 24', async () => {
    const clients = [scripted('a', [...log, ...log])];
    const events = await all({ ...defaults, clients, rounds: 75 });
    expect(only(events, 'stopped-early')).toEqual([{ type: 'stopped-early', round: 29, bestRound: 24 }]);
    expect(events.at(-1)).toEqual({
      type: 'run-finished',
      rounds: 30,
      bestOverall: { round: 24, loss: 0.79423 },
    });
  });

  it('does nothing more when a stopped run goes on', async () => {
    const clients = [scripted('a', [...log, ...log])];
    const finished = only(await all({ ...defaults, clients, rounds: 75 }), 'round-finished');
    const events = await all({ ...defaults, clients, rounds: 75, resume: finished.at(-1)!.state });
    expect(events.map(({ type }) => type)).toEqual(['run-started', 'stopped-early', 'run-finished']);
  });

  it('weighs the clients by validation samples, and each client has a best of its own', async () => {
    const clients = [scripted('a', [3, 1, 2], 1), scripted('b', [2, 4, 1], 3)];
    const finished = only(await all({ ...defaults, clients }), 'round-finished');
    expect(finished.map(({ validationLoss }) => validationLoss)).toEqual([9 / 4, 13 / 4, 5 / 4]);
    expect(finished.at(-1)!.best).toEqual({ a: { round: 1, loss: 1 }, b: { round: 2, loss: 1 } });
    expect(finished.at(-1)!.bestOverall).toEqual({ round: 2, loss: 1.25 });
  });

  it('a client without validation samples is best when all together are', async () => {
    const clients = [scripted('a', [3, 1, 2]), scripted('b', [0, 0, 0], 0)];
    const finished = only(await all({ ...defaults, clients }), 'round-finished');
    expect(finished.at(-1)!.best['b']).toEqual({ round: 1, loss: 1 });
  });

  it('needs a validation sample somewhere', async () => {
    const clients = [scripted('a', [0], 0)];
    await expect(all({ ...defaults, clients })).rejects.toThrow('no client has validation samples');
  });
});

describe('a round', () => {
  const clients = [quadratic('a', { target: [1, 0] }), quadratic('b', { target: [0, 1], samples: 30 })];

  it('says what happens in its order', async () => {
    const events = await all({ ...defaults, clients, rounds: 1 });
    const lines = events.map((event) => ('client' in event ? `${event.type} ${event.client}` : event.type));
    expect(lines).toEqual([
      'run-started',
      'round-started',
      'client-progress a',
      'client-progress a',
      'client-progress a',
      'client-trained a',
      'client-progress b',
      'client-progress b',
      'client-progress b',
      'client-trained b',
      'aggregated',
      'client-evaluated a',
      'client-evaluated b',
      'round-finished',
      'run-finished',
    ]);
  });

  it('counts the bytes both ways', async () => {
    const [finished] = only(await all({ ...defaults, clients, rounds: 1 }), 'round-finished');
    expect(finished!.bytes).toEqual({ down: 2 * 2 * 4, up: 2 * 2 * 4 });
  });

  it('mixes from a snapshot: fedavg gives all the same, and the next round starts from it', async () => {
    const starts: number[][] = [];
    const spied = clients.map(
      (client): Client => ({
        ...client,
        train: (parameters, context) => {
          starts.push([...parameters.get('x')!.data]);
          return client.train(parameters, context);
        },
      }),
    );
    await all({ ...defaults, clients: spied, strategy: fedavg(), rounds: 2 });
    const pull = 1 - 0.8 ** 3;
    const expected = [Math.fround(0.25 * Math.fround(pull)), Math.fround(0.75 * Math.fround(pull))];
    expect(starts).toEqual([[0, 0], [0, 0], expected, expected]);
  });

  it('goes on from a state as if it had never stopped', async () => {
    const strategy = fellrec({
      similarityOn: 'update',
      heating: { alpha: 0.7, beta: 5, temperature: 1, exponent: 't/beta' },
    });
    const whole = only(await all({ ...defaults, clients, strategy, rounds: 6 }), 'round-finished');
    const resume = whole[2]!.state;
    const rest = only(await all({ ...defaults, clients, strategy, rounds: 6, resume }), 'round-finished');
    const plain = ({ seconds: _, state, ...event }: (typeof whole)[number]) =>
      loaded(state).then((read) => ({ ...event, state: read }));
    expect(await Promise.all(rest.map(plain))).toEqual(await Promise.all(whole.slice(3).map(plain)));
  });

  it('goes on with its tensors in the order of the start, whatever order they were stored in', async () => {
    const orders: string[] = [];
    const client: Client = {
      ...scripted('a', [3, 2, 1]),
      async train(parameters) {
        orders.push([...parameters.keys()].join());
        return { parameters, loss: 1, samples: 1 };
      },
    };
    const run = { ...defaults, clients: [client], initial: tensors({ y: [1], x: [2] }) };
    const [first] = only(await all({ ...run, rounds: 1 }), 'round-finished');
    const stored = new Map([['a', async () => tensors({ x: [2], y: [1] })]]);
    await all({ ...run, resume: { ...first!.state, parameters: stored } });
    expect(orders).toEqual(['y,x', 'y,x', 'y,x']);

    const other = { ...first!.state, parameters: new Map([['a', async () => tensors({ x: [2, 3] })]]) };
    await expect(all({ ...run, resume: other })).rejects.toThrow(
      /the state to go on from: .*\n {2}a has no "y"\n {2}"x" of a is \[2\], not \[1\]$/,
    );
  });

  it('reports progress while the client still trains', async () => {
    let release = () => {};
    const waiting: Client = {
      ...scripted('a', [1]),
      async train(parameters, { onProgress }) {
        onProgress?.({ step: 1, steps: 2, loss: 5 });
        await new Promise<void>((resolve) => {
          release = resolve;
        });
        return { parameters, loss: 1, samples: 1 };
      },
    };
    const seen: string[] = [];
    for await (const event of federate({ ...defaults, clients: [waiting], rounds: 1 })) {
      seen.push(event.type);
      if (event.type === 'client-progress') release();
    }
    expect(seen).toContain('client-trained');
  });

  it('leaves out a client without samples, and says so once', async () => {
    const idle = quadratic('idle', { target: [5, 5], samples: 0 });
    const events = await all({ ...defaults, clients: [...clients, idle], strategy: fedavg() });
    expect(only(events, 'client-skipped')).toEqual([{ type: 'client-skipped', client: 'idle' }]);
    const others = events.filter((event) => 'client' in event && event.client === 'idle');
    expect(others.length).toBe(1);
    expect(only(events, 'round-finished').at(-1)!.clients).toEqual(['a', 'b']);
  });

  it('leaves out what only a client without samples holds', async () => {
    const initial = tensors({ x: [0, 0], deeper: [1] });
    const some = clients.map((client) => ({ ...client, holds: (name: string) => name === 'x' }));
    const idle = quadratic('idle', { target: [5, 5], samples: 0 });
    const events = await all({
      ...defaults,
      initial,
      clients: [...some, idle],
      strategy: fedavg(),
      rounds: 1,
    });
    const { state } = only(events, 'round-finished')[0]!;
    expect([...(await state.parameters.get('a')!()).keys()]).toEqual(['x']);
  });
});

describe('what goes wrong names client and round', () => {
  const good = quadratic('good', { target: [1, 0] });
  const failing = (train: Client['train']): Client => ({ ...quadratic('bad', { target: [1, 0] }), train });
  /** Fails in round 1 only. */
  const inRoundOne = (change: (update: Update) => Update): Client => {
    const honest = quadratic('bad', { target: [1, 0] });
    return failing(async (parameters, context) => {
      const update = await honest.train(parameters, context);
      return context.round === 1 ? change(update) : update;
    });
  };
  const fails = (bad: Client) => expect(all({ ...defaults, clients: [good, bad] })).rejects;

  it('a loss that is no number', async () => {
    await fails(inRoundOne((update) => ({ ...update, loss: Number.NaN }))).toThrow(
      'round 2, bad: the training loss is NaN',
    );
    await fails(inRoundOne((update) => ({ ...update, loss: Number.POSITIVE_INFINITY }))).toThrow(
      'round 2, bad: the training loss is Infinity',
    );
  });

  it('parameters that are no numbers', async () => {
    for (const value of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY])
      await fails(inRoundOne((update) => ({ ...update, parameters: tensors({ x: [0, value] }) }))).toThrow(
        'round 2, bad: NaN or infinity in 1 of 1 tensors: x',
      );
  });

  it('a validation loss that is no number', async () => {
    await fails({ ...good, name: 'bad', evaluate: async () => ({ loss: Number.NaN, samples: 3 }) }).toThrow(
      'round 1, bad: the validation loss is NaN',
    );
  });

  it('an exception, with its cause', async () => {
    const cause = new Error('out of memory');
    const run = all({ ...defaults, clients: [failing(() => Promise.reject(cause))] });
    await expect(run).rejects.toMatchObject({
      message: 'round 1, bad: training failed: out of memory',
      cause,
    });
  });

  it('other tensors than the others have, all at once', async () => {
    const other = tensors({ x: [1, 2, 3], z: [1] });
    const run = fails(inRoundOne((update) => ({ ...update, parameters: other })));
    await run.toThrow(/round 2: .*\n {2}"x" of bad is \[3\], not \[2\]\n {2}bad has a "z"$/);
  });

  it('two clients of one name, or none that trains', async () => {
    await expect(all({ ...defaults, clients: [good, good] })).rejects.toThrow(
      'several clients are called good',
    );
    const idle = quadratic('idle', { target: [1, 0], samples: 0 });
    await expect(all({ ...defaults, clients: [idle] })).rejects.toThrow('no client has a training sample');
  });

  it('a strategy whose rows do not sum to 1', async () => {
    const strategy = { name: 'broken', mix: () => ({ matrix: [[0.5]] }) };
    await expect(all({ ...defaults, clients: [good], strategy })).rejects.toThrow('broken: row 0 is [0.5]');
  });
});
