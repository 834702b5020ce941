// One way to rank of bench/modes.ts: what a run's users take, without what is made once (title vectors, which the first
// ranking leaves in the cache; programs as they are compiled; what is counted of the training items): a few users less.
import { parseArgs } from 'node:util';
import { evaluate, withRanking } from '@fellrec/cli';
import type { Measured } from './contest.ts';

export interface MeasuredMode extends Measured {
  /** Of all groups, each of which has `--users` of them. */
  readonly users: number;
}

const string = { type: 'string' } as const;
const { values } = parseArgs({ options: { run: string, mode: string, users: string } });
const o = values as Required<typeof values>;
const few = 8;
const evaluated = async (testUsers: number) => {
  const settings = [`ranking.mode=${o.mode}`, `data.testUsers=${testUsers}`];
  const { seconds, clients } = await evaluate(o.run, withRanking(settings));
  return { seconds, users: clients.reduce((sum, client) => sum + client.testUsers, 0) };
};
await evaluated(few);
const once = await evaluated(few);
const all = await evaluated(few + Number(o.users));
const measured: MeasuredMode = {
  seconds: [all.seconds - once.seconds],
  users: all.users - once.users,
  peakRssMiB: process.resourceUsage().maxRSS / 1024,
};
process.stdout.write(`${JSON.stringify(measured)}\n`);
