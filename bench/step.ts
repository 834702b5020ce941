// One LoRA training step against PyTorch, alternating, as a ratio of best steps.
//
//   node bench/step.ts --model FOLDER --python PYTHON [--rounds 3]
//
// PYTHON is an interpreter with torch 2.13.0, transformers 5.23.0 and peft 0.21.2.
import { execFileSync } from 'node:child_process';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const { values } = parseArgs({
  options: {
    model: { type: 'string' },
    python: { type: 'string', default: 'python3' },
    rounds: { type: 'string', default: '3' },
    cache: { type: 'string', default: '.cache/fellrec' },
  },
});
if (!values.model) throw new Error('bench: name a model folder with --model');
const root = fileURLToPath(new URL('..', import.meta.url));
const shape = ['--batch', '8', '--length', '128', '--labels', '15'];

interface Measured {
  readonly tokensPerSecond: number | { readonly best: number };
  readonly peakRssMiB: number;
}
const run = (command: string, args: readonly string[]): Measured =>
  JSON.parse(
    execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] })
      .trim()
      .split('\n')
      .at(-1)!,
  );
const contestants = {
  fellrec: () =>
    run(process.execPath, [
      join(root, 'packages/cli/bin/fellrec.js'),
      ...['bench', 'step', '--model', values.model!, '--cache', values.cache, '--micro-batch', '8', ...shape],
    ]),
  plain: () => peer('plain'),
  hf: () => peer('hf'),
};
function peer(implementation: string): Measured {
  const config = join(values.model!, 'config.json');
  return run(values.python, [
    join(root, 'bench/peer_step.py'),
    '--config',
    config,
    '--impl',
    implementation,
    ...shape,
    '--steps',
    '6',
  ]);
}

const best: Record<string, { tokensPerSecond: number; peakRssMiB: number }> = {};
for (let round = 0; round < Number(values.rounds); round++)
  for (const [name, measure] of Object.entries(contestants)) {
    const { tokensPerSecond, peakRssMiB } = measure();
    const speed = typeof tokensPerSecond === 'number' ? tokensPerSecond : tokensPerSecond.best;
    const known = best[name];
    best[name] = {
      tokensPerSecond: Math.max(speed, known?.tokensPerSecond ?? 0),
      peakRssMiB: Math.max(peakRssMiB, known?.peakRssMiB ?? 0),
    };
  }
const peers = [best.plain!, best.hf!];
process.stdout.write(
  `${JSON.stringify(
    {
      machine: { cpu: cpus()[0]!.model, cores: cpus().length, node: process.version },
      best,
      speedRatio: best.fellrec!.tokensPerSecond / Math.max(...peers.map((p) => p.tokensPerSecond)),
      memoryRatio: best.fellrec!.peakRssMiB / Math.min(...peers.map((p) => p.peakRssMiB)),
    },
    undefined,
    2,
  )}\n`,
);
