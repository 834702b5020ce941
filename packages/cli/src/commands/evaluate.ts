import { withRanking } from '../config.ts';
import { print } from '../output.ts';
import { progressOn } from '../progress.ts';
import { evaluate, type RunResult } from '../train.ts';
import { describeResult } from './train.ts';

interface Options {
  readonly testUsers?: number;
  readonly set?: readonly string[];
  readonly json?: boolean;
}

export async function run(directory: string, { testUsers, set = [], json = false }: Options): Promise<void> {
  const users = testUsers === undefined ? [] : [`data.testUsers=${testUsers}`];
  const override = withRanking([...set, ...users]);
  const result = await evaluate(directory, override, progressOn(process.stderr));
  print(result, `${describeResult(result)}${described(result)}`, { json });
}

/** How it was ranked, of all ways that it could be. */
function described({ ranking: { mode, inject } }: RunResult): string {
  return `Ranked as ranking.mode=${mode}${inject ? ` ranking.inject=${inject}` : ''} says; nothing of this is stored ("fellrec compare" stores, and says whether modes differ).`;
}
