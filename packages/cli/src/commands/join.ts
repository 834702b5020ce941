import { ConfigError } from '../config.ts';
import { type JoinOptions, join } from '../join.ts';
import { print } from '../output.ts';
import { progressOn } from '../progress.ts';

export type JoinFlags = Omit<JoinOptions, 'server' | 'giveUpSeconds' | 'progress'> & {
  readonly giveUp: number;
  readonly json?: boolean;
};

export async function run(server: string, { giveUp, json, ...flags }: JoinFlags): Promise<void> {
  if (flags.token === undefined && flags.cert === undefined)
    throw new ConfigError('join: say who you are: --token FILE, or --cert FILE with --key FILE');
  if ((flags.cert === undefined) !== (flags.key === undefined))
    throw new ConfigError('join: --cert and --key go together');
  const progress = progressOn(process.stderr);
  const result = await join({ ...flags, server, giveUpSeconds: giveUp, progress });
  const metrics = Object.entries(result.metrics).map(([name, value]) => `${name}  ${value.toFixed(4)}`);
  const { up, down } = result.traffic;
  const text = [
    `${result.client}: the run is over`,
    ...(result.testUsers > 0 ? [`${result.testUsers} test users`, ...metrics] : ['no test users']),
    ...(up > 0 ? [`${up} bytes of activations sent, ${down} received`] : []),
    ...(result.output ? [`best parameters: ${result.output}`] : []),
  ];
  print(result, text.join('\n'), { json: json ?? false });
}
