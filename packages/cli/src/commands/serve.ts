import { ConfigError, loadConfig } from '../config.ts';
import { print } from '../output.ts';
import { progressOn } from '../progress.ts';
import type { ServeOptions } from '../serve/options.ts';
import { serve } from '../serve/serve.ts';
import { addReport, describeRun } from './train.ts';

export interface ServeFlags {
  readonly config: string;
  readonly set?: readonly string[];
  readonly host: string;
  readonly port: number;
  readonly tlsCert?: string;
  readonly tlsKey?: string;
  readonly tokens?: string;
  readonly clientCa?: string;
  readonly names?: readonly string[];
  readonly quorum?: number;
  readonly deadline: number;
  readonly wait: number;
  readonly firstLayer: number;
  readonly maxMemory: number;
  readonly maxTokens: number;
  readonly logLevel: ServeOptions['logLevel'];
  readonly record?: string;
  readonly resume?: boolean;
  readonly force?: boolean;
  readonly json?: boolean;
}

export async function run(flags: ServeFlags): Promise<void> {
  const config = await loadConfig(flags.config, flags.set, { remote: true });
  const progress = progressOn(process.stderr);
  const stop = new AbortController();
  const onSignal = () => stop.abort();
  process.once('SIGINT', onSignal).once('SIGTERM', onSignal);
  try {
    const result = await serve(config, {
      ...flags,
      clients: flags.names,
      tls: tlsOf(flags),
      deadlineSeconds: flags.deadline,
      waitSeconds: flags.wait,
      maxBytes: flags.maxMemory * 2 ** 20,
      progress,
      signal: stop.signal,
      onListening: (address) => progress.line(`listening on ${address}`),
    });
    print(result, describeRun(result), { json: flags.json ?? false });
    await addReport(result.directory, progress);
  } finally {
    process.off('SIGINT', onSignal).off('SIGTERM', onSignal);
  }
}

function tlsOf({ tlsCert: cert, tlsKey: key }: ServeFlags): ServeOptions['tls'] {
  if ((cert === undefined) !== (key === undefined))
    throw new ConfigError('serve: --tls-cert and --tls-key go together');
  return cert !== undefined && key !== undefined ? { cert, key } : undefined;
}
