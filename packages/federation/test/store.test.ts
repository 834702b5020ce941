// A run's folder: who may make it, open it and write to it, and what it gives back.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { NamedTensors } from '@fellrec/graph';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { createRun, federate, local, openRun, type ParametersFormat, type RunStore } from '../src/index.ts';
import { loaded, quadratic, tensors } from './toy.ts';

const format: ParametersFormat = {
  write: (folder, parameters) =>
    writeFile(join(folder, 'x.json'), JSON.stringify([...parameters.get('x')!.data])),
  read: async (folder) =>
    tensors({ x: JSON.parse(await readFile(join(folder, 'x.json'), 'utf8')) as number[] }),
};
const contents = { config: { seed: 1, training: { epochs: 2 } }, clients: ['a', 'b'] };

let scratch: string;
let directory: string;
beforeEach(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'store-'));
  directory = join(scratch, 'runs', 'one');
});
afterEach(() => rm(scratch, { recursive: true, force: true }));

async function train(store: RunStore, rounds: number, names: readonly string[] = ['a', 'b']): Promise<void> {
  const resume = await store.state();
  const clients = names.map((name, c) => quadratic(name, { target: [c + 1, 1] }));
  const run = { clients, strategy: local(), initial: tensors({ x: [0, 0] }), rounds, patience: 5 };
  for await (const event of federate({ ...run, ...(resume && { resume }) })) await store.record(event);
}

