import { join, resolve } from 'node:path';
import { compared } from '../compare/compared.ts';
import { readRanking } from '../compare/rankings.ts';
import type { Comparison } from '../compare/result.ts';
import { readTrials } from '../compare/trials.ts';
import { ConfigError } from '../config.ts';
import { print } from '../output.ts';
import { type RunFiles, readRunFiles } from '../report/run-files.ts';
import { writeRunReport } from '../report/runs.ts';
import { defaultBaseline } from './compare.ts';

interface Options {
  readonly output?: string;
  readonly json?: boolean;
}

export async function run(folders: readonly string[], { output, json }: Options): Promise<void> {
  const several = folders.length > 1;
  if (output === undefined && several)
    throw new ConfigError('report: say with -o FILE where the report of several runs is to go');
  const directories = folders.map((folder) => resolve(folder));
  const runs = await readAll(several ? await withoutRankings(directories) : directories);
  const file = resolve(output ?? join(directories[0]!, 'report.html'));
  const comparison = several ? await comparisonOf(directories) : undefined;
  await writeRunReport(file, runs, comparison);

  const found = runs.map(({ directory, config, missing }) => ({
    directory,
    name: config.name,
    ...(missing !== undefined && { missing }),
  }));
  const notCompared = comparison instanceof Error ? comparison.message : undefined;
  const lines = [
    ...found.flatMap(({ name, missing }) => (missing ? [`${name} is not complete: ${missing}`] : [])),
    ...(notCompared === undefined ? [] : [`not compared: ${notCompared}`]),
    `report: ${file}`,
  ];
  const result = { file, runs: found, ...(notCompared !== undefined && { notCompared }) };
  print(result, lines.join('\n'), { json: json ?? false });
}

/** Rankings have no rounds: a comparison has all there is to say of them. */
async function withoutRankings(directories: readonly string[]): Promise<string[]> {
  const rankings = await Promise.all(directories.map(readRanking));
  return directories.filter((_, i) => rankings[i] === undefined);
}

/** @throws with everything that is wrong, of all folders. */
async function readAll(directories: readonly string[]): Promise<RunFiles[]> {
  const settled = await Promise.allSettled(directories.map(readRunFiles));
  const reasons = settled.flatMap((one) => (one.status === 'rejected' ? [one.reason as Error] : []));
  if (reasons.length > 0)
    throw new Error(reasons.map(({ message }) => message).join('\n'), { cause: reasons[0] });
  return settled.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []));
}

/** An error says why they cannot be compared, such as other data: each still has its own part of the report. */
async function comparisonOf(directories: readonly string[]): Promise<Comparison | Error> {
  try {
    const trials = await readTrials(directories);
    return compared(trials, defaultBaseline(trials.map(({ method }) => method)));
  } catch (error) {
    return error as Error;
  }
}
