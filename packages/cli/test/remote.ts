// A federation whose server and clients are processes of their own on this machine, with TLS, that tests kill, stop and
// start again.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createKeys, writeKeys } from '@fellrec/network';
import { importDataset } from '@fellrec/recsys';
import { expect } from 'vitest';
import { openProxy, type TestProxy } from './proxy.ts';
import { embeddedModel, fellrec, filesOf, interactions, items, readJson, root } from './shared.ts';

/** The clients, and the first layers that each keeps (of five; all if undefined). */
const layersKept: Readonly<Record<string, number | undefined>> = {
  'client-0': 1,
  'client-1': undefined,
  'client-2': 3,
};
export const everyone = Object.keys(layersKept);
/** Who takes part unless a test says otherwise: two that have little in common. */
const usual = ['client-0', 'client-1'];

const users = 12;

export interface ServeFlags {
  readonly clients?: readonly string[];
  /** On the port of the server before. */
  readonly resume?: boolean;
  readonly more?: readonly string[];
}

export interface JoinFlags {
  /** In place of the server's own address. */
  readonly via?: TestProxy;
  readonly clockShiftHours?: number;
}

/** A run of a name, and the processes that take part in it. */
export interface RemoteRun {
  readonly directory: string;
  /** Starts the server and waits until it listens. */
  serve(flags?: ServeFlags): Promise<Process>;
  join(client: string, flags?: JoinFlags): Process;
  proxy(): Promise<TestProxy>;
  /** Address of the server. */
  address(): string;
  /** Where a client writes its best parameters. */
  output(client: string): string;
  /** The same of runs that ended the same: adapters byte by byte, the server's and the clients', losses, mixtures, metrics. */
  outcome(): Promise<unknown>;
  /** Ends what still runs. */
  close(): Promise<void>;
}

export interface RemotePlace {
  readonly folder: string;
  /** A file of `fellrec keys`. */
  key(name: string): string;
  run(name: string): RemoteRun;
  remove(): Promise<void>;
}

/** A folder with a configuration, each client's data, and keys. */
export async function remotePlace(): Promise<RemotePlace> {
  const folder = await mkdtemp(join(tmpdir(), 'fellrec-test-'));
  const inside = (...path: string[]) => join(folder, ...path);
  const lines = (await readFile(interactions, 'utf8')).split('\n');
  await writeFile(inside('sequences.tsv'), lines.slice(0, 1 + users).join('\n'));
  await importDataset({
    interactions: inside('sequences.tsv'),
    items,
    columns: { sequence: 'items' },
    kCore: 0,
    output: inside('data'),
  });
  const config = inside('config.json');
  await writeFile(
    config,
    JSON.stringify({
      name: 'faults',
      runs: inside('runs'),
      cache: inside('cache'),
      threads: 1,
      data: { path: inside('data') },
      model: { path: embeddedModel, maxTokens: 288 },
      partition: { method: 'random', clients: everyone.length },
      lora: { rank: 2, alpha: 4 },
      training: { batchSize: 2, learningRate: 0.003 },
      generation: { beams: 1, maxNewTokens: 4, batch: 8 },
      federation: { rounds: 2 },
      split: { adapters: 'all-layers' },
    }),
  );
  const partitioned = await fellrec('data', 'partition', '-c', config, '-o', inside('clients'));
  if (partitioned.code !== 0) throw new Error(partitioned.stderr);
  const keys = await createKeys({ clients: everyone, hosts: ['127.0.0.1'], days: 1 });
  await writeKeys(inside('keys'), keys, { force: false });
  const place = { folder, key: (name: string) => inside('keys', name) };
  return {
    ...place,
    run: (name) => remoteRun(place, name, config),
    remove: () => rm(folder, { recursive: true, force: true }),
  };
}

