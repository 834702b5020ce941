// Clients that judge candidates before all are mixed: what they are sent, what it costs, and who is left without.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { NamedTensors } from '@fellrec/graph';
import { afterAll, describe, expect, it } from 'vitest';
import {
  type Candidate,
  type Client,
  chosen,
  type FederateOptions,
  type FederationEvent,
  fedavg,
  federate,
  fedfomo,
  local,
  type RoundStatistics,
  type Strategy,
  uniform,
} from '../src/index.ts';
import { halfway, tensors } from './toy.ts';

const folder = mkdtempSync(join(tmpdir(), 'judging-'));
afterAll(() => rmSync(folder, { recursive: true }));

const initial = tensors({ a: [0, 1], b: [2, 3, 4] });
const three = [1, 2, 3].map((target) => halfway(`client-${target}`, { target, samples: target }));
const names = three.map(({ name }) => name);
const defaults = { clients: three, initial, rounds: 1, patience: 9 };

async function all(options: Pick<FederateOptions, 'strategy'> & Partial<FederateOptions>) {
  const events: FederationEvent[] = [];
  for await (const event of federate({ ...defaults, ...options })) events.push(event);
  return events;
}
function only<T extends FederationEvent['type']>(events: readonly FederationEvent[], type: T) {
  return events.filter((event): event is FederationEvent & { type: T } => event.type === type);
}

/** FedAvg, with candidates that are judged for nothing but the test's eyes. */
function judging(row: (client: number) => readonly Candidate[]) {
  const seen: RoundStatistics['judged'][] = [];
  const strategy: Strategy = {
    ...fedavg(),
    candidates: (reports) => reports.map((_, c) => row(c)),
    mix(reports, statistics) {
      seen.push(statistics.judged);
      return fedavg().mix(reports, statistics);
    },
  };
  return { strategy, seen };
}
const half = [0.5, 0.5, 0];
const candidates: readonly Candidate[] = [
  { name: 'half', row: half },
  { name: 'third', row: [0, 0, 1] },
  { name: 'start', row: 'start' },
  { name: 'half again', row: [...half] },
];

/** Notes what a client evaluates. */
function spied(client: Client, given: NamedTensors[]): Client {
  return {
    ...client,
    evaluate(parameters, context) {
      given.push(parameters);
      return client.evaluate(parameters, context);
    },
  };
}

describe.each([
  ['in memory', undefined],
  ['on disk', { directory: folder, aboveBytes: 0 }],
] as const)('clients that judge, %s', (_, spill) => {
  const place = spill ? { spill } : {};

  it('are given each of their own candidates once, before the mixture', async () => {
    const given: NamedTensors[] = [];
    const { strategy, seen } = judging((c) => (c === 0 ? candidates : candidates.slice(2, 3)));
    const clients = [spied(three[0]!, given), ...three.slice(1)];
    const events = await all({ ...place, strategy, clients });
    const trained = await Promise.all(three.map((client) => client.train(initial, { round: 0 })));
    const values = (own: NamedTensors) => [...own.values()].flatMap(({ data }) => [...data]);
    const [a, b, c] = trained.map(({ parameters }) => values(parameters)) as [number[], number[], number[]];
    const expected = [a.map((x, k) => Math.fround((x + b[k]!) / 2)), c, values(initial)];
    expect(given).toHaveLength(4);
    expect(given.slice(0, 3).map(values)).toEqual(expected);
    const losses = await Promise.all(given.slice(0, 3).map((own) => three[0]!.evaluate(own, { round: 0 })));
    const [first, second, third] = losses.map(({ loss }) => loss);
    expect(seen[0]![0]).toEqual([first, second, third, first]);
    expect(seen[0]![1]).toHaveLength(1);
    expect(only(events, 'client-judged')[0]).toMatchObject({
      round: 0,
      client: 'client-1',
      candidates: [
        { name: 'half', loss: first },
        { name: 'third', loss: second },
        { name: 'start', loss: third },
        { name: 'half again', loss: first },
      ],
      evaluations: 3,
      samples: 2,
    });
  });

  it('are not asked again of the candidate that they get', async () => {
    const given: NamedTensors[] = [];
    const strategy = chosen([
      { name: 'uniform', strategy: uniform() },
      { name: 'local', strategy: local() },
    ]);
    const events = await all({
      ...place,
      strategy,
      clients: [spied(three[0]!, given), ...three.slice(1)],
      rounds: 2,
    });
    expect(given).toHaveLength(2 * 2);
    const judged = only(events, 'client-judged').map(({ candidates }) =>
      Math.min(...candidates.map(({ loss }) => loss)),
    );
    const evaluated = only(events, 'client-evaluated');
    expect(evaluated.map(({ loss }) => loss)).toEqual(judged);
    expect(evaluated.map(({ samples, seconds }) => [samples, seconds])).toEqual(judged.map(() => [2, 0]));
  });

  it('cost what the record says', async () => {
    const { strategy } = judging((c) => candidates.slice(0, 1 + c));
    const events = await all({ ...place, strategy });
    expect(events.map(({ type }) => type)).toEqual([
      'run-started',
      'round-started',
      ...names.map(() => 'client-trained'),
      ...names.map(() => 'client-judged'),
      'aggregated',
      ...names.map(() => 'client-evaluated'),
      'round-finished',
      'run-finished',
    ]);
    const [{ bytes, seconds }] = only(events, 'round-finished') as [
      FederationEvent & { type: 'round-finished' },
    ];
    expect(bytes).toEqual({ down: 20 * (3 + 1 + 2 + 3), up: 20 * 3 });
    expect(Object.keys(seconds.candidates!)).toEqual(names);
  });
});

