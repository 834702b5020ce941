// One way to rank of bench/modes.ts: a run's users, timed without opening the model.
import { parseArgs } from 'node:util';
import { evaluate, withRanking } from '@fellrec/cli';
import type { Measured } from './contest.ts';

const string = { type: 'string' } as const;
const { values } = parseArgs({ options: { run: string, mode: string, users: string } });
const o = values as Required<typeof values>;
const { seconds } = await evaluate(
  o.run,
  withRanking([`ranking.mode=${o.mode}`, `data.testUsers=${o.users}`]),
);
const measured: Measured = { seconds: [seconds], peakRssMiB: process.resourceUsage().maxRSS / 1024 };
process.stdout.write(`${JSON.stringify(measured)}\n`);
