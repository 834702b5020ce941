// Comparisons of trials that are made up, so that every number can be said beforehand.
import type { RoundRecord } from '@fellrec/federation';
import type { Metrics } from '@fellrec/recsys';
import { describe, expect, test } from 'vitest';
import { compared, type Trial, type TrialRun } from '../src/compare/compared.ts';
import { apartBySamples } from '../src/compare/samples.ts';
import { comparisonCsv, comparisonLatex, comparisonText, injectedClients } from '../src/compare/tables.ts';
import { comparisonSection } from '../src/report/comparison.ts';
import { charts, rowsOf } from './markup.ts';

const metrics = (hit: number): Metrics => ({
  'recall@10': hit,
  'recall@20': hit,
  'ndcg@10': hit / 2,
  'ndcg@20': hit / 2,
});
const data = { name: 'toys', hash: 'a'.repeat(64) };
const model = { path: 'models/toy', hash: 'b'.repeat(64) };
const partition: TrialRun['partition'] = {
  clients: [
    { name: 'north', users: ['u0', 'u1', 'u2', 'u3'] },
    { name: 'south', users: ['u4', 'u5', 'u6', 'u7'] },
    { name: 'west', users: ['u8'] },
  ],
  likeness: {
    popularityCosine: [
      [1, 0.9, 0.1],
      [0.9, 1, 0.2],
      [0.1, 0.2, 1],
    ],
    itemOverlap: [
      [1, 0.5, 0.1],
      [0.5, 1, 0.1],
      [0.1, 0.1, 1],
    ],
  },
};

function round(number: number, matrix: number[][]): RoundRecord {
  return {
    round: number,
    clients: ['north', 'south', 'west'],
    samples: {},
    losses: {},
    mixing: { matrix, similarity: matrix },
    validation: {
      north: { loss: 2, samples: 3 },
      south: { loss: 3, samples: 3 },
      west: { loss: 2, samples: 0 },
    },
    validationLoss: 1,
    best: { north: { round: 0, loss: 2 }, south: { round: 0, loss: 3 }, west: { round: 0, loss: 2 } },
    bestOverall: { round: 0, loss: 1 },
    roundsWithoutImprovement: 0,
    bytes: { up: 100, down: 100 },
    seconds: { training: {}, aggregation: 0, evaluation: {}, total: 7 },
  };
}

const even = [
  [0.5, 0.25, 0.25],
  [0.25, 0.5, 0.25],
  [0.25, 0.25, 0.5],
];

/** Hits by user u0, u1, ... */
function trial(method: string, hits: readonly number[], more: Partial<Trial> = {}): Trial {
  return {
    method,
    seed: 1,
    directory: `runs/${method}-${more.seed ?? 1}`,
    data,
    model,
    run: { strategy: method, partition, rounds: [round(0, even), round(1, even)] },
    seconds: 14,
    users: new Map(hits.map((hit, u) => [`u${u}`, metrics(hit)])),
    ...more,
  };
}

const better = [1, 1, 1, 0, 1, 0, 0, 0, 1];
const worse = [1, 0, 0, 0, 1, 0, 0, 0, 0];
const find = (found: ReturnType<typeof compared>, name: string) =>
  found.methods.find(({ method }) => method === name)!;

