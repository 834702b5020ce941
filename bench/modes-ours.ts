// One way to rank of bench/modes.ts: what a run's users take, without what is made once (title vectors, which the first
// ranking leaves in the cache; programs as they are compiled; what is counted of the training items): a few users less.
import { parseArgs } from 'node:util';
import { evaluate, withRanking } from '@fellrec/cli';
import type { Measured } from './contest.ts';

const string = { type: 'string' } as const;
const { values } = parseArgs({ options: { run: string, mode: string, users: string } });
const o = values as Required<typeof values>;
const few = 8;
const seconds = async (users: number) =>
  (await evaluate(o.run, withRanking([`ranking.mode=${o.mode}`, `data.testUsers=${users}`]))).seconds;
await seconds(few);
const once = await seconds(few);
const all = await seconds(few + Number(o.users));
const measured: Measured = {
  seconds: [all - once],
  peakRssMiB: process.resourceUsage().maxRSS / 1024,
};
process.stdout.write(`${JSON.stringify(measured)}\n`);
