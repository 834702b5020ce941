// Users per second and memory of a run's ways to rank, each in a process of its own, alternating; --users of each group.
//   npx node --conditions=source bench/modes.ts RUN [--users 64] [--rounds 2] [--modes grounded,constrained,rerank]
//     [--place NAME]
// With --place the table goes between `<!-- NAME -->` and `<!-- /NAME -->` of docs/results.md.
import { parseArgs } from 'node:util';
import { readRun } from '../packages/cli/src/stored-run.ts';
import { contest, list, machine, ours, total } from './contest.ts';
import type { MeasuredMode } from './modes-ours.ts';
import { line, place } from './page.ts';

const { values: o, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    users: { type: 'string', default: '64' },
    rounds: { type: 'string', default: '2' },
    modes: { type: 'string', default: 'grounded,constrained,rerank' },
    place: { type: 'string' },
  },
});
const [run] = positionals;
if (run === undefined) throw new Error('bench: name the folder of a run');
const { threads } = (await readRun(run)).config;
const modes = list(o.modes);
const found = contest<MeasuredMode>(
  modes.map((mode) => ours(mode, 'modes-ours.ts', { run, mode, users: o.users })),
  Number(o.rounds),
);
const header = ['', 'users/s', 'peak MiB'];
const table = [
  line(header),
  line(header.map(() => '---')),
  ...modes.map((mode) => {
    const { seconds, users, peakRssMiB } = found.get(mode)!;
    return line([`\`${mode}\``, (users / total(seconds)).toFixed(2), peakRssMiB.toFixed(0)]);
  }),
  '',
  `${found.get(modes[0]!)!.users} users, the fastest of ${o.rounds} alternating runs, each a process of its own, threads: ${threads ?? machine.cores}; ${machine.cpu}, ${machine.cores} cores, Node ${machine.node}.`,
].join('\n');
if (o.place !== undefined) place(o.place, table);
else process.stdout.write(`${table}\n`);