describe('a comparison', () => {
  test('has means, spread over clients, the worst one, seconds and bytes', () => {
    const found = find(compared([trial('fedavg', worse), trial('ours', better)], 'fedavg'), 'ours');
    expect(found.metrics['recall@10']).toBeCloseTo(5 / 9, 12);
    expect(
      found.clients.map(({ client, testUsers, metrics, loss }) => [
        client,
        testUsers,
        metrics['recall@10'],
        loss,
      ]),
    ).toEqual([
      ['north', 4, 0.75, 2],
      ['south', 4, 0.25, 3],
      ['west', 1, 1, undefined],
    ]);
    const mean = 2 / 3;
    const deviation = Math.sqrt(((0.75 - mean) ** 2 + (0.25 - mean) ** 2 + (1 - mean) ** 2) / 3);
    expect(found.spread!.deviation).toBeCloseTo(deviation, 12);
    expect(found.spread!.worst).toBe(0.25);
    expect(found.spread!.worstLoss).toBe(3);
    expect(found).toMatchObject({ seconds: 14, bytes: 400, users: 9 });
  });

  test('is of the users that both methods were tested on', () => {
    const fewer = trial('fedavg', worse.slice(0, 4));
    const found = find(compared([fewer, trial('ours', better)], 'fedavg'), 'ours').against!['recall@10']!;
    expect(found.users).toBe(4);
    expect(found.difference.mean).toBeCloseTo(0.5, 12);
  });

  test('is of pairs of the same seed, weighed by how often a user was tested', () => {
    const found = compared(
      [
        trial('fedavg', worse),
        trial('fedavg', worse, { seed: 2 }),
        trial('ours', better),
        trial('ours', worse, { seed: 2 }),
        trial('ours', better, { seed: 3 }),
      ],
      'fedavg',
    );
    expect(found.seeds).toEqual([1, 2, 3]);
    const ours = find(found, 'ours');
    // Seed 3 has no partner.
    expect(ours.against!['recall@10']!.difference.mean).toBeCloseTo((3 / 9 + 0) / 2, 12);
    const bySeed = [5 / 9, 2 / 9, 5 / 9];
    const mean = 12 / 27;
    const deviation = Math.sqrt(bySeed.reduce((sum, x) => sum + (x - mean) ** 2, 0) / 2);
    expect(ours.metrics['recall@10']).toBeCloseTo(mean, 12);
    expect(ours.deviations['recall@10']).toBeCloseTo(deviation, 12);
  });

  test('shows what is not complete and counts it in nothing', () => {
    const found = compared(
      [trial('fedavg', worse), trial('ours', [], { missing: '1 of 2 rounds are done' })],
      'fedavg',
    );
    expect(find(found, 'ours')).toMatchObject({
      incomplete: [{ seed: 1, missing: '1 of 2 rounds are done' }],
      users: 0,
      metrics: {},
    });
    expect(comparisonText(found)).toContain(
      'ours, seed 1, is not complete and counts in nothing: 1 of 2 rounds',
    );
  });

  test('says whether clients listen to those whose data is like theirs', () => {
    const alike = [
      [0.5, 0.45, 0.05],
      [0.45, 0.5, 0.05],
      [0.25, 0.25, 0.5],
    ];
    const run = { strategy: 'ours', partition, rounds: [round(0, alike)] };
    const found = compared([trial('fedavg', worse), trial('ours', better, { run })], 'fedavg');
    // Python's statistics.correlation of the shares .9 .1 .9 .1 .5 .5 with the off-diagonal entries above.
    expect(find(found, 'ours').agreement!.itemOverlap).toBeCloseTo(0.8660254, 6);
    expect(find(found, 'ours').agreement!.popularityCosine).toBeCloseTo(0.860309002, 8);
    expect(find(found, 'fedavg').agreement).toBeUndefined();
  });

  test('tells apart what was trained on several numbers of samples, and draws quality by them', async () => {
    const trained = (trainSamples: number, hits: readonly number[]) => [
      trial('ours', hits, { trainSamples }),
      // Ranked with the same parameters: no run of its own.
      { ...trial('ours+constrained', better, { trainSamples }), run: undefined },
      trial('popularity', worse, { run: undefined }),
    ];
    const apart = apartBySamples([...trained(256, worse), ...trained(1024, better).slice(0, 2)] as Trial[]);
    const names = ['ours', 'ours+constrained'].map((one) => [`${one}, 256 samples`, `${one}, 1024 samples`]);
    const found = compared(apart, 'ours, 256 samples');
    expect(found.methods.map(({ method }) => method).toSorted()).toEqual(
      [...names.flat(), 'popularity'].toSorted(),
    );
    expect(find(found, 'ours+constrained, 1024 samples').trainSamples).toBe(1024);
    const { markup } = (await comparisonSection(found)).body;
    const chart = charts(markup).get('R@10 by training samples')!;
    expect(chart.match(/>ours\+constrained<\/text>/g)).toHaveLength(2);
    expect(chart).not.toContain('256 samples');
    expect(rowsOf(markup, 'Methods').map(([method, , , , , samples]) => [method, samples])).toContainEqual([
      'ours+constrained, 1024 samples',
      '1,024',
    ]);
    // As many samples in another seed: one method.
    const alike = [
      trial('ours', better, { trainSamples: 9 }),
      trial('ours', better, { trainSamples: 8, seed: 2 }),
    ];
    expect(apartBySamples(alike)).toEqual(alike);
  });

  test('shows what injection does for each client', () => {
    const gammas = { north: 3, south: 0 };
    const found = compared(
      [trial('fedavg', worse), trial('fedavg+popularity', better, { gammas })],
      'fedavg',
    );
    expect(injectedClients(found.methods)).toEqual([
      {
        method: 'fedavg+popularity',
        seed: 1,
        client: 'north',
        testUsers: 4,
        gamma: 3,
        before: 0.25,
        recall: 0.75,
      },
      {
        method: 'fedavg+popularity',
        seed: 1,
        client: 'south',
        testUsers: 4,
        gamma: 0,
        before: 0.25,
        recall: 0.25,
      },
    ]);
    // Where the same method injects something without being asked to, what is without is not known.
    const always = compared(
      [trial('fedavg', worse, { gammas }), trial('fedavg+popularity', better, { gammas })],
      'fedavg',
    );
    expect(injectedClients(always.methods).map(({ before }) => before)).toEqual([
      undefined,
      undefined,
      undefined,
      undefined,
    ]);
    expect(comparisonText(found)).toMatch(/^fedavg\+popularity +1 +north +4 +3 +0\.2500 +0\.7500$/m);
  });

  test('of methods that exchange nothing has no bytes', () => {
    expect(find(compared([trial('local', worse)], 'local'), 'local').bytes).toBe(0);
  });
});

