// A process of the measurement of cuts: the whole model, a client's part, or the server's.
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { adamW, globalNorm, nodeRuntime } from '@fellrec/graph';
import {
  type Adapter,
  type Checkpoint,
  type CutLayers,
  cutLayers,
  ignoredLabel,
  initialAdapter,
  isMiddle,
  type LanguageModel,
  languageModel,
  layerOf,
  llama,
  llamaCut,
  openCheckpoint,
  type Sequence,
  splitLanguageModel,
} from '@fellrec/models';
import {
  authenticator,
  clientTransport,
  LayersService,
  layersClient,
  layersService,
  listen,
  type RemoteMiddle,
  readTokens,
  remoteMiddle,
  serverLog,
  serverMetrics,
} from '@fellrec/network';
import { servedMiddles } from './middles.ts';
import type { SplitBenchOptions } from './split-bench.ts';

/** `keys`: folder of a CA, a server and the client "bench". */
export type Role = { readonly options: SplitBenchOptions } & (
  | { readonly kind: 'whole' }
  | { readonly kind: 'server'; readonly k: number; readonly keys: string }
  | { readonly kind: 'client'; readonly k: number; readonly keys: string; readonly address: string }
);

export interface Request {
  readonly do: 'step' | 'recommend' | 'report';
}

export interface Reply {
  readonly seconds?: number;
  readonly peakMiB?: number;
  readonly layers?: number;
  readonly weightsElsewhere?: number;
  readonly traffic?: { readonly up: number; readonly down: number };
  readonly address?: string;
}

const task = 'bench';
const newTokens = 24;
const learningRate = 1e-4;

async function opened({
  kind,
  options,
}: Role): Promise<{ checkpoint: Checkpoint; layers: CutLayers; lora: Adapter }> {
  const checkpoint = await openCheckpoint(options.model, { cacheDir: options.cache });
  const { config } = checkpoint;
  const runtime = nodeRuntime({
    ...(options.threads && { threads: options.threads }),
    spinning: kind === 'whole',
  });
  const layers = cutLayers(llamaCut(llama(checkpoint), config), runtime, options);
  const lora = {
    rank: options.rank,
    alpha: 2 * options.rank,
    dropout: 0,
    targetModules: ['q_proj', 'v_proj'] as const,
  };
  return { checkpoint, layers, lora: { config: lora, tensors: initialAdapter(config, lora, 1) } };
}

async function serve(role: Role & { readonly kind: 'server' }): Promise<() => Reply> {
  const { checkpoint, layers, lora } = await opened(role);
  const { layerCount } = checkpoint.config;
  const { k, keys, options } = role;
  const middles = servedMiddles(layers, {
    trains: options.adapters === 'all-layers',
    lora: lora.config,
    optimizer: { clipNorm: 1 },
  });
  middles.start(task, new Map([...lora.tensors].filter(([name]) => isMiddle(name, k, layerCount))));
  const file = (name: string) => readFile(join(keys, name), 'utf8');
  const { service } = layersService({
    session: (id, client) => ({ id, client }),
    open: (_, taskId) => middles.open(k, taskId),
    limits: { bytes: 64 * 2 ** 30, tokens: 2 ** 20 },
    cacheSeconds: 600,
  });
  const { address } = await listen({
    host: '127.0.0.1',
    port: 0,
    tls: { cert: await file('server.crt'), key: await file('server.key') },
    routes: (router) => router.service(LayersService, service),
    authenticator: authenticator({ tokens: await readTokens(join(keys, 'tokens.json')) }),
    metrics: serverMetrics(),
    log: serverLog('silent'),
    maxMessageBytes: 2 ** 30,
  });
  return () => ({ address, peakMiB: peakMiB() });
}

interface Client {
  readonly model: LanguageModel;
  readonly adapter: Adapter;
  readonly middle?: RemoteMiddle;
  readonly checkpoint: Checkpoint;
  readonly weightsElsewhere: number;
}