describe('a run', () => {
  it('has no state before its first round, and gives back what it was given', async () => {
    const store = await createRun(directory, contents, format);
    expect(await store.state()).toBeUndefined();
    expect(await store.best('a')).toBeUndefined();
    await expect(store.bestParameters('a')).rejects.toThrow('no best parameters of "a"');
    expect(store.config()).toEqual(contents.config);
    expect(store.clients()).toEqual(contents.clients);
    await store.close();
  });

  it('has after every round the state that the federation had', async () => {
    const store = await createRun(directory, contents, format);
    const clients = [quadratic('a', { target: [1, 2] }), quadratic('b', { target: [3, 1] })];
    const run = { clients, strategy: local(), initial: tensors({ x: [0, 0] }), rounds: 4, patience: 5 };
    let bestOfB: NamedTensors | undefined;
    for await (const event of federate(run)) {
      await store.record(event);
      if (event.type !== 'round-finished') continue;
      expect(await loaded((await store.state())!)).toEqual(await loaded(event.state));
      const { round, loss, parameters } = (await store.best('b'))!;
      expect({ round, loss }).toEqual(event.state.best.get('b'));
      if (round === event.round) bestOfB = await event.state.parameters.get('b')!();
      expect(parameters).toEqual(bestOfB);
    }
    const history = await store.history();
    expect(history.map(({ round }) => round)).toEqual([0, 1, 2, 3]);
    expect(Object.keys(history[0]!.losses)).toEqual(['a', 'b']);
    await store.close();
  });

  it('is not made over another one without force', async () => {
    await (await createRun(directory, contents, format)).close();
    await expect(createRun(directory, contents, format)).rejects.toThrow(/--resume.*--force/);
  });

  it('made with force leaves nothing of the old one', async () => {
    const old = await createRun(directory, contents, format);
    await train(old, 2);
    await old.close();
    const store = await createRun(directory, { ...contents, force: true }, format);
    expect(await store.state()).toBeUndefined();
    expect(await readdir(join(directory, 'rounds'))).toEqual([]);
    expect(await readdir(join(directory, 'best'))).toEqual([]);
    await store.close();
  });

  it('is never made in a folder with other files, and never removes them', async () => {
    await mkdir(directory, { recursive: true });
    await writeFile(join(directory, 'thesis.tex'), '');
    for (const force of [false, true])
      await expect(createRun(directory, { ...contents, force }, format)).rejects.toThrow('thesis.tex');
    expect(await readdir(directory)).toEqual(['thesis.tex']);
  });

  it('keeps parameters of the last two rounds, and of those that its format says, also when it is opened again', async () => {
    const keeping = { ...format, keeps: (round: number) => round === 1 };
    const first = await createRun(directory, contents, keeping);
    await train(first, 5);
    await first.close();
    const store = await openRun(directory, keeping);
    const there: number[] = [];
    for (let round = 0; round < 5; round++)
      await store.parameters('a', round).then(
        () => there.push(round),
        (error: Error) => expect(error.message).toContain('has no parameters of "a"'),
      );
    expect(there).toEqual([1, 3, 4]);
    await store.close();
  });

  it('that is finished and only read keeps every event', async () => {
    const store = await createRun(directory, contents, format);
    await train(store, 2);
    await store.close();
    const said = await readFile(join(directory, 'events.jsonl'), 'utf8');
    expect(said).toMatch(/\n\{"type":"run-finished".*\n$/);
    const read = await openRun(directory, format);
    await read.bestParameters('a');
    await read.close();
    expect(await readFile(join(directory, 'events.jsonl'), 'utf8')).toBe(said);
  });

  it('is opened only where there is one', async () => {
    await expect(openRun(directory, format)).rejects.toThrow('no config.json');
  });

  it('names what is damaged', async () => {
    const store = await createRun(directory, contents, format);
    await train(store, 1);
    await store.close();
    await writeFile(join(directory, 'rounds', '0000', 'round.json'), '{');
    await expect(openRun(directory, format)).rejects.toThrow(/0000.round\.json is damaged/);
  });

  it('refuses clients whose names are no folder names', async () => {
    for (const name of ['../a', 'a/b', '', '.hidden', 'round.json', 'a.tmp']) {
      const store = await createRun(directory, { ...contents, force: true }, format);
      await expect(train(store, 1, [name])).rejects.toThrow('cannot name a folder');
      await store.close();
    }
  });
});

describe('the lock', () => {
  it('keeps others out, this process included, until it is closed', async () => {
    const store = await createRun(directory, contents, format);
    await expect(openRun(directory, format)).rejects.toThrow(`process ${process.pid} is working in`);
    await expect(createRun(directory, { ...contents, force: true }, format)).rejects.toThrow('is working in');
    await store.close();
    await (await openRun(directory, format)).close();
    expect(await readdir(directory)).not.toContain('lock');
  });

  it('of a live process holds, of a dead one is taken over', async () => {
    await (await createRun(directory, contents, format)).close();
    const other = spawn(process.execPath, ['-e', 'setInterval(() => {}, 1000)']);
    await once(other, 'spawn');
    await writeFile(join(directory, 'lock'), `${other.pid} ${await startedAt(other.pid!)}\n`);
    await expect(openRun(directory, format)).rejects.toThrow(`process ${other.pid} is working in`);
    other.kill('SIGKILL');
    await once(other, 'exit');
    await (await openRun(directory, format)).close();
  });

  it.runIf(process.platform === 'linux')('of a dead process whose id lives again is taken over', async () => {
    await (await createRun(directory, contents, format)).close();
    await writeFile(join(directory, 'lock'), `${process.pid} 1\n`);
    await (await openRun(directory, format)).close();
  });

  it('that is empty, as after a power failure, is taken over', async () => {
    await (await createRun(directory, contents, format)).close();
    await writeFile(join(directory, 'lock'), '');
    await (await openRun(directory, format)).close();
  });

  it('goes to one of two that take a dead one over at once', async () => {
    await (await createRun(directory, contents, format)).close();
    await writeFile(join(directory, 'lock'), '999999999 1\n');
    const opened = await Promise.allSettled([1, 2].map(() => openRun(directory, format)));
    const stores = opened.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
    expect(stores.length).toBe(1);
    await stores[0]!.close();
  });
});

describe('a full disk', () => {
  it('is said clearly, leaves nothing half-written, and the run goes on later', async () => {
    let room = 5;
    const small: ParametersFormat = {
      ...format,
      async write(folder, parameters) {
        await format.write(folder, parameters);
        if (--room < 0) throw Object.assign(new Error('ENOSPC: no space left on device'), { code: 'ENOSPC' });
      },
    };
    const store = await createRun(directory, contents, small);
    await expect(train(store, 4)).rejects.toThrow(/cannot write round 3 in .*: no space is left.*--resume/);
    expect(await readdir(join(directory, 'rounds'))).toEqual(['0000', '0001']);
    await store.close();

    const later = await openRun(directory, format);
    expect((await later.state())!.nextRound).toBe(2);
    await train(later, 4);
    const whole = join(scratch, 'whole');
    const reference = await createRun(whole, contents, format);
    await train(reference, 4);
    expect(await loaded((await later.state())!)).toEqual(await loaded((await reference.state())!));
    const lines = async (folder: string) =>
      (await readFile(join(folder, 'events.jsonl'), 'utf8')).split('\n').length;
    expect(await lines(directory)).toBe(await lines(whole));
    expect((await stat(join(directory, 'events.jsonl'))).isFile()).toBe(true);
    for (const opened of [later, reference]) await opened.close();
  });
});

async function startedAt(pid: number): Promise<string> {
  const text = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '');
  return text.slice(text.lastIndexOf(')') + 2).split(' ')[19] ?? '';
}
