import type { Config } from '../config.ts';
import { print } from '../output.ts';
import { progressOn } from '../progress.ts';
import { evaluate } from '../train.ts';
import { describeRun } from './train.ts';

export async function run(directory: string, options: { testUsers?: number; json?: boolean }): Promise<void> {
  const override = (config: Config): Config =>
    options.testUsers === undefined
      ? config
      : { ...config, data: { ...config.data, testUsers: options.testUsers } };
  const result = await evaluate(directory, override, progressOn(process.stderr));
  print(result, describeRun(result), options);
}
