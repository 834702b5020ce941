// What a cut costs: a client and a server as processes over loopback, beside one process with the whole model. Steps are
// done in turn, so that a disturbed machine disturbs all alike.
import { fork } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { createKeys, writeKeys } from '@fellrec/network';
import type { Reply, Request, Role } from './split-worker.ts';

export interface SplitBenchOptions {
  readonly model: string;
  readonly cache: string;
  readonly batch: number;
  readonly microBatch: number;
  readonly length: number;
  readonly labels: number;
  readonly rank: number;
  readonly steps: number;
  readonly activations: 'float32' | 'float16' | 'int8';
  readonly adapters: 'client-layers' | 'all-layers';
  readonly recompute: boolean;
  readonly threads?: number;
}

export interface SplitCost {
  readonly k: number;
  readonly tokensPerSecond: number;
  /** Median of the steps' times, divided by the unsplit ones'. */
  readonly stepRatio: number;
  /** Peak resident memory after training steps, in MiB. */
  readonly clientMiB: number;
  readonly serverMiB: number;
  /** Of the model's weights, that the client does not hold. */
  readonly weightsElsewhere: number;
  /** By which the client's peak is below the unsplit one's. */
  readonly memoryBelow: number;
  /** Bytes of activations and gradients. */
  readonly stepBytes: Traffic;
  readonly recommendationBytes: Traffic;
  readonly recommendationSeconds: number;
}

interface Traffic {
  readonly up: number;
  readonly down: number;
}

export interface SplitBench {
  readonly model: string;
  readonly layers: number;
  readonly unsplit: {
    readonly tokensPerSecond: number;
    readonly peakMiB: number;
    readonly recommendationSeconds: number;
  };
  readonly splits: readonly SplitCost[];
}

interface Worker {
  ask(request: Request): Promise<Reply>;
  end(): void;
}

function start(role: Role): Worker {
  const file = import.meta.filename.endsWith('.ts') ? './split-worker.ts' : './split-worker.js';
  const child = fork(fileURLToPath(new URL(file, import.meta.url)), [JSON.stringify(role)], {
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
  });
  let waiting: PromiseWithResolvers<Reply> | undefined;
  child.on('message', (reply: Reply & { error?: string }) => {
    if (reply.error === undefined) waiting?.resolve(reply);
    else waiting?.reject(new Error(reply.error));
  });
  child.on('exit', (code) => waiting?.reject(new Error(`bench: a process ended with exit code ${code}`)));
  return {
    ask(request) {
      waiting = Promise.withResolvers();
      child.send(request);
      return waiting.promise;
    },
    end: () => child.kill(),
  };
}

/** Measures each k beside the whole model. */
export async function splitBench(
  ks: readonly number[],
  options: SplitBenchOptions,
  onProgress: (text: string) => void,
): Promise<SplitBench> {
  const workers: Worker[] = [];
  const open = (role: Role) => {
    workers.push(start(role));
    return workers.at(-1)!;
  };
  const tokens = options.batch * options.length;
  const keys = await mkdtemp(join(tmpdir(), 'fellrec-bench-'));
  try {
    await writeKeys(keys, await createKeys({ clients: ['bench'], hosts: ['127.0.0.1'], days: 1 }), {
      force: true,
    });
    const splits: SplitCost[] = [];
    let wholeSeconds: number[] = [];
    let unsplit = { peakMiB: 0, recommendationSeconds: 0 };
    let layers = 0;
    for (const k of ks) {
      onProgress(`k = ${k}`);
      const whole = open({ kind: 'whole', options });
      const server = open({ kind: 'server', k, keys, options });
      const { address } = await server.ask({ do: 'report' });
      const client = open({ kind: 'client', k, keys, options, address: address! });
      // The first step compiles.
      for (const worker of [whole, client]) await worker.ask({ do: 'step' });
      const before = await client.ask({ do: 'report' });
      const seconds: { whole: number[]; split: number[] } = { whole: [], split: [] };
      for (let step = 0; step < options.steps; step++) {
        seconds.whole.push((await whole.ask({ do: 'step' })).seconds!);
        seconds.split.push((await client.ask({ do: 'step' })).seconds!);
      }
      const [ofWhole, ofClient, ofServer] = [
        await whole.ask({ do: 'report' }),
        await client.ask({ do: 'report' }),
        await server.ask({ do: 'report' }),
      ];
      const recommended = await client.ask({ do: 'recommend' });
      const alone = await whole.ask({ do: 'recommend' });
      const after = await client.ask({ do: 'report' });
      for (const worker of [whole, client, server]) worker.end();
      wholeSeconds = [...wholeSeconds, ...seconds.whole];
      layers = ofWhole.layers!;
      unsplit = { peakMiB: ofWhole.peakMiB!, recommendationSeconds: alone.seconds! };
      splits.push({
        k,
        tokensPerSecond: tokens / median(seconds.split),
        stepRatio: median(seconds.split) / median(seconds.whole),
        clientMiB: ofClient.peakMiB!,
        serverMiB: ofServer.peakMiB!,
        weightsElsewhere: ofClient.weightsElsewhere!,
        memoryBelow: 1 - ofClient.peakMiB! / ofWhole.peakMiB!,
        stepBytes: per(ofClient.traffic!, before.traffic!, options.steps),
        recommendationBytes: per(after.traffic!, ofClient.traffic!, 1),
        recommendationSeconds: recommended.seconds!,
      });
    }
    return {
      model: options.model,
      layers,
      unsplit: { tokensPerSecond: tokens / median(wholeSeconds), ...unsplit },
      splits,
    };
  } finally {
    for (const worker of workers) worker.end();
    await rm(keys, { recursive: true, force: true });
  }
}

function per(after: Traffic, before: Traffic, count: number): Traffic {
  return { up: (after.up - before.up) / count, down: (after.down - before.down) / count };
}

function median(numbers: readonly number[]): number {
  return numbers.toSorted((a, b) => a - b)[numbers.length >> 1]!;
}
