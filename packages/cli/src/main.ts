// The command line. Commands are loaded when they run, so that help is quick.
import { Command, CommanderError, InvalidArgumentError, Option } from 'commander';
import { exitCodes } from './exit-codes.ts';

const json = ['--json', 'print the result as JSON'] as const;

export function program(): Command {
  const root = new Command('fellrec')
    .description('Federated fine-tuning of language-model recommenders (FELLRec)')
    .version('0.1.0')
    .showHelpAfterError('(add --help for help)')
    .exitOverride()
    .configureHelp({ showGlobalOptions: true })
    .addHelpText('after', '\nExit codes: 0 done, 1 failed, 2 used wrongly.');

  root
    .command('quickstart')
    .description('train FELLRec, FedAvg and local models on the embedded sample and compare them')
    .addOption(
      new Option('--backend <name>', 'which recommender').choices(['bigrec', 'recformer']).default('bigrec'),
    )
    .option('--runs <folder>', 'folder of the runs', 'runs')
    .option(...json)
    .action(async (options) => (await import('./commands/quickstart.ts')).run(options));

  withServerOptions(
    root
      .command('train')
      .description('train clients as a configuration says, then evaluate them')
      .requiredOption('-c, --config <file>', 'YAML or JSON')
      .option('-s, --set <key=value...>', 'override a setting, such as federation.rounds=5')
      .option('--resume', 'go on with the run where it was stopped')
      .option('--force', 'replace a run of the same name')
      .addOption(
        new Option('--clients <where>', 'clients in this process, or remote ones, as "fellrec serve" does')
          .choices(['in-process', 'remote'])
          .default('in-process'),
      )
      .option(...json),
  ).action(async (options, command: Command) => {
    if (options.clients === 'remote') return (await import('./commands/serve.ts')).run(options);
    await refuseServerOptions(command);
    return (await import('./commands/train.ts')).run(options);
  });

  root
    .command('evaluate')
    .description("evaluate a run's best adapters again")
    .argument('<run>', 'folder of the run')
    .option('--test-users <count>', 'number of test users', positive)
    .option('-s, --set <key=value...>', 'rank otherwise, such as ranking.mode=constrained')
    .option(...json)
    .action(async (run, options) => (await import('./commands/evaluate.ts')).run(run, options));

  root
    .command('compare')
    .description('train methods beside each other where that is not done, and compare them user by user')
    .argument('[runs...]', 'folders of runs to compare as they are')
    .option('-c, --config <file>', 'YAML or JSON: what the methods have in common')
    .option('-s, --set <key=value...>', 'override a setting, such as federation.rounds=5')
    .option(
      '--methods <names>',
      'separated by commas; an unknown one lists all',
      'fellrec,fedavg,local,zero-shot,popularity,random',
    )
    .option('--seeds <numbers>', 'separated by commas', wholes, [1])
    .option('--baseline <method>', 'what the others are compared with (default: fedavg, or the first)')
    .option('--csv', 'print a table as CSV')
    .option('--latex', 'print a table for LaTeX')
    .option(...json)
    .action(async (runs, options) => (await import('./commands/compare.ts')).run(runs, options));

  root
    .command('report')
    .description('write what runs did as one HTML file, with charts and tables')
    .argument('<runs...>', 'folders of runs')
    .option('-o, --output <file>', "HTML file to write (default: report.html in the run's folder)")
    .option(...json)
    .action(async (runs, options) => (await import('./commands/report.ts')).run(runs, options));

  root
    .command('recommend')
    .description("recommend items with a client's adapter")
    .argument('<run>', 'folder of the run, or the one that join -o wrote')
    .option('--client <name>', 'whose adapter, where the run has several')
    .requiredOption('--history <item...>', 'ids or titles, oldest first')
    .option('-k <count>', 'number of items', positive, 10)
    .option('-s, --set <key=value...>', 'rank otherwise, such as ranking.mode=constrained')
    .option('--explain', 'what the model said, or how likely each title is')
    .option(...json)
    .action(async (run, options) => (await import('./commands/recommend.ts')).run(run, options));

  withServerOptions(
    root
      .command('serve')
      .description('run a federation whose clients are elsewhere, and compute their middle layers')
      .requiredOption('-c, --config <file>', "YAML or JSON; its data section is the clients' affair")
      .option('-s, --set <key=value...>', 'override a setting, such as federation.rounds=5')
      .option('--resume', 'go on with the run where it was stopped')
      .option('--force', 'replace a run of the same name')
      .option(...json),
  ).action(async (options) => (await import('./commands/serve.ts')).run(options));

  root
    .command('join')
    .description('take part in a run on a server with data of your own')
    .argument('<server>', 'such as https://localhost:7443')
    .requiredOption('--data <folder>', 'data folder')
    .requiredOption('--model <folder>', "model folder, the same weights as the server's")
    .option('--group <name>', 'whose users these are: clients of one group have the same items')
    .option('--set <key=value...>', "the client's own words: domain.* and recformer.attributes")
    .option('--k <count>', 'first layers that stay here, with the last one (default: all)', whole)
    .addOption(
      new Option('--activations <type>', 'how hidden states and gradients cross')
        .choices(['float32', 'float16', 'int8'])
        .default('float32'),
    )
    .option('--ca <file>', "authority of the server's certificate, PEM")
    .option('--token <file>', 'file with the token')
    .option('--cert <file>', 'certificate, PEM')
    .option('--key <file>', "the certificate's key, PEM")
    .option('-o, --output <folder>', 'where the best parameters go when the run is over')
    .option('--cache <folder>', 'folder of title vectors', '.cache/fellrec')
    .option('--threads <count>', 'threads to compute with (default: all cores)', positive)
    .option('--micro-batch <count>', 'samples computed at once (default: as the server says)', positive)
    .option('--give-up <seconds>', 'how long the server may be out of reach', positive, 600)
    .option(...json)
    .action(async (server, options) => (await import('./commands/join.ts')).run(server, options));

  root
    .command('audit')
    .description(
      'what a server could reconstruct from hidden states, by layer: attacks on a model and data of your own',
    )
    .requiredOption('--model <folder>', 'Hugging Face folder or GGUF file')
    .requiredOption('--data <folder>', 'data folder')
    .option('--adapter <folder>', "what the client's layers have learned, a PEFT folder")
    .option(
      '--capture <folder>',
      'attack the training that "serve --record" wrote, of the client with this data',
    )
    .option('--client <name>', 'whose training, if the recording has several')
    .option(
      '--layers <list>',
      'depths to attack, 0 for embeddings, n for after the last layer (default: all)',
      wholes,
    )
    .option('--attacks <list>', 'which attacks on hidden states (default: all)', names)
    .option('--defences <list>', 'none, float16, int8, bits:4, noise:8, row-noise:8, withheld', names, [])
    .option('--defence-layers <list>', 'depths to measure defences at (default: 1, n/4, n/2)', wholes)
    .option('--users <count>', 'users to attack', positive, 100)
    .option('--quality-users <count>', 'users to measure R@10 under defences with', positive, 100)
    .option(
      '--gradient-users <count>',
      'users to attack through gradients and adapters, 0 for none',
      whole,
      8,
    )
    .option('--auxiliary-users <count>', 'other users that the inverter learns from', positive, 300)
    .option('--epochs <count>', 'epochs of the inverter at each depth', positive, 2)
    .option('--budget <count>', 'candidates that the search tries for a token', positive, 64)
    .option('--titles <count>', 'titles that the catalogue attack compares', positive, 3000)
    .option('--threshold <share>', 'recovery from which a cut counts as unsafe', share, 0.1)
    .option('--metric <name>', 'recovery that counts for the recommendation', 'items')
    .option('--sentences <folder>', 'sentence encoder for the reconstruction similarity')
    .option('--max-tokens <count>', 'longest sequence', positive, 512)
    .option('--seed <number>', 'draws users, titles and noise', whole, 1)
    .option('--cache <folder>', 'folder of dequantised weights and title vectors', '.cache/fellrec')
    .option('--threads <count>', 'threads to compute with (default: all cores)', positive)
    .option('-o, --output <file>', 'HTML report to write')
    .option(...json)
    .action(async (options) => (await import('./commands/audit.ts')).run(options));

  const data = root.command('data').description('import data and describe it');
  data
    .command('import')
    .description('read interactions and titles, filter, split, and write a data folder')
    .requiredOption('--interactions <file>', 'CSV, TSV, RecBole, JSON, JSON lines (also as .gz) or Parquet')
    .requiredOption('--items <file>', 'item ids and titles')
    .requiredOption('-o, --output <folder>', 'data folder to write')
    .option('--users <file>', 'columns of users, for a partition by one of them')
    .option('--name <name>', 'name of the data set')
    .option('--user-column <name>', "user ids of interactions (default: user, or RecBole's user_id)")
    .option('--item-column <name>', "item ids of interactions (default: item, or RecBole's item_id)")
    .option('--time-column <name>', "timestamps (default: RecBole's timestamp, or rows are in order)")
    .option('--sequence-column <name>', "a user's items in order, separated by spaces")
    .option('--item-id-column <name>', "item ids of the items file (default: item, or RecBole's item_id)")
    .option('--title-column <name>', "titles of the items file (default: title, or RecBole's ...title)")
    .option('--user-id-column <name>', 'user ids of the users file (default: that of interactions)')
    .option(
      '--interactions-header <names>',
      'columns of an interactions file without a header: user,items',
      header,
    )
    .option('--items-header <names>', 'columns of an items file without a header: item,title', header)
    .option('--min-rating <number>', 'interactions with a lower rating, or none, do not count', finite)
    .option('--rating-column <name>', 'ratings of interactions', 'rating')
    .option('--drop-untitled', 'interactions with items that have no title do not count')
    .option('--k-core <count>', 'fewest interactions of a user and of an item, 0 for any', whole, 5)
    .option('--split <method>', 'leave-one-out or global-time', 'leave-one-out')
    .option('--force', 'replace an existing folder')
    .option(...json)
    .action(async (options) => (await import('./commands/data.ts')).runImport(options));
  data
    .command('partition')
    .description('write a data folder for each client of a configuration: the whole catalogue, its own users')
    .requiredOption('-c, --config <file>', 'YAML or JSON: its data, partition and seed')
    .option('-s, --set <key=value...>', 'override a setting, such as partition.clients=3')
    .requiredOption('-o, --output <folder>', 'folder of the folders')
    .option('--force', 'replace existing ones')
    .option(...json)
    .action(async (options) => (await import('./commands/data.ts')).runPartition(options));
  data
    .command('stats')
    .description('users, items, interactions, density, lengths')
    .argument('<folder>', 'data folder')
    .option(...json)
    .action(async (folder, options) => (await import('./commands/data.ts')).runStats(folder, options));
  data
    .command('export')
    .description("write a data folder and its split as RecBole's atomic files")
    .argument('<folder>', 'data folder')
    .requiredOption('--recbole <folder>', "folder to write; its name is RecBole's name of the data set")
    .option(...json)
    .action(async (folder, options) => (await import('./commands/data.ts')).runExport(folder, options));

  const model = root.command('model').description('describe, verify and cut checkpoints');
  model
    .command('info')
    .description('shape, parameters and unused tensors of a checkpoint')
    .argument('<path>', 'Hugging Face folder or GGUF file')
    .option('--cache <folder>', 'folder of dequantised weights', '.cache/fellrec')
    .option(...json)
    .action(async (path, options) => (await import('./commands/model.ts')).runInfo(path, options));
  model
    .command('verify')
    .description('recompute a golden fixture and compare')
    .argument('<folder>', 'config.json, model.safetensors, cases.json, expected.safetensors, adapter/')
    .option('--cache <folder>', 'folder of dequantised weights', '.cache/fellrec')
    .option(...json)
    .action(async (folder, options) => (await import('./commands/model.ts')).runVerify(folder, options));

  model
    .command('cut')
    .description('write a folder with what one side of a cut model needs of it')
    .argument('<model>', 'Hugging Face folder or GGUF file')
    .requiredOption('--k <count>', 'first layers that clients keep, with the last one', whole)
    .addOption(
      new Option('--side <side>', 'whose layers').choices(['client', 'server']).makeOptionMandatory(),
    )
    .requiredOption('-o, --output <folder>', 'folder to write')
    .option('--force', 'replace a part that is there')
    .option('--cache <folder>', 'folder of dequantised weights', '.cache/fellrec')
    .option(...json)
    .action(async (path, options) => (await import('./commands/model.ts')).runCut(path, options));

  const bench = root.command('bench').description('measure speed and memory');
  const step = (name: string, description: string) =>
    bench
      .command(name)
      .description(description)
      .requiredOption('--model <path>', 'Hugging Face folder or GGUF file')
      .option('--cache <folder>', 'folder of dequantised and quantised weights', '.cache/fellrec')
      .option('--base <kind>', 'frozen weights: float32, int8 or int8-fast', 'float32')
      .option('--batch <count>', 'sequences', positive, 8)
      .option('--micro-batch <count>', 'sequences computed at once', positive, 2)
      .option('--length <count>', 'tokens of a sequence', positive, 128)
      .option('--labels <count>', 'predicted tokens at the end of a sequence', positive, 15)
      .option('--rank <count>', 'rank of the adapter', positive, 8)
      .option('--steps <count>', 'timed steps', positive, 6)
      .option('--threads <count>', 'threads', positive);
  step('step', 'one LoRA training step beside the bare matrix product, as JSON')
    .option('--json', 'accepted everywhere; this command always prints JSON')
    .action(async (options) => (await import('./commands/bench.ts')).runStep(options));
  step('profile', 'where the time of a training step goes, by operator')
    .option(...json)
    .action(async (options) => (await import('./commands/bench.ts')).runProfile(options));

  root
    .command('keys')
    .description('make certificates and tokens to try a federation over a network with')
    .requiredOption('--clients <names>', 'the clients, separated by commas', names)
    .requiredOption('-o, --output <folder>', 'folder to write')
    .option('--host <name...>', 'host names and IP addresses of the server', ['localhost', '127.0.0.1'])
    .option('--days <count>', 'days that the certificates are valid', positive, 30)
    .option('--force', 'replace existing files')
    .option(...json)
    .action(async (options) => (await import('./commands/keys.ts')).run(options));

  bench
    .command('split')
    .description('what cuts of a model cost: a client and a server over loopback beside the whole model')
    .requiredOption('--model <path>', 'Hugging Face folder or GGUF file of a LLaMA-architecture model')
    .requiredOption('--k <list>', 'first layers that the client keeps, such as 1,2,4,8', wholes)
    .option('--cache <folder>', 'folder of dequantised weights', '.cache/fellrec')
    .addOption(
      new Option('--adapters <where>', 'whether the middle layers learn')
        .choices(['client-layers', 'all-layers'])
        .default('client-layers'),
    )
    .addOption(
      new Option('--activations <type>', 'how hidden states and gradients cross')
        .choices(['float32', 'float16', 'int8'])
        .default('float32'),
    )
    .option('--recompute', 'compute activations again in the backward pass', false)
    .option('--batch <count>', 'sequences', positive, 8)
    .option('--micro-batch <count>', 'sequences computed at once', positive, 2)
    .option('--length <count>', 'tokens of a sequence', positive, 128)
    .option('--labels <count>', 'predicted tokens at the end of a sequence', positive, 15)
    .option('--rank <count>', 'rank of the adapter', positive, 8)
    .option('--steps <count>', 'timed steps', positive, 6)
    .option('--threads <count>', 'threads of each process', positive)
    .option(...json)
    .action(async (options) => (await import('./commands/bench-split.ts')).run(options));

  root
    .command('config-schema')
    .description('JSON Schema of the configuration, for editors')
    .option('--json', 'accepted everywhere; this command always prints JSON')
    .action(async () => (await import('./commands/config-schema.ts')).run());
  return root;
}

