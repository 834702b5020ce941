// A run's folder as what a report draws: its files as they are, without the model and without anybody's data.
import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { readUserMetrics, type UserMetrics } from '../compare/user-metrics.ts';
import { readJson } from '../read-json.ts';
import { maxRunBytes } from './limits.ts';

const count = z.number().int().nonnegative();
const metrics = z.record(z.string(), z.number());
const byClient = z.record(z.string(), z.number());
const matrix = z.array(z.array(z.number()));
const isSquare = (rows: readonly (readonly unknown[])[], size: number) =>
  rows.length === size && rows.every((row) => row.length === size);

/** Settings of any age: a report lists all of them, and needs these. */
const configFile = z.looseObject({
  name: z.string(),
  seed: z.number(),
  recommender: z.string().default('bigrec'),
  data: z.looseObject({ path: z.string().optional() }).optional(),
  model: z.looseObject({ path: z.string() }),
  federation: z.looseObject({ strategy: z.string(), rounds: count, patience: count }),
  /** None of a run with remote clients. */
  dataset: z.looseObject({ name: z.string(), hash: z.string() }).optional(),
  modelHash: z.string().optional(),
});

/** A partition, or what remote clients said of themselves. */
const clientsFile = z
  .object({
    method: z.string(),
    clients: z
      .array(
        z.object({
          name: z.string(),
          group: z.string().optional(),
          users: z.array(z.string()).optional(),
          trainSamples: count.optional(),
          validationSamples: count.optional(),
          testUsers: count.optional(),
          layersKept: count.optional(),
        }),
      )
      .min(1),
    popularityCosine: z.number().optional(),
    likeness: z.object({ popularityCosine: matrix, itemOverlap: matrix }).optional(),
  })
  .refine(
    ({ clients, likeness }) =>
      !likeness || Object.values(likeness).every((rows) => isSquare(rows, clients.length)),
    'likeness: there must be a row and a column for each client',
  );

const best = z.object({ round: count, loss: z.number() });

/** What is drawn of a `RoundRecord`. */
const roundFile = z
  .object({
    round: count,
    clients: z.array(z.string()),
    absent: z.array(z.string()).default([]),
    samples: byClient,
    losses: byClient,
    mixing: z.object({
      matrix,
      cosines: matrix.optional(),
      similarity: matrix.optional(),
      warmth: z.array(z.number()).optional(),
      chosen: z.array(z.string()).optional(),
    }),
    cosineMeans: z.object({ within: z.number().optional(), across: z.number().optional() }).optional(),
    validation: z.record(z.string(), z.object({ loss: z.number(), samples: count })),
    validationLoss: z.number(),
    best: z.record(z.string(), best),
    bestOverall: best,
    roundsWithoutImprovement: count,
    bytes: z.object({ up: count, down: count }),
    seconds: z.object({ total: z.number(), candidates: byClient.optional() }),
  })
  .refine(
    ({ clients, mixing: { matrix: weights, cosines, similarity, warmth } }) =>
      [weights, cosines, similarity].every((rows) => !rows || isSquare(rows, clients.length)) &&
      (!warmth || warmth.length === clients.length),
    'mixing: there must be a row and a column for each client',
  );

/** What is drawn of a `RunResult`. */
const resultFile = z.object({
  strategy: z.string(),
  rounds: count,
  clients: z.array(
    z.object({
      client: z.string(),
      users: count.optional(),
      trainSamples: count,
      testUsers: count,
      bestRound: count.optional(),
      truncated: count,
      gamma: z.number().optional(),
      missing: z.string().optional(),
      metrics,
    }),
  ),
  pooled: metrics,
  groups: z
    .array(
      z.object({
        group: z.string().optional(),
        data: z.string().optional(),
        items: count.optional(),
        users: count.optional(),
        testUsers: count,
        metrics,
        floors: z.record(z.string(), metrics),
      }),
    )
    .optional(),
  spread: z.object({ deviation: z.number(), worst: z.object({ client: z.string(), value: z.number() }) }),
  floors: z.record(z.string(), metrics),
  truncatedTests: count,
  seconds: z.number(),
});