describe('what cannot be compared', () => {
  const ours = trial('ours', better);
  const refused =
    (other: Partial<Trial>, hits = worse) =>
    () =>
      compared([ours, trial('fedavg', hits, { directory: 'runs/other', ...other })], 'ours');

  test.each<[string, Partial<Trial>, string]>([
    [
      'other data',
      { data: { name: 'books', hash: 'c' } },
      'runs/other was made with other data than runs/ours-1: books (c), not toys (aaaaaaaaaaaa)',
    ],
    ['another model', { model: { path: 'models/big', hash: 'd' } }, 'other model than'],
    [
      'another partition',
      {
        run: {
          strategy: 'fedavg',
          partition: { clients: [...partition.clients].reverse() },
          rounds: [],
        },
      },
      'runs/ours-1 and runs/other (seed 1) cut the users into different clients',
    ],
  ])('%s', (_, other, message) => {
    expect(refused(other)).toThrow(message);
  });

  test('the same data and model in another place can', () => {
    const moved = { data: { ...data, name: 'toys-2' }, model: { ...model, path: 'elsewhere/toy' } };
    expect(refused(moved)).not.toThrow();
  });

  test('nobody in common', () => {
    const strangers = new Map([...ours.users].map(([user, metrics]) => [`x${user}`, metrics]));
    expect(refused({ users: strangers })).toThrow('fedavg and ours have no test user in common');
  });

  test('one seed twice, a baseline that is not there', () => {
    expect(() => compared([ours, { ...ours, directory: 'runs/again' }], 'ours')).toThrow(
      'runs/ours-1 and runs/again are both ours, seed 1',
    );
    expect(() => compared([ours], 'fedavg')).toThrow('the baseline "fedavg" is none of the methods: ours');
  });
});

describe('tables', () => {
  // So many that no resample of the baseline is without a hit.
  const often = (hits: readonly number[]) => Array.from({ length: 20 }, () => hits).flat();
  const found = compared([trial('fedavg', often(worse)), trial('ours_1', often(better))], 'fedavg');

  test('as CSV', () => {
    const [header, , row] = comparisonCsv(found)
      .split('\n')
      .map((line) => line.split(','));
    const cell = (name: string) => Number(row![header!.indexOf(name)]);
    expect(row![0]).toBe('ours_1');
    expect(cell('recall@10')).toBeCloseTo(5 / 9, 12);
    expect(cell('recall@10 change')).toBeCloseTo(1.5, 12);
    expect(cell('recall@10 difference')).toBeCloseTo(5 / 9 - 2 / 9, 12);
    expect(header!.length).toBe(row!.length);
  });

  test('as LaTeX, absolute where a resample of the baseline has no hit', () => {
    const few = compared([trial('fedavg', worse), trial('ours', better)], 'fedavg');
    expect(comparisonLatex(few)).toMatch(/^ours & .* & (\\textbf\{)?\+0\.3333\}? \\\\$/m);
  });

  test('as LaTeX, with what it means to it escaped', () => {
    expect(comparisonLatex(found)).toContain('ours\\_1 & 0.5556 & 0.5556 & 0.2778 & 0.2778 & 0.2500 & ');
  });
});
