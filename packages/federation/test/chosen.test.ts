// Choice between candidates by each client's own validation loss.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  type Choice,
  chosen,
  clustered,
  ditto,
  type FederateOptions,
  fedavg,
  federate,
  fedfomo,
  fellrec,
  groups,
  local,
  type RoundRecord,
  type Strategy,
  uniform,
} from '../src/index.ts';
import { reports } from './strategies-fixture.ts';
import { quadratic, tensors } from './toy.ts';

const choices = (strategies: Readonly<Record<string, Strategy>>): Choice[] =>
  Object.entries(strategies).map(([name, strategy]) => ({ name, strategy }));
const relative = fellrec({ similarityOn: 'update', similarity: { form: 'relative' }, heating: false });

async function finished(options: Partial<FederateOptions> & Pick<FederateOptions, 'clients' | 'strategy'>) {
  const records: RoundRecord[] = [];
  const clients = new Map(options.clients.map((client) => [client.name, client]));
  const run = { initial: tensors({ x: [0, 0] }), rounds: 3, patience: 9, ...options };
  for await (const event of federate(run))
    if (event.type === 'round-finished') {
      records.push(event);
      // What is said of the mixture is true of what the client has.
      for (const [name, said] of Object.entries(event.validation))
        expect(
          await clients
            .get(name)!
            .evaluate(await event.state.parameters.get(name)!(), { round: event.round }),
        ).toEqual(said);
    }
  return records;
}

describe('a choice', () => {
  const strategy = chosen(choices({ fedavg: fedavg(), local: local(), uniform: uniform() }));
  const three = reports.slice(0, 3);

  it('is the lowest loss, of equal ones the first, and the first without a judgement', () => {
    const judged = [[2, 1, 3], [2, 1, 1], undefined];
    const { matrix, chosen: names, candidateLosses } = strategy.mix(three, { round: 0, judged });
    expect(names).toEqual(['local', 'local', 'fedavg']);
    expect(matrix.slice(0, 2)).toEqual([
      [1, 0, 0],
      [0, 1, 0],
    ]);
    expect(matrix[2]).toEqual(fedavg().mix(three, { round: 0 }).matrix[2]);
    expect(candidateLosses).toEqual([
      { fedavg: 2, local: 1, uniform: 3 },
      { fedavg: 2, local: 1, uniform: 1 },
      {},
    ]);
  });

  it('keeps what its candidates say of the round, the first one first', () => {
    const cosines = three.map((_, i) => three.map((_, j) => (i === j ? 1 : 0.5)));
    const heating = { alpha: 0.7, beta: 5, temperature: 1, exponent: 't/beta' as const };
    const warm = fellrec({ similarityOn: 'update', heating });
    const both = chosen(choices({ fedavg: fedavg(), relative, warm }));
    expect(both.similarityOn).toBe('update');
    const statistics = { round: 2, cosines };
    const mixing = both.mix(three, { ...statistics, judged: three.map(() => [1, 2, 3]) });
    expect(mixing.similarity).toEqual(relative.mix(three, statistics).similarity);
    expect(mixing.warmth).toEqual(warm.mix(three, statistics).warmth);
    expect(mixing.chosen).toEqual(['fedavg', 'fedavg', 'fedavg']);
  });

  it('asks for what its candidates ask for', () => {
    const asking = chosen(
      choices({ fedavg: fedavg(), clustered: clustered({ epsilon1: 1, epsilon2: 0, gammaMax: 0 }) }),
    );
    expect(asking).toMatchObject({ similarityOn: 'update', compares: ['innerProducts'], remembers: true });
    expect(strategy).not.toHaveProperty('similarityOn');
    expect(strategy).not.toHaveProperty('compares');
    expect(strategy).not.toHaveProperty('remembers');
  });

  it('refuses candidates that cannot be chosen between', () => {
    const refused = (candidates: Choice[]) => expect(() => chosen(candidates));
    refused([]).toThrow('chosen: there is no candidate');
    refused([...choices({ fedavg: fedavg() }), ...choices({ fedavg: local() })]).toThrow(
      'chosen: several candidates are called fedavg',
    );
    refused(choices({ fedfomo: fedfomo() })).toThrow(
      'chosen: fedfomo has clients judge candidates of its own',
    );
    refused(choices({ again: strategy })).toThrow('chosen: again has clients judge candidates of its own');
    refused(choices({ ditto: ditto() })).toThrow('chosen: clients train something else under ditto');
    const parameters = fellrec({ similarityOn: 'parameters', heating: false });
    refused(choices({ relative, parameters })).toThrow('chosen: candidates compare update and parameters');
    const smoothing = (value: number) =>
      fellrec({ similarityOn: 'update', similarity: { form: 'shifted', smoothing: value }, heating: false });
    refused(choices({ some: smoothing(0.5), more: smoothing(0.9) })).toThrow(
      'chosen: some and more look at the round before',
    );
  });
});

describe('a federation that chooses', () => {
  const anyTargets = fc.array(fc.array(fc.integer({ min: -5, max: 5 }), { minLength: 2, maxLength: 2 }), {
    minLength: 1,
    maxLength: 5,
  });

  it('never leaves a client with a higher validation loss than any candidate in that round', async () => {
    await fc.assert(
      fc.asyncProperty(anyTargets, anyTargets, async (targets, validationTargets) => {
        const clients = targets.map((target, c) => ({
          ...quadratic(`client-${c}`, {
            target,
            validationTarget: validationTargets[c % validationTargets.length]!,
            samples: 1 + c,
          }),
          group: `group-${c % 2}`,
        }));
        const strategy = chosen(choices({ fedavg: fedavg(), relative, groups: groups(), local: local() }));
        for (const { mixing, validation, clients: names } of await finished({ clients, strategy }))
          for (const [c, name] of names.entries()) {
            const losses = mixing.candidateLosses![c]!;
            expect(validation[name]!.loss).toBe(Math.min(...Object.values(losses)));
            expect(validation[name]!.loss).toBe(losses[mixing.chosen![c]!]);
          }
      }),
      { numRuns: 50 },
    );
  });

  it('of one candidate is that strategy', async () => {
    const clients = [
      quadratic('a', { target: [1, 0] }),
      quadratic('b', { target: [0, 3], samples: 30 }),
      quadratic('c', { target: [1, 1], validationSamples: 0 }),
    ];
    const alone = await finished({ clients, strategy: relative });
    const records = await finished({ clients, strategy: chosen(choices({ relative })) });
    expect(records.map(({ mixing }) => mixing.matrix)).toEqual(alone.map(({ mixing }) => mixing.matrix));
    expect(records.map(({ validation }) => validation)).toEqual(alone.map(({ validation }) => validation));
    expect(records[0]!.mixing.candidateLosses![2]).toEqual({});
  });
});
