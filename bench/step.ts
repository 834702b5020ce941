// One LoRA training step against PyTorch, alternating, as ratios of best steps: float32 against float32, the quantised
// bases against bfloat16 weights; and the share of the bare matrix product's rate.
//
//   node bench/step.ts --model FOLDER --python PYTHON [--rounds 3] [--base float32,int8,int8-fast] [--micro-batch 4]
//
// PYTHON is an interpreter with torch 2.13.0, transformers 5.23.0 and peft 0.21.2.
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { list, machine, rounded } from './contest.ts';

const { values: o } = parseArgs({
  options: {
    model: { type: 'string' },
    python: { type: 'string', default: 'python3' },
    rounds: { type: 'string', default: '3' },
    base: { type: 'string', default: 'float32,int8,int8-fast' },
    'micro-batch': { type: 'string', default: '4' },
    cache: { type: 'string', default: '.cache/fellrec' },
  },
});
if (!o.model) throw new Error('bench: name a model folder with --model');
const root = fileURLToPath(new URL('..', import.meta.url));
const shape = ['--batch', '8', '--length', '128', '--labels', '15'];
const bases = list(o.base);
const peers = ['plain', 'hf'].flatMap((implementation) =>
  ['fp32', 'bf16'].map((dtype) => ({ name: `${implementation} ${dtype}`, implementation, dtype })),
);

interface Measured {
  readonly tokensPerSecond: number | { readonly best: number };
  readonly peakRssMiB: number;
  readonly gigaflopsPerSecond?: { readonly share: number };
}
const run = (command: string, args: readonly string[]): Measured =>
  JSON.parse(
    execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] })
      .trim()
      .split('\n')
      .at(-1)!,
  );
const ours = (base: string) => () =>
  run(process.execPath, [
    join(root, 'packages/cli/bin/fellrec.js'),
    ...['bench', 'step', '--model', o.model!, '--cache', o.cache, '--base', base],
    ...['--micro-batch', o['micro-batch'], ...shape],
  ]);
const theirs = (implementation: string, dtype: string) => () =>
  run(o.python, [
    join(root, 'bench/peer_step.py'),
    ...['--config', join(o.model!, 'config.json'), '--impl', implementation, '--dtype', dtype],
    ...[...shape, '--steps', '6'],
  ]);
const contestants = [
  ...bases.map((base) => ({ name: base, measure: ours(base) })),
  ...peers.map(({ name, implementation, dtype }) => ({ name, measure: theirs(implementation, dtype) })),
];

// Whatever is computed once and kept in the cache is none of a step's memory.
for (const base of bases)
  run(process.execPath, [
    join(root, 'packages/cli/bin/fellrec.js'),
    ...['bench', 'step', '--model', o.model, '--cache', o.cache, '--base', base, '--steps', '1', ...shape],
  ]);

interface Best {
  tokensPerSecond: number;
  peakRssMiB: number;
  shareOfBareProduct?: number;
}
const best = new Map<string, Best>();
for (let round = 0; round < Number(o.rounds); round++)
  for (const { name, measure } of contestants) {
    const { tokensPerSecond, peakRssMiB, gigaflopsPerSecond } = measure();
    const known = best.get(name);
    const share = gigaflopsPerSecond?.share;
    best.set(name, {
      tokensPerSecond: Math.max(
        typeof tokensPerSecond === 'number' ? tokensPerSecond : tokensPerSecond.best,
        known?.tokensPerSecond ?? 0,
      ),
      peakRssMiB: Math.max(peakRssMiB, known?.peakRssMiB ?? 0),
      ...(share !== undefined && { shareOfBareProduct: Math.max(share, known?.shareOfBareProduct ?? 0) }),
    });
  }
const ratios = bases.map((base) => {
  const dtype = base === 'float32' ? 'fp32' : 'bf16';
  const alike = peers.filter((peer) => peer.dtype === dtype).map(({ name }) => best.get(name)!);
  const { tokensPerSecond, peakRssMiB } = best.get(base)!;
  return {
    base,
    [`speed over the faster ${dtype}`]: rounded(
      tokensPerSecond / Math.max(...alike.map((peer) => peer.tokensPerSecond)),
    ),
    [`memory over the smaller ${dtype}`]: rounded(
      peakRssMiB / Math.min(...alike.map((peer) => peer.peakRssMiB)),
    ),
  };
});
process.stdout.write(
  `${JSON.stringify({ machine, best: Object.fromEntries(best), ratios }, undefined, 2)}\n`,
);
