// Runs' folders and a comparison that nobody computed, for what is drawn of them.
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { RoundRecord } from '@fellrec/federation';
import type { Metrics, Partition } from '@fellrec/recsys';
import type { Comparison, PairedDifference } from '../src/compare/result.ts';
import { writeUserMetrics } from '../src/compare/user-metrics.ts';
import { configSchema } from '../src/config-schema.ts';
import type { RunResult } from '../src/train.ts';

export interface MadeUp {
  readonly name?: string;
  readonly strategy?: 'fellrec' | 'fedavg';
  readonly clients?: readonly string[];
  readonly rounds?: number;
  /** Of the configuration; all that are there unless given. */
  readonly wantedRounds?: number;
  readonly patience?: number;
}

const names = ['client-0', 'client-1', 'client-2'];
const metricsAt = (recall: number): Metrics => ({
  'recall@10': recall,
  'recall@20': 2 * recall,
  'ndcg@10': recall / 2,
  'ndcg@20': recall / 4,
});

/** Writes a complete run: client c has 10 + c test users, and a validation loss that is lowest in the last round but one. */
export async function writeRun(
  directory: string,
  {
    name = 'made-up',
    strategy = 'fellrec',
    clients = names,
    rounds = 3,
    wantedRounds = rounds,
    patience = 5,
  }: MadeUp = {},
): Promise<void> {
  const json = (file: string, value: unknown) => writeFile(join(directory, file), JSON.stringify(value));
  await mkdir(join(directory, 'rounds'), { recursive: true });
  await json('config.json', {
    name,
    seed: 7,
    recommender: 'bigrec',
    data: { path: '/data/games' },
    model: { path: '/models/tiny', maxTokens: 512 },
    lora: { targetModules: ['q_proj', 'v_proj'] },
    federation: { strategy, rounds: wantedRounds, patience },
    dataset: { name: 'games', hash: 'c0ffee' },
    modelHash: 'deadbeef',
  });
  const partition = partitionOf(clients);
  await json('clients.json', partition);
  for (let round = 0; round < rounds; round++) {
    const folder = join('rounds', String(round).padStart(4, '0'));
    await mkdir(join(directory, folder));
    await json(join(folder, 'round.json'), roundOf(round, rounds, clients, strategy));
  }
  await json('result.json', resultOf(directory, clients, { name, strategy, rounds }));
  const users = partition.clients.flatMap(({ users }, c) =>
    users.slice(0, 10 + c).map((id, u) => [id, metricsAt(u < 1 + c ? 1 : 0)] as const),
  );
  await writeUserMetrics(directory, new Map(users));
}

function partitionOf(clients: readonly string[]): Partition {
  const likeness = clients.map((_, i) => clients.map((_, j) => (i === j ? 1 : 0.125)));
  return {
    method: 'random',
    clients: clients.map((name, c) => ({
      name,
      users: Array.from({ length: 20 + c }, (_, u) => `user-${c}-${u}`),
    })),
    popularityCosine: 0.25,
    likeness: { popularityCosine: likeness, itemOverlap: likeness },
  };
}

