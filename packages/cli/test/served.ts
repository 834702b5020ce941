// A server in the test's own process.
import type { Config } from '../src/config.ts';
import type { ServeOptions } from '../src/serve/options.ts';
import { serve } from '../src/serve/serve.ts';
import type { RunResult } from '../src/train.ts';

/** Starts it on a free port and waits until it listens. */
export async function servedHere(
  config: Config,
  tokens: string,
  o: Partial<ServeOptions> = {},
): Promise<{ readonly served: Promise<RunResult>; readonly address: string }> {
  const listening = Promise.withResolvers<string>();
  const served = serve(config, {
    host: '127.0.0.1',
    port: 0,
    tokens,
    deadlineSeconds: 60,
    waitSeconds: 60,
    firstLayer: 0,
    maxBytes: 2 ** 30,
    maxTokens: 65_536,
    logLevel: 'silent',
    onListening: listening.resolve,
    ...o,
  });
  served.catch(listening.reject);
  return { served, address: await listening.promise };
}