export interface RunFiles {
  readonly directory: string;
  readonly config: z.output<typeof configFile>;
  readonly partition: z.output<typeof clientsFile>;
  /** Complete ones, in their order. */
  readonly rounds: readonly RoundFile[];
  /** Of all rounds; undefined where the run is not complete. */
  readonly result?: ResultFile;
  /** What an incomplete run lacks, and what to do; undefined of a complete one. */
  readonly missing?: string;
  /** By test user; undefined where only the clients know, and of an incomplete run. */
  readonly users?: UserMetrics;
}

export type RoundFile = z.output<typeof roundFile>;
export type ResultFile = z.output<typeof resultFile>;

/** @throws if it is no run, if a file is damaged, or if there is more than a report could hold. */
export async function readRunFiles(directory: string): Promise<RunFiles> {
  const config = join(directory, 'config.json');
  if ((await sizeOf(config)) === undefined)
    throw new Error(
      `report: ${directory} is no run (it has no config.json); pass a folder that "fellrec train" wrote`,
    );
  const clients = join(directory, 'clients.json');
  const result = join(directory, 'result.json');
  const rounds = await roundFilesOf(directory);
  await assertReadable(directory, [config, clients, result, join(directory, 'test-users.json'), ...rounds]);

  const run = {
    directory,
    config: await readJson(config, configFile),
    partition: await readJson(clients, clientsFile),
    rounds: await Promise.all(rounds.map((file) => readJson(file, roundFile))),
  };
  const found = (await sizeOf(result)) === undefined ? undefined : await readJson(result, resultFile);
  const missing = missingOf(run, found);
  if (!found || missing !== undefined) return { ...run, missing: missing! };
  const users = await readUserMetrics(directory);
  return { ...run, result: found, ...(users && { users }) };
}

async function roundFilesOf(directory: string): Promise<string[]> {
  const folder = join(directory, 'rounds');
  const names = await readdir(folder).catch((cause: NodeJS.ErrnoException) => {
    if (cause.code === 'ENOENT') return [];
    throw cause;
  });
  return names
    .filter((name) => /^\d+$/.test(name))
    .sort((a, b) => Number(a) - Number(b))
    .map((name) => join(folder, name, 'round.json'));
}

/** Undefined if there is no such file. */
async function sizeOf(file: string): Promise<number | undefined> {
  return stat(file).then(
    ({ size }) => size,
    () => undefined,
  );
}

async function assertReadable(directory: string, files: readonly string[]): Promise<void> {
  const sizes = await Promise.all(files.map(sizeOf));
  const bytes = sizes.reduce<number>((sum, size) => sum + (size ?? 0), 0);
  if (bytes > maxRunBytes)
    throw new Error(
      `report: the files of ${directory} have ${Math.ceil(bytes / 2 ** 20)} MiB; a report is made of at most ${maxRunBytes / 2 ** 20}`,
    );
}

/** A result is of all rounds, and these are there: a run that goes on leaves the old one until it has a new one. */
function missingOf(
  { config: { federation }, rounds }: Pick<RunFiles, 'config' | 'rounds'>,
  result: ResultFile | undefined,
): string | undefined {
  const goOn = 'go on with --resume';
  if (result && result.rounds !== rounds.length)
    return `its result is of ${result.rounds} rounds, and there are ${rounds.length} by now: ${goOn}`;
  const stopped = (rounds.at(-1)?.roundsWithoutImprovement ?? 0) >= federation.patience;
  if (rounds.length < federation.rounds && !stopped)
    return `${rounds.length} of ${federation.rounds} rounds are done, and it has ${result ? 'the result of these' : 'no result'}: ${goOn}`;
  return result
    ? undefined
    : `its rounds are done, but it has no result, since it was not evaluated: ${goOn}`;
}