describe('under fedfomo, a client', () => {
  it('is sent the others and its mixture, and has its own and what it began with', async () => {
    const [{ bytes }] = only(await all({ strategy: fedfomo() }), 'round-finished') as [
      FederationEvent & { type: 'round-finished' },
    ];
    expect(bytes).toEqual({ down: 20 * 3 * (2 + 1), up: 20 * 3 });
  });
});

describe('a client', () => {
  it('without validation samples is asked once, and judges nothing', async () => {
    const given: NamedTensors[] = [];
    const blind = spied({ ...three[0]!, evaluate: async () => ({ loss: 0, samples: 0 }) }, given);
    const { strategy, seen } = judging(() => candidates);
    const events = await all({ strategy, clients: [blind, ...three.slice(1)] });
    expect(given).toHaveLength(2);
    expect(seen[0]![0]).toBeUndefined();
    expect(only(events, 'client-judged')[0]).toMatchObject({ candidates: [], evaluations: 1, samples: 0 });
  });

  /** Is late, or fails, when it evaluates the first time. */
  const astray = (evaluate: Client['evaluate']): Client => {
    let times = 0;
    return {
      ...three[1]!,
      evaluate: (...of) => (times++ === 0 ? evaluate(...of) : three[1]!.evaluate(...of)),
    };
  };
  const strategy = chosen([
    { name: 'uniform', strategy: uniform() },
    { name: 'local', strategy: local() },
  ]);
  for (const [what, evaluate] of [
    ['that is late', () => new Promise<never>(() => {})],
    ['that fails', () => Promise.reject(new Error('no connection'))],
  ] as const)
    it(`${what} takes its first candidate, and is evaluated with the others`, async () => {
      const clients = [three[0]!, astray(evaluate), three[2]!];
      const participation = { quorum: 2, deadlineSeconds: 0.2 };
      const events = await all({ strategy, clients, participation });
      expect(only(events, 'client-absent').map(({ client, phase }) => `${phase} ${client}`)).toEqual([
        'judging client-2',
      ]);
      expect(only(events, 'client-judged').map(({ client }) => client)).toEqual(['client-1', 'client-3']);
      const [record] = only(events, 'round-finished');
      const [whole] = only(await all({ strategy }), 'round-finished');
      expect(whole!.mixing.chosen![1]).toBe('local');
      expect(record!.mixing.chosen).toEqual(whole!.mixing.chosen!.with(1, 'uniform'));
      expect(Object.keys(record!.validation)).toEqual(names);
      expect(record!.bytes.down).toBe(20 * (3 + 2 + 2));
      expect(Object.keys(record!.seconds.candidates!)).toEqual(['client-1', 'client-3']);
    });

  it('that is absent from training is left out of the rows', async () => {
    const missing: Client = { ...three[0]!, train: () => Promise.reject(new Error('gone')) };
    const participation = { quorum: 2, deadlineSeconds: 600 };
    const events = await all({ strategy: fedfomo(), clients: [missing, ...three.slice(1)], participation });
    const judged = only(events, 'client-judged');
    expect(judged.map(({ candidates }) => candidates.map(({ name }) => name))).toEqual([
      ['client-2', 'client-3', 'start'],
      ['client-3', 'client-2', 'start'],
    ]);
    const losses = await Promise.all(
      [1, 2].map(
        async (c) =>
          (await three[1]!.evaluate((await three[c]!.train(initial, { round: 0 })).parameters, { round: 0 }))
            .loss,
      ),
    );
    expect(judged[0]!.candidates.slice(0, 2).map(({ loss }) => loss)).toEqual(losses);
  });
});

describe('a strategy', () => {
  it('whose candidates are none is named', async () => {
    const broken = (own: readonly Candidate[]) => all({ strategy: judging(() => own).strategy });
    await expect(broken([])).rejects.toThrow('fedavg: client 0 has no candidate');
    await expect(broken([{ name: 'odd', row: [1, 1, 1] }])).rejects.toThrow(
      'fedavg: candidate "odd" of client 0 is [1, 1, 1]; it must hold 3 weights',
    );
    const strategy: Strategy = { ...fedavg(), candidates: () => [candidates] };
    await expect(all({ strategy })).rejects.toThrow('fedavg: candidates of 1 clients for 3');
  });
});
