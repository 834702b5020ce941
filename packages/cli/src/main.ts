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

  root
    .command('train')
    .description('train clients as a configuration says, then evaluate them')
    .requiredOption('-c, --config <file>', 'YAML or JSON')
    .option('-s, --set <key=value...>', 'override a setting, such as federation.rounds=5')
    .option('--resume', 'go on with the run where it was stopped')
    .option('--force', 'replace a run of the same name')
    .option(...json)
    .action(async (options) => (await import('./commands/train.ts')).run(options));

  root
    .command('evaluate')
    .description("evaluate a run's best adapters again")
    .argument('<run>', 'folder of the run')
    .option('--test-users <count>', 'number of test users', positive)
    .option(...json)
    .action(async (run, options) => (await import('./commands/evaluate.ts')).run(run, options));

  root
    .command('recommend')
    .description("recommend items with a client's adapter")
    .argument('<run>', 'folder of the run')
    .requiredOption('--client <name>', 'whose adapter')
    .requiredOption('--history <item...>', 'ids or titles, oldest first')
    .option('-k <count>', 'number of items', positive, 10)
    .option(...json)
    .action(async (run, options) => (await import('./commands/recommend.ts')).run(run, options));

  const data = root.command('data').description('import data and describe it');
  data
    .command('import')
    .description('read interactions and titles, filter, split, and write a data folder')
    .requiredOption('--interactions <file>', 'CSV, TSV, JSON or Parquet')
    .requiredOption('--items <file>', 'item ids and titles')
    .requiredOption('-o, --output <folder>', 'data folder to write')
    .option('--users <file>', 'columns of users, for a partition by one of them')
    .option('--name <name>', 'name of the data set')
    .option('--user-column <name>', 'user ids of interactions', 'user')
    .option('--item-column <name>', 'item ids of interactions', 'item')
    .option('--time-column <name>', 'timestamps (default: rows are in order)')
    .option('--sequence-column <name>', "a user's items in order, separated by spaces")
    .option('--item-id-column <name>', 'item ids of the items file', 'item')
    .option('--title-column <name>', 'titles of the items file', 'title')
    .option('--user-id-column <name>', 'user ids of the users file', 'user')
    .option('--k-core <count>', 'fewest interactions of a user and of an item, 0 for any', whole, 5)
    .option('--split <method>', 'leave-one-out or global-time', 'leave-one-out')
    .option('--force', 'replace an existing folder')
    .option(...json)
    .action(async (options) => (await import('./commands/data.ts')).runImport(options));
  data
    .command('stats')
    .description('users, items, interactions, density, lengths')
    .argument('<folder>', 'data folder')
    .option(...json)
    .action(async (folder, options) => (await import('./commands/data.ts')).runStats(folder, options));

  const model = root.command('model').description('describe and verify checkpoints');
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

function positive(text: string): number {
  const number = whole(text);
  if (number === 0) throw new InvalidArgumentError(`${text} is not above 0.`);
  return number;
}

function whole(text: string): number {
  if (!/^\d{1,9}$/.test(text)) throw new InvalidArgumentError(`"${text}" is not a whole number.`);
  return Number(text);
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