function names(text: string): string[] {
  return text.split(',').map((name) => name.trim());
}

const ofServers = 'Remote clients:';

/** What a server of remote clients is told. */
function withServerOptions(command: Command): Command {
  return command
    .optionsGroup(ofServers)
    .option('--host <address>', 'address to listen on', '127.0.0.1')
    .option('--port <number>', 'port, 0 for any free one', port, 7443)
    .option('--tls-cert <file>', 'certificate, PEM; without TLS only loopback addresses are served')
    .option('--tls-key <file>', "the certificate's key, PEM")
    .option('--tokens <file>', 'tokens.json of "fellrec keys": clients and the hashes of their tokens')
    .option('--client-ca <file>', "authority of the clients' certificates, PEM")
    .option('--names <client...>', 'clients of the run (default: those with tokens)')
    .option('--quorum <count>', 'clients that a round needs (default: all)', positive)
    .option('--deadline <seconds>', 'after which a round goes on with a quorum', positive, 86_400)
    .option('--wait <seconds>', 'how long the start waits for all clients', positive, 86_400)
    .option('--first-layer <k>', 'first layer that is computed here: clients keep at least so many', whole, 0)
    .option('--max-memory <MiB>', 'memory for the work of clients in the middle layers', positive, 4096)
    .option('--max-tokens <count>', 'tokens of one request', positive, 65_536)
    .option('--record <folder>', 'write down all that clients send, to audit your own server with')
    .addOption(
      new Option('--log-level <level>', 'lines of JSON on standard error')
        .choices(['debug', 'info', 'warn', 'error', 'silent'])
        .default('warn'),
    );
}

