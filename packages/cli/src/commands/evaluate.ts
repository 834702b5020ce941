import { withRanking } from '../config.ts';
import { print } from '../output.ts';
import { progressOn } from '../progress.ts';
import { evaluate } from '../train.ts';
import { describeRun } from './train.ts';

interface Options {
  readonly testUsers?: number;
  readonly set?: readonly string[];
  readonly json?: boolean;
}

export async function run(directory: string, { testUsers, set = [], json = false }: Options): Promise<void> {
  const users = testUsers === undefined ? [] : [`data.testUsers=${testUsers}`];
  const override = withRanking([...set, ...users]);
  const result = await evaluate(directory, override, progressOn(process.stderr));
  print(result, describeRun(result), { json });
}