/** Weights are 1/2 + round/100 on the diagonal. */
function roundOf(
  round: number,
  rounds: number,
  clients: readonly string[],
  strategy: MadeUp['strategy'],
): RoundRecord {
  const byClient = <T>(of: (c: number) => T) => Object.fromEntries(clients.map((name, c) => [name, of(c)]));
  const bestRound = Math.min(round, Math.max(0, rounds - 2));
  const loss = (at: number, c: number) => 2 + c / 4 + Math.abs(at - Math.max(0, rounds - 2)) / 8;
  const own = 0.5 + round / 100;
  const other = clients.length > 1 ? (1 - own) / (clients.length - 1) : 0;
  const matrix = clients.map((_, i) => clients.map((_, j) => (i === j ? own : other)));
  return {
    round,
    clients,
    samples: byClient((c) => 100 + c),
    losses: byClient((c) => 3 + c / 4 - round / 8),
    mixing: {
      matrix,
      ...(strategy === 'fellrec' && {
        cosines: clients.map((_, i) => clients.map((_, j) => (i === j ? 1 : 0.5 + round / 50))),
        similarity: clients.map((_, i) => clients.map((_, j) => (i === j ? 1 : 0.75 + round / 100))),
        softmax: clients.map(() => 1 / clients.length),
        warmth: clients.map((_, c) => Math.min(1, 0.25 * (round + 1) + c / 100)),
      }),
    },
    ...(strategy === 'fellrec' && { cosineMeans: { within: 0.5 + round / 50, across: 0.125 } }),
    validation: byClient((c) => ({ loss: loss(round, c), samples: 30 + c })),
    validationLoss: loss(round, 1),
    best: byClient((c) => ({ round: bestRound, loss: loss(bestRound, c) })),
    bestOverall: { round: bestRound, loss: loss(bestRound, 1) },
    roundsWithoutImprovement: round - bestRound,
    bytes: { down: 1000, up: 1000 },
    seconds: {
      training: byClient(() => 1),
      aggregation: 0.1,
      evaluation: byClient(() => 0.5),
      total: 90,
    },
  };
}

function resultOf(
  directory: string,
  clients: readonly string[],
  { name, strategy, rounds }: { name: string; strategy: string; rounds: number },
): RunResult {
  return {
    name,
    strategy,
    directory,
    rounds,
    ranking: configSchema.shape.ranking.parse({}),
    clients: clients.map((client, c) => ({
      client,
      users: 20 + c,
      trainSamples: 100 + c,
      testUsers: 10 + c,
      firstLoss: 3,
      lastLoss: 2.5,
      bestRound: Math.max(1, rounds - 1),
      truncated: 4,
      metrics: metricsAt((1 + c) / (10 + c)),
    })),
    pooled: metricsAt(0.125),
    spread: { deviation: 0.0321, worst: { client: clients[0]!, value: 0.1 } },
    mixing: [],
    floors: { random: metricsAt(0.0125), popularity: metricsAt(0.0625) },
    popularityCosine: 0.25,
    truncatedTests: 6,
    seconds: 200,
  };
}

const against = (mean: number, p: number): Record<string, PairedDifference> => {
  const around = (x: number) => ({ mean: x, low: x - 0.05, high: x + 0.05 });
  const found = { difference: around(mean / 10), relative: around(mean), p, users: 33 };
  return { 'recall@10': found, 'recall@20': found, 'ndcg@10': found, 'ndcg@20': found };
};

export const comparison: Comparison = {
  data: { name: 'games', hash: 'c0ffee' },
  model: { path: '/models/tiny', hash: 'deadbeef' },
  seeds: [1, 2],
  baseline: 'fedavg',
  methods: [
    {
      method: 'fedavg',
      runs: [
        { seed: 1, directory: 'runs/fedavg-1' },
        { seed: 2, directory: 'runs/fedavg-2' },
      ],
      incomplete: [],
      users: 66,
      metrics: metricsAt(0.1),
      deviations: metricsAt(0.01),
      clients: [],
      spread: { deviation: 0.02, worst: 0.05 },
      seconds: 1234.5,
      bytes: 3 * 2 ** 20,
    },
    {
      method: 'fellrec',
      runs: [
        { seed: 1, directory: 'runs/fellrec-1' },
        { seed: 2, directory: 'runs/fellrec-2' },
      ],
      incomplete: [{ seed: 2, missing: '1 of 3 rounds are done' }],
      users: 33,
      metrics: metricsAt(0.12),
      deviations: {},
      clients: [],
      spread: { deviation: 0.03, worst: 0.06 },
      agreement: { itemOverlap: 0.5, popularityCosine: 0.625 },
      seconds: 1300,
      bytes: 3 * 2 ** 20,
      against: against(0.2, 0.004),
    },
    {
      method: 'local',
      runs: [{ seed: 1, directory: 'runs/local-1' }],
      incomplete: [],
      users: 33,
      metrics: metricsAt(0.098),
      deviations: {},
      clients: [],
      against: against(-0.02, 0.512),
    },
  ],
};