function remoteRun(
  { folder, key }: Pick<RemotePlace, 'folder' | 'key'>,
  name: string,
  config: string,
): RemoteRun {
  const directory = join(folder, 'runs', name);
  const output = (client: string) => join(folder, 'out', name, client);
  const processes: Process[] = [];
  const proxies: TestProxy[] = [];
  let address = '';

  function start(argv: readonly string[], clockShiftHours?: number): Process {
    const started = startProcess(argv, clockShiftHours);
    processes.push(started);
    return started;
  }
  return {
    directory,
    output,
    address: () => address,
    async serve({ clients = usual, resume = false, more = [] } = {}) {
      await mkdir(output(''), { recursive: true });
      const server = start([
        ...['serve', '-c', config, '--set', `name=${name}`],
        ...['--port', resume ? new URL(address).port : '0', ...(resume ? ['--resume'] : [])],
        ...['--tls-cert', key('server.crt'), '--tls-key', key('server.key'), '--tokens', key('tokens.json')],
        ...['--log-level', 'error', '--names', ...clients, ...more],
      ]);
      address = (await server.said(/listening on (https:\S+)/))[1]!;
      return server;
    },
    join(client, { via, clockShiftHours } = {}) {
      const k = layersKept[client];
      return start(
        [
          ...['join', via?.address ?? address, '--ca', key('ca.crt'), '--token', key(`${client}.token`)],
          ...['--data', join(folder, 'clients', client), '--model', embeddedModel, '--threads', '1'],
          ...(k === undefined ? [] : ['--k', String(k)]),
          ...['--cache', join(folder, 'cache', client), '-o', output(client)],
        ],
        clockShiftHours,
      );
    },
    async proxy() {
      const proxy = await openProxy({
        address,
        cert: key('server.crt'),
        key: key('server.key'),
        ca: key('ca.crt'),
      });
      proxies.push(proxy);
      return proxy;
    },
    outcome: async () => ({ ...(await outcomeOf(directory)), outputs: await outputsOf(output('')) }),
    async close() {
      await Promise.all(processes.map((process) => process.kill('SIGKILL')));
      await Promise.all(proxies.map((proxy) => proxy.close()));
    },
  };
}

/** A run that nothing happens to. */
export async function undisturbed(place: RemotePlace): Promise<unknown> {
  const run = place.run('undisturbed');
  try {
    const server = await run.serve();
    await allDone(server, ...usual.map((client) => run.join(client)));
    return await run.outcome();
  } finally {
    await run.close();
  }
}

/** Waits until all have ended well. @throws as soon as one of them has not */
export async function allDone(...processes: Process[]): Promise<void> {
  await Promise.all(processes.map(async (process) => expect(await process.ended(), process.stderr).toBe(0)));
}

/** What clients kept, but for the run's name in their settings. */
async function outputsOf(folder: string) {
  const files = Object.entries(await filesOf(folder));
  return files.filter(([file]) => !file.endsWith('client.json'));
}

async function outcomeOf(directory: string) {
  const { clients, pooled, spread, rounds } = await readJson(directory, 'result.json');
  const records = Object.entries(await filesOf(join(directory, 'rounds')))
    .filter(([file]) => file.endsWith('round.json'))
    .map(([file, text]) => {
      const { seconds: _, ...record } = JSON.parse(text);
      return [file, record];
    });
  return { adapters: await filesOf(join(directory, 'best')), records, clients, pooled, spread, rounds };
}

export interface Process {
  readonly stderr: string;
  /** Waits until standard error has it. @throws if the process ends before that */
  said(pattern: RegExp): Promise<RegExpExecArray>;
  /** Waits for the end; a number is the exit code. */
  ended(): Promise<number | NodeJS.Signals>;
  signal(signal: NodeJS.Signals): void;
  /** Sends a signal and waits for the end. */
  kill(signal?: NodeJS.Signals): Promise<number | NodeJS.Signals>;
}

function startProcess(argv: readonly string[], clockShiftHours?: number): Process {
  const here = (file: string) => join(root, 'packages/cli/test', file);
  const shift = clockShiftHours === undefined ? [] : ['--import', here('shifted-clock.ts')];
  const child: ChildProcess = spawn(
    process.execPath,
    ['--conditions=source', ...shift, here('fellrec.ts'), ...argv],
    {
      stdio: ['ignore', 'ignore', 'pipe'],
      env: { ...process.env, CLOCK_SHIFT_HOURS: String(clockShiftHours ?? 0) },
    },
  );
  let stderr = '';
  let isOver = false;
  const listeners = new Set<() => void>();
  const tell = () => {
    for (const listener of listeners) listener();
  };
  child.stderr!.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
    tell();
  });
  const ended = once(child, 'close').then(([code, signal]) => {
    isOver = true;
    tell();
    return code ?? signal;
  });
  return {
    get stderr() {
      return stderr;
    },
    said: (pattern) =>
      new Promise((resolve, reject) => {
        const listen = () => {
          const found = pattern.exec(stderr);
          if (!found && !isOver) return;
          listeners.delete(listen);
          if (found) resolve(found);
          else reject(new Error(`fellrec ${argv[0]} ended before it said ${pattern}: ${stderr}`));
        };
        listeners.add(listen);
        listen();
      }),
    ended: () => ended,
    signal: (signal) => child.kill(signal),
    kill(signal = 'SIGKILL') {
      child.kill(signal);
      return ended;
    },
  };
}
