import { compare } from '../compare/compare.ts';
import { compared } from '../compare/compared.ts';
import { type Method, parseMethods } from '../compare/methods.ts';
import { comparisonCsv, comparisonLatex, comparisonText } from '../compare/tables.ts';
import { readTrials } from '../compare/trials.ts';
import { ConfigError, loadConfig } from '../config.ts';
import { exitCodes } from '../exit-codes.ts';
import { progressOn } from '../progress.ts';

interface Options {
  readonly config?: string;
  readonly set?: readonly string[];
  readonly methods: string;
  readonly seeds: readonly number[];
  readonly baseline?: string;
  readonly json?: boolean;
  readonly csv?: boolean;
  readonly latex?: boolean;
}

export async function run(runs: readonly string[], options: Options): Promise<void> {
  const forms = (['json', 'csv', 'latex'] as const).filter((form) => options[form]);
  if (forms.length > 1)
    throw new ConfigError(`compare: ${forms.map((form) => `--${form}`).join(' and ')}: choose one form`);
  if ((runs.length === 0) === (options.config === undefined))
    throw new ConfigError('compare: pass --config FILE to train what is missing, or folders of runs to read');
  const found =
    options.config === undefined ? await stored(runs, options) : await trained(options.config, options);
  const text = {
    json: () => JSON.stringify(found, undefined, 2),
    csv: () => comparisonCsv(found),
    latex: () => comparisonLatex(found),
    text: () => comparisonText(found),
  }[forms[0] ?? 'text'];
  process.stdout.write(`${text()}\n`);
  if (found.methods.some(({ incomplete }) => incomplete.length > 0)) process.exitCode = exitCodes.failed;
}

async function trained(file: string, { set, methods, seeds, baseline }: Options) {
  const names = parseMethods(methods);
  const config = await loadConfig(file, set);
  return compare(config, {
    methods: names,
    seeds,
    baseline: (baseline ?? defaultBaseline(names)) as Method,
    progress: progressOn(process.stderr),
  });
}

async function stored(runs: readonly string[], { baseline }: Options) {
  const trials = await readTrials(runs);
  return compared(trials, baseline ?? defaultBaseline(trials.map(({ method }) => method)));
}

/** What is most often compared with, if it is there. */
export function defaultBaseline(methods: readonly string[]): string {
  return methods.includes('fedavg') ? 'fedavg' : methods[0]!;
}
