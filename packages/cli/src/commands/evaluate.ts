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

/** How it was ranked, where that is not the paper's way, and what becomes of it. */
function described({ ranking: { mode, inject } }: RunResult): string {
  const ranked = [
    ...(mode === 'grounded' ? [] : [`ranking.mode=${mode}`]),
    ...(inject ? [`ranking.inject=${inject}`] : []),
  ];
  return `${ranked.length > 0 ? `Ranked with ${ranked.join(' ')}. ` : ''}Nothing of this is stored: "fellrec compare" stores, and says whether ways to rank differ.`;
}
