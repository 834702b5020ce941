// What the command says about itself, and how it answers wrong usage.
import { execFile } from 'node:child_process';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { parse } from 'yaml';
import { loadConfig, parseConfig } from '../src/config.ts';
import { configJsonSchema } from '../src/config-schema.ts';
import { program } from '../src/main.ts';
import { fellrec, root } from './shared.ts';

const helpOf = async (...command: string[]) => (await fellrec(...command, '--help')).stdout;

test('help lists the commands and the exit codes', async () => {
  expect(await helpOf()).toMatchInlineSnapshot(`
    "Usage: fellrec [options] [command]

    Federated fine-tuning of language-model recommenders (FELLRec)

    Options:
      -V, --version                output the version number
      -h, --help                   display help for command

    Commands:
      quickstart [options]         train FELLRec, FedAvg and local models on the
                                   embedded sample and compare them
      train [options]              train clients as a configuration says, then
                                   evaluate them
      evaluate [options] <run>     evaluate a run's best adapters again
      compare [options] [runs...]  train methods beside each other where that is not
                                   done, and compare them user by user
      report [options] <runs...>   write what runs did as one HTML file, with charts
                                   and tables
      recommend [options] <run>    recommend items with a client's adapter
      serve [options]              run a federation whose clients are elsewhere, and
                                   compute their middle layers
      join [options] <server>      take part in a run on a server with data of your
                                   own
      audit [options]              what a server could reconstruct from hidden
                                   states, by layer: attacks on a model and data of
                                   your own
      data                         import data and describe it
      model                        describe, verify and cut checkpoints
      bench                        measure speed and memory
      keys [options]               make certificates and tokens to try a federation
                                   over a network with
      config-schema [options]      JSON Schema of the configuration, for editors
      help [command]               display help for command

    Exit codes: 0 done, 1 failed, 2 used wrongly.
    "
  `);
});

test('help of train lists its options', async () => {
  expect(await helpOf('train')).toMatchInlineSnapshot(`
    "Usage: fellrec train [options]

    train clients as a configuration says, then evaluate them

    Options:
      -c, --config <file>       YAML or JSON
      -s, --set <key=value...>  override a setting, such as federation.rounds=5
      --resume                  go on with the run where it was stopped
      --force                   replace a run of the same name
      --clients <where>         clients in this process, or remote ones, as "fellrec
                                serve" does (choices: "in-process", "remote",
                                default: "in-process")
      --json                    print the result as JSON
      -h, --help                display help for command

    Remote clients:
      --host <address>          address to listen on (default: "127.0.0.1")
      --port <number>           port, 0 for any free one (default: 7443)
      --tls-cert <file>         certificate, PEM; without TLS only loopback
                                addresses are served
      --tls-key <file>          the certificate's key, PEM
      --tokens <file>           tokens.json of "fellrec keys": clients and the
                                hashes of their tokens
      --client-ca <file>        authority of the clients' certificates, PEM
      --names <client...>       clients of the run (default: those with tokens)
      --quorum <count>          clients that a round needs (default: all)
      --deadline <seconds>      after which a round goes on with a quorum (default:
                                86400)
      --wait <seconds>          how long the start waits for all clients (default:
                                86400)
      --first-layer <k>         first layer that is computed here: clients keep at
                                least so many (default: 0)
      --max-memory <MiB>        memory for the work of clients in the middle layers
                                (default: 4096)
      --max-tokens <count>      tokens of one request (default: 65536)
      --record <folder>         write down all that clients send, to audit your own
                                server with
      --log-level <level>       lines of JSON on standard error (choices: "debug",
                                "info", "warn", "error", "silent", default: "warn")

    Global Options:
      -V, --version             output the version number
    "
  `);
});

test('every command has help, a description and --json', async () => {
  const leaves = program().commands.flatMap((command) =>
    command.commands.length > 0 ? command.commands : [command],
  );
  expect(leaves.map((command) => command.name())).toContain('verify');
  for (const command of leaves) {
    expect(command.description(), command.name()).not.toBe('');
    expect(
      command.options.map(({ long }) => long),
      command.name(),
    ).toContain('--json');
  }
});

test('the installed command prints help', async () => {
  const command = join(root, 'packages/cli/bin/fellrec.js');
  const { stdout, stderr } = await promisify(execFile)(process.execPath, [command, '--help']);
  expect(stdout).toBe(await helpOf());
  expect(stderr).toBe('');
});

test.each([
  [['trian'], "unknown command 'trian'"],
  [['train'], "required option '-c, --config <file>' not specified"],
  [['train', '-c', 'x.yaml', '--rseume'], "unknown option '--rseume'"],
  [['evaluate'], "missing required argument 'run'"],
  [['evaluate', 'x', '--test-users', '0'], '0 is not above 0'],
  [['recommend', 'x', '--client', 'a', '--history', 'b', '-k', 'ten'], '"ten" is not a whole number'],
  [
    ['data', 'import', '--interactions', 'x', '--items', 'y', '-o', 'z', '--split', 'half'],
    '--split half: use leave-one-out or global-time',
  ],
])('fellrec %j is wrong usage', async (argv, message) => {
  const { code, stdout, stderr } = await fellrec(...argv);
  expect(stderr).toContain(message);
  expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
});

test('the schema of configurations is the stored one', async () => {
  const { code, stdout } = await fellrec('config-schema');
  expect(code).toBe(0);
  expect(JSON.parse(stdout)).toEqual(configJsonSchema());
  expect(stdout).toBe(await readFile(join(root, 'configs/fellrec.schema.json'), 'utf8'));
});

test('the configurations that come with it are right, and name the schema', async () => {
  const folder = join(root, 'configs');
  const files = (await readdir(folder)).filter((name) => name.endsWith('.yaml'));
  expect(files).toContain('games-smollm2.yaml');
  for (const name of files) {
    const file = join(folder, name);
    expect((await loadConfig(file)).name).toBe(name.replace('.yaml', ''));
    expect(await readFile(file, 'utf8')).toMatch(/^# yaml-language-server: \$schema=fellrec\.schema\.json\n/);
  }
  const quickstart = join(root, 'packages/cli/quickstart/config.yaml');
  expect(parseConfig(parse(await readFile(quickstart, 'utf8')), quickstart).name).toBe('quickstart');
});