/** Where clients are in this process. */
async function refuseServerOptions(command: Command): Promise<void> {
  const given = command.options.filter(
    (option) =>
      option.helpGroupHeading === ofServers && command.getOptionValueSource(option.attributeName()) === 'cli',
  );
  if (given.length === 0) return;
  const { ConfigError } = await import('./config.ts');
  throw new ConfigError(
    `train: ${given.map(({ long }) => long).join(', ')}: for remote clients; pass --clients remote, or leave it out`,
  );
}

function positive(text: string): number {
  const number = whole(text);
  if (number === 0) throw new InvalidArgumentError(`${text} is not above 0.`);
  return number;
}

function share(text: string): number {
  const number = Number(text);
  if (!(number > 0 && number <= 1)) throw new InvalidArgumentError(`${text} is no share above 0, at most 1.`);
  return number;
}

function whole(text: string): number {
  if (!/^\d{1,9}$/.test(text)) throw new InvalidArgumentError(`"${text}" is not a whole number.`);
  return Number(text);
}

function finite(text: string): number {
  const number = Number(text);
  if (text.trim() === '' || !Number.isFinite(number))
    throw new InvalidArgumentError(`"${text}" is not a number.`);
  return number;
}

function header(text: string): string[] {
  const found = text.split(',');
  if (new Set(found).size < found.length || found.includes(''))
    throw new InvalidArgumentError(`"${text}" is no list of different names, separated by commas.`);
  return found;
}

function wholes(text: string): number[] {
  return text.split(',').map(whole);
}

function port(text: string): number {
  const number = whole(text);
  if (number > 65_535) throw new InvalidArgumentError(`${text} is no port.`);
  return number;
}

/** Runs a command line and returns the exit code. Errors are one message on standard error. */
export async function main(argv: readonly string[]): Promise<number> {
  const root = program();
  try {
    await root.parseAsync([...argv], { from: 'user' });
    return Number(process.exitCode ?? exitCodes.done);
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? exitCodes.done : exitCodes.usage;
    const { ConfigError } = await import('./config.ts');
    process.stderr.write(`fellrec: ${(error as Error).message}\n`);
    return error instanceof ConfigError ? exitCodes.usage : exitCodes.failed;
  }
}
