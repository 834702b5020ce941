// One server and three clients as processes of their own, on loopback with TLS: each client has its own users and keeps
// another number of layers, the server computes the layers in the middle. Two rounds on the quick start's data end with
// the table of the same run in one process.
//
//   npx node --conditions=source examples/over-the-network.ts
import { spawn } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { clientTable, type RunResult } from '@fellrec/cli';

/** k of each client; the model has five layers. */
const kept = { 'client-0': 0, 'client-1': 1, 'client-2': 3 };
const clients = Object.keys(kept) as (keyof typeof kept)[];
const quickstart = fileURLToPath(new URL('../packages/cli/quickstart', import.meta.url));
const command = fileURLToPath(new URL('../packages/cli/bin/fellrec.js', import.meta.url));

interface Running {
  /** What it printed; throws if it failed. */
  readonly output: Promise<string>;
  /** The first line on standard error that begins so. */
  line(beginning: string): Promise<string>;
  kill(): void;
}

function fellrec(...args: readonly string[]): Running {
  const child = spawn(process.execPath, [...process.execArgv, command, ...args]);
  let [stdout, stderr] = ['', ''];
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  const output = new Promise<string>((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code) =>
      code === 0 ? resolve(stdout) : reject(new Error(`fellrec ${args[0]}: exit code ${code}\n${stderr}`)),
    );
  });
  output.catch(() => {});
  return {
    output,
    async line(beginning) {
      const found = () => stderr.split('\n').find((line) => line.startsWith(beginning));
      while (!found()) await Promise.race([output, new Promise((resolve) => setTimeout(resolve, 50))]);
      return found()!;
    },
    kill: () => child.kill(),
  };
}

const folder = await mkdtemp(join(tmpdir(), 'fellrec-network-'));
const at = (...names: string[]) => join(folder, ...names);
const config = at('config.json');
await writeFile(
  config,
  JSON.stringify({
    name: 'one-process',
    runs: at('runs'),
    cache: at('cache'),
    data: { path: at('data') },
    model: { path: join(quickstart, 'stories260k'), maxTokens: 320 },
    partition: { method: 'random', clients: 3 },
    training: { batchSize: 16, microBatch: 8, learningRate: 0.003 },
    generation: { beams: 1, maxNewTokens: 12, batch: 32 },
    federation: { rounds: 2 },
  }),
);
const running: Running[] = [];
const start = (...args: string[]) => {
  running.push(fellrec(...args));
  return running.at(-1)!;
};
try {
  const sample = join(quickstart, 'games-sample');
  const source = ['--interactions', join(sample, 'sequences.tsv'), '--items', join(sample, 'items.tsv')];
  await start('data', 'import', ...source, '--sequence-column', 'items', '-o', at('data')).output;
  await start('data', 'partition', '-c', config, '-o', at('clients')).output;
  await start('keys', '--clients', clients.join(), '-o', at('keys')).output;

  const together = start('train', '-c', config, '--set', `split.k=${JSON.stringify(kept)}`, '--json');
  const inOneProcess: RunResult = JSON.parse(await together.output);

  const tls = ['--tls-cert', at('keys', 'server.crt'), '--tls-key', at('keys', 'server.key')];
  const tokens = ['--tokens', at('keys', 'tokens.json')];
  const settings = ['-c', config, '--set', 'name=over-the-network', '--port', '0', '--json'];
  const server = start('serve', ...settings, ...tls, ...tokens);
  const address = (await server.line('listening on ')).split(' ').at(-1)!;
  const joined = clients.map((client) => {
    const own = ['--data', at('clients', client), '--model', join(quickstart, 'stories260k')];
    const credentials = ['--ca', at('keys', 'ca.crt'), '--token', at('keys', `${client}.token`)];
    return start('join', address, ...own, ...credentials, '--k', `${kept[client]}`, '--cache', at(client));
  });
  const overTheNetwork: RunResult = JSON.parse(await server.output);
  await Promise.all(joined.map(({ output }) => output));

  console.log(`In one process:\n\n${clientTable(inOneProcess)}\n`);
  console.log(
    `Over the network, ${clients.map((client) => `${client} with k = ${kept[client]}`).join(', ')}:\n`,
  );
  console.log(clientTable(overTheNetwork));
  const numbers = ({ clients, pooled }: RunResult) =>
    JSON.stringify([...clients.map(({ client, metrics }) => [client, rounded(metrics)]), rounded(pooled)]);
  const same = numbers(inOneProcess) === numbers(overTheNetwork);
  console.log(same ? '\nThe metrics are equal.' : '\nThe metrics differ.');
  if (!same) process.exitCode = 1;
} finally {
  for (const one of running) one.kill();
  await rm(folder, { recursive: true, force: true });
}

/** As far as a sum in another order leaves them. */
function rounded(metrics: Readonly<Record<string, number>>): Record<string, string> {
  return Object.fromEntries(Object.entries(metrics).map(([name, value]) => [name, value.toFixed(9)]));
}