async function client(role: Exclude<Role, { kind: 'server' }>): Promise<Client> {
  const { checkpoint, layers, lora } = await opened(role);
  const { threads, activations, adapters } = role.options;
  const runtime = nodeRuntime({ ...(threads && { threads }), spinning: role.kind === 'whole' });
  if (role.kind === 'whole')
    return { model: languageModel(checkpoint, runtime), adapter: lora, checkpoint, weightsElsewhere: 0 };
  const { k, keys, address } = role;
  const { layerCount } = checkpoint.config;
  const transport = await clientTransport({
    server: address,
    ca: join(keys, 'ca.crt'),
    token: join(keys, 'bench.token'),
    maxMessageBytes: 2 ** 30,
  });
  const service = layersClient(transport);
  const middle = remoteMiddle({
    call: (attempt) => attempt(service, 'bench'),
    encoding: activations,
    trains: adapters === 'all-layers',
  });
  await middle.begin(task);
  const own = [...lora.tensors].filter(([name]) => !isMiddle(name, k, layerCount));
  const kept = [...new Set(own.map(([name]) => layerOf(name)!))];
  const elements = (held: (name: string) => boolean) =>
    [...checkpoint.tensors].reduce((n, [name, { byteLength }]) => n + (held(name) ? byteLength : 0), 0);
  return {
    model: splitLanguageModel({ checkpoint, runtime, layers, kept: k, middle }),
    adapter: { config: { ...lora.config, layers: kept }, tensors: new Map(own) },
    middle,
    checkpoint,
    weightsElsewhere: elements((name) => isMiddle(name, k, layerCount)) / elements(() => true),
  };
}

function steps({ model, adapter, middle, checkpoint, weightsElsewhere }: Client, o: SplitBenchOptions) {
  const { vocabularySize, eosIds, layerCount } = checkpoint.config;
  const sequence = (b: number): Sequence => {
    const ids = Array.from({ length: o.length }, (_, t) => (b * 7919 + t * 104729) % vocabularySize);
    return { ids, labels: ids.map((id, t) => (t < o.length - o.labels ? ignoredLabel : id)) };
  };
  const batch = Array.from({ length: o.batch }, (_, b) => sequence(b));
  const optimizer = adamW({ clipNorm: 1 });
  let state = optimizer.init(adapter.tensors);
  const present = () => ({ ...adapter, tensors: state.parameters });
  return {
    async step() {
      const { gradients } = await model.gradients(batch, present(), { microBatch: o.microBatch });
      const elsewhere = await model.updateElsewhere?.(globalNorm(gradients) ** 2, learningRate);
      ({ state } = optimizer.update(gradients, state, learningRate, elsewhere));
    },
    async recommend() {
      const options = { beams: 4, maxNewTokens: newTokens, eosIds };
      await model.generate([batch[0]!.ids], options, present());
    },
    report: (): Reply => ({
      peakMiB: peakMiB(),
      layers: layerCount,
      weightsElsewhere,
      ...(middle && { traffic: middle.traffic }),
    }),
  };
}

function peakMiB(): number {
  return Math.round(process.resourceUsage().maxRSS / 1024);
}

async function timed(work: () => Promise<void>): Promise<Reply> {
  const started = performance.now();
  await work();
  return { seconds: (performance.now() - started) / 1000 };
}

async function workOf(role: Role): Promise<(request: Request) => Promise<Reply>> {
  if (role.kind === 'server') {
    const report = await serve(role);
    return async () => report();
  }
  const { step, recommend, report } = steps(await client(role), role.options);
  return async (request) => {
    if (request.do === 'report') return report();
    return timed(request.do === 'step' ? step : recommend);
  };
}

const ready = workOf(JSON.parse(process.argv[2]!) as Role);
process.on('message', (request: Request) => {
  ready
    .then((work) => work(request))
    .then((reply) => process.send!(reply))
    .catch((error: Error) => process.send!({ error: error.message }));
});
process.on('disconnect', () => process.exit());
