// A small federated run in a process of its own, which can be killed before any of its file operations or while a
// client trains: node toy-run.ts <directory> <create | resume> [file:<n> | step:<n>]. Prints how many of each it made.
import fs from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';
import { join } from 'node:path';
import { createRun, federate, fellrec, openRun, type ParametersFormat } from '../src/index.ts';
import { quadratic, tensors } from './toy.ts';

const [directory, how, death = ''] = process.argv.slice(2) as [string, 'create' | 'resume', string?];
const counts = { file: 0, step: 0 };
function count(what: 'file' | 'step'): void {
  counts[what]++;
  if (death === `${what}:${counts[what]}`) process.kill(process.pid, 'SIGKILL');
}

const operations = [
  'appendFile',
  'cp',
  'link',
  'mkdir',
  'open',
  'rename',
  'rm',
  'truncate',
  'writeFile',
] as const;
for (const name of operations) {
  const original = fs[name] as (...args: unknown[]) => Promise<unknown>;
  const counted = async (...args: unknown[]) => {
    count('file');
    return original(...args);
  };
  Object.assign(fs, { [name]: counted });
}
syncBuiltinESMExports();

/** Two files, the second one in two pieces: a death in between must not leave a half adapter that counts. */
const format: ParametersFormat = {
  async write(folder, parameters) {
    const text = JSON.stringify([...parameters.get('x')!.data]);
    await fs.writeFile(join(folder, 'shape.json'), `${parameters.get('x')!.dims}`);
    await fs.writeFile(join(folder, 'x.json'), text.slice(0, 5));
    await fs.appendFile(join(folder, 'x.json'), text.slice(5));
  },
  async read(folder) {
    return tensors({ x: JSON.parse(await fs.readFile(join(folder, 'x.json'), 'utf8')) as number[] });
  },
};
const clients = [
  quadratic('north', { target: [4, 0, 1], validationTarget: [1, 0, 0] }),
  quadratic('south', { target: [-1, 2, 0], samples: 30 }),
  quadratic('idle', { target: [9, 9, 9], samples: 0 }),
  quadratic('west', { target: [0, 1, 3], validationTarget: [0, 1, 2] }),
];
const strategy = fellrec({
  similarityOn: 'update',
  similarity: { form: 'relative', smoothing: 0.6 },
  heating: { alpha: 0.7, beta: 3, temperature: 0.5, exponent: 't/beta' },
});

const contents = { config: { seed: 1 }, clients: { users: ['north', 'south', 'idle', 'west'] } };
const store =
  how === 'create' ? await createRun(directory, contents, format) : await openRun(directory, format);
const resume = await store.state();
const initial = tensors({ x: [0, 0, 0] });
for await (const event of federate({
  clients,
  strategy,
  initial,
  rounds: 6,
  patience: 9,
  ...(resume && { resume }),
})) {
  if (event.type === 'client-progress') count('step');
  await store.record(event);
}
await store.close();
process.stdout.write(JSON.stringify(counts));
