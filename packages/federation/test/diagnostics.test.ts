// What is said of a round's mixing, and FedAvg inside known groups, against NumPy.
import { describe, expect, it } from 'vitest';
import { cosineMeans, effectiveClients } from '../src/diagnostics.ts';
import { type FederateOptions, fedavg, federate, fellrec, groups, type RoundRecord } from '../src/index.ts';
import { expectClose } from './expect-close.ts';
import { fixture, reports } from './strategies-fixture.ts';
import { halfway, tensors } from './toy.ts';

const cosines = fixture.cosines.update;

describe('effective clients', () => {
  it('are what the formula says', () => {
    for (const { matrix, effectiveClients: expected } of fixture.forms)
      expectClose(effectiveClients(matrix), expected, 1e-12);
  });

  it('are 1 for whoever keeps its own, and all where all count alike', () => {
    const third = [1 / 3, 1 / 3, 1 / 3];
    expectClose(effectiveClients([[1, 0, 0], [0.5, 0.5, 0], third]), [1, 2, 3], 1e-12);
  });
});

describe('means of cosines', () => {
  it('inside groups and across are what the formula says', () => {
    const { within, across } = cosineMeans(cosines, fixture.groups)!;
    expectClose([within!, across!], [fixture.cosineMeans.within!, fixture.cosineMeans.across!], 1e-12);
  });

  it('are there from two groups on, and only of pairs that there are', () => {
    expect(cosineMeans(cosines, ['a', 'a', 'a', undefined, 'a', 'a'])).toBeUndefined();
    expect(cosineMeans(cosines, ['a', 'b', undefined, undefined, undefined, undefined])).toEqual({
      across: cosines[0]![1],
    });
    const means = cosineMeans(cosines, ['a', 'b', 'a', undefined, undefined, undefined])!;
    expect(means.within).toBe(cosines[0]![2]);
    expectClose([means.across!], [(cosines[0]![1]! + cosines[1]![2]!) / 2], 1e-12);
  });
});

describe('FedAvg inside groups', () => {
  it('weighs by samples within each', () => {
    expectClose(groups().mix(reports, { round: 0 }).matrix.flat(), fixture.withinGroups.flat(), 1e-12);
  });

  it('names those without a group', () => {
    const some = reports.map(({ group, ...report }, c) => (c % 2 ? report : { ...report, group }));
    expect(() => groups().mix(some, { round: 0 })).toThrow(
      'groups: client-1, client-3, client-5 has no group',
    );
  });
});

describe('a round', () => {
  const clients = [1, 2, 3].map((target) => ({
    ...halfway(`client-${target}`, { target, samples: target }),
    group: target < 3 ? 'low' : 'high',
  }));
  async function first(options: Pick<FederateOptions, 'strategy'>): Promise<RoundRecord> {
    const run = { clients, initial: tensors({ a: [0, 1, 2] }), rounds: 1, patience: 1, ...options };
    for await (const event of federate(run)) if (event.type === 'round-finished') return event;
    throw new Error('no round was finished');
  }

  it('says from how many clients each takes, and how alike the groups are', async () => {
    const record = await first({ strategy: fellrec({ similarityOn: 'update', heating: false }) });
    const { matrix, cosines } = record.mixing;
    expect(Object.keys(record.effectiveClients!)).toEqual(record.clients);
    expect(Object.values(record.effectiveClients!)).toEqual(effectiveClients(matrix));
    expect(record.cosineMeans).toEqual({
      within: cosines![0]![1],
      across: (cosines![0]![2]! + cosines![1]![2]!) / 2,
    });
  });

  it('of a strategy that does not look at the parameters has no cosines', async () => {
    const record = await first({ strategy: fedavg() });
    expect(record).not.toHaveProperty('cosineMeans');
    expect(record.mixing).not.toHaveProperty('cosines');
  });

  it('tells the strategy the groups of the clients', async () => {
    const { mixing } = await first({ strategy: groups() });
    expect(mixing.matrix).toEqual([
      [1 / 3, 2 / 3, 0],
      [1 / 3, 2 / 3, 0],
      [0, 0, 1],
    ]);
  });
});
