import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { ConfigError, loadConfig } from '../config.ts';
import { exitCodes } from '../exit-codes.ts';
import { print } from '../output.ts';
import { type Progress, progressOn } from '../progress.ts';
import { runDirectory } from '../stored-run.ts';
import { clientTable, comparisonTable, groupTable } from '../table.ts';
import { type RunResult, train } from '../train.ts';

interface Options {
  readonly config: string;
  readonly set?: readonly string[];
  readonly resume?: boolean;
  readonly force?: boolean;
  readonly json?: boolean;
}

export async function run({ config: file, set, resume, force, json }: Options): Promise<void> {
  if (resume && force)
    throw new ConfigError('train: --resume goes on with a run, --force replaces it; pass one of them');
  const config = await loadConfig(file, set);
  const progress = progressOn(process.stderr);
  const onSignal = () => {
    const hasBegun = existsSync(join(runDirectory(config), 'config.json'));
    progress.line(
      `fellrec: train: stopped; ${hasBegun ? 'complete rounds are safe, go on with --resume' : 'nothing had begun'}`,
    );
    process.exit(exitCodes.failed);
  };
  process.once('SIGINT', onSignal).once('SIGTERM', onSignal);
  try {
    const result = await train(config, { progress, resume: resume ?? false, force: force ?? false });
    print(result, describeRun(result), { json: json ?? false });
    await addReport(result.directory, progress);
  } finally {
    process.off('SIGINT', onSignal).off('SIGTERM', onSignal);
  }
}

/** Writes a run's report into its folder. The run is done by then: where this fails it is said, and nothing else fails. */
export async function addReport(directory: string, progress: Progress): Promise<void> {
  const file = join(directory, 'report.html');
  try {
    // The charts' libraries are large, and needed here only.
    const [{ readRunFiles }, { writeRunReport }] = await Promise.all([
      import('../report/run-files.ts'),
      import('../report/runs.ts'),
    ]);
    await writeRunReport(file, [await readRunFiles(directory)]);
    progress.line(`report: ${file}`);
  } catch (error) {
    progress.line(
      `${(error as Error).message}\nThe run is complete without its report: "fellrec report ${directory}" writes it.`,
    );
  }
}

export function describeRun(result: RunResult): string {
  return `${describeResult(result)}The run's files: ${result.directory}`;
}

export function describeResult(result: RunResult): string {
  const [dropped, groups] = [droppedHistory(result), groupTable(result)];
  return `${clientTable(result)}

${groups && `${groups}\n\n`}${comparisonTable([result])}
${dropped && `\n${dropped}\n`}
${popularity(result)}`;
}

function popularity({ popularityCosine: cosine, groups = [] }: RunResult): string {
  const whose =
    groups.length > 1 ? "the item popularity of one group's clients" : "the clients' item popularity";
  return cosine === undefined
    ? ''
    : `Similarity of ${whose}: ${cosine.toFixed(2)} (1: the partition says nothing).\n`;
}

/** What did not fit the context; empty if everything did. */
export function droppedHistory({ clients, truncatedTests }: RunResult): string {
  const samples = clients.reduce((n, { truncated }) => n + truncated, 0);
  const parts = [
    samples > 0 && `${samples} training samples`,
    truncatedTests > 0 && `${truncatedTests} test prompts`,
  ].filter((part) => typeof part === 'string');
  if (parts.length === 0) return '';
  return `${parts.join(' and ')} were longer than the context; their oldest history was dropped.`;
}
