// Middle layers that are one matrix, a service of them without a network, and requests to it.
import { create } from '@bufbuild/protobuf';
import {
  type Client,
  type Code,
  ConnectError,
  type ConnectRouter,
  createClient,
  createRouterTransport,
  type Interceptor,
} from '@connectrpc/connect';
import { type Float32Tensor, float32 } from '@fellrec/graph';
import type { DecodeRequest, ForwardOptions, TokenLayout } from '@fellrec/models';
import { expect } from 'vitest';
import { LayersService } from '#proto/layers_pb';
import { TokenLayoutSchema } from '#proto/tensor_pb';
import { type ActivationsEncoding, encodeActivations } from '../src/protocol/activations.ts';
import { clientKey } from '../src/server/identity.ts';
import {
  type LayersCall,
  type LayersServer,
  type LayersServiceOptions,
  layersService,
} from '../src/server/layers-service.ts';
import type { ServedLayers } from '../src/server/layers-session.ts';
import { unknownSession } from '../src/server/refusals.ts';

type Matrix = readonly (readonly number[])[];

const base: Matrix = [
  [1, 2, 0],
  [0, 1, -1],
  [3, 0, 1],
];
export const hiddenSize = 3;

export interface Toy extends ServedLayers {
  /** Everything that it knows. */
  state(): unknown;
  /** What its methods were called with. */
  readonly forwards: { readonly layout: TokenLayout; readonly options: ForwardOptions }[];
  readonly decodes: DecodeRequest[];
  readonly closed: boolean;
}

export interface ToyOptions {
  /** Awaited in every call. */
  readonly wait?: () => Promise<void>;
  readonly bytesPerKeptRow?: number;
}

/** x (W + A) for an adapter A; its gradients add up; a decoded token is the sum of its sequence, times W + A. */
export function toyLayers({ wait = async () => {}, bytesPerKeptRow = 4 * hiddenSize }: ToyOptions = {}): Toy {
  let adapter: Matrix = base.map((row) => row.map(() => 0));
  let gradients = adapter;
  let pass: Matrix | undefined;
  let sums: Matrix | undefined;
  let decoded:
    | { readonly users: readonly number[]; readonly beams: number; readonly rows: Matrix }
    | undefined;
  let [running, closed] = [false, false];
  const forwards: Toy['forwards'] = [];
  const decodes: DecodeRequest[] = [];
  const weights = () => plus(base, adapter);
  const forget = () => {
    pass = sums = decoded = undefined;
  };
  async function alone<T>(work: () => T): Promise<T> {
    if (running) throw new Error('toy: two calls at once');
    if (closed) throw new Error('toy: closed');
    running = true;
    try {
      await wait();
    } finally {
      running = false;
    }
    return work();
  }
  return {
    trains: true,
    hiddenSize,
    canDecode: true,
    problem: ({ prefix }) => (prefix > 100 ? 'the toy has no such prefix' : undefined),
    forwards,
    decodes,
    get closed() {
      return closed;
    },
    get heldBytes() {
      const kept = pass?.length ?? decoded?.rows.length ?? sums?.length ?? 0;
      return 8 * hiddenSize ** 2 + bytesPerKeptRow * kept;
    },
    state: () => structuredClone({ adapter, gradients, pass, sums, decoded, closed }),
    forward: (states, layout, options) =>
      alone(() => {
        forwards.push({ layout, options });
        forget();
        const rows = rowsOf(states);
        if (options.keep === 'gradient') pass = rows;
        if (options.keep === 'cache') sums = sequenceSums(rows, layout);
        return tensor(product(rows, options.adapted ? weights() : base));
      }),
    backward: (gradient) =>
      alone(() => {
        if (!pass) throw new Error('toy: nothing kept');
        gradients = plus(gradients, product(transposed(pass), rowsOf(gradient)));
        return tensor(product(rowsOf(gradient), transposed(weights())));
      }),
    update: (_squaredNorm, rate) =>
      alone(() => {
        const norm = gradients.flat().reduce((sum, g) => sum + g * g, 0);
        adapter = plus(
          adapter,
          gradients.map((row) => row.map((g) => -rate * g)),
        );
        gradients = gradients.map((row) => row.map(() => 0));
        return norm;
      }),
    decode: (request) =>
      alone(() => {
        if (!sums) throw new Error('toy: nothing kept');
        decodes.push(request);
        const { states, users, beams, parents } = request;
        const before = (row: number) =>
          decoded ? decoded.rows[parents[row]!]! : sums![users[Math.floor(row / beams)]!]!;
        const rows = rowsOf(states).map((x, row) => x.map((value, i) => value + before(row)[i]!));
        decoded = { users, beams, rows };
        return tensor(product(rows, weights()));
      }),
    forget,
    close() {
      if (running) throw new Error('toy: closed while it runs');
      closed = true;
      forget();
    },
  };
}

export function rowsOf({ dims: [rows, columns], data }: Float32Tensor): Matrix {
  return Array.from({ length: rows! }, (_, row) => [...data.subarray(row * columns!, (row + 1) * columns!)]);
}

export function tensor(rows: Matrix): Float32Tensor {
  return float32(rows.flat(), [rows.length, rows[0]!.length]);
}

export const product = (a: Matrix, b: Matrix): Matrix =>
  a.map((row) => b[0]!.map((_, j) => row.reduce((sum, value, i) => sum + value * b[i]![j]!, 0)));
export const transposed = (a: Matrix): Matrix => a[0]!.map((_, j) => a.map((row) => row[j]!));
export const plus = (a: Matrix, b: Matrix): Matrix => a.map((row, i) => row.map((x, j) => x + b[i]![j]!));
export { base as baseWeights };

function sequenceSums(rows: Matrix, { lengths, time, prefix }: TokenLayout): Matrix {
  return lengths.map((length, i) => {
    const from = prefix + i * time;
    const own = [...rows.slice(0, prefix), ...rows.slice(from, from + length - prefix)];
    return own.reduce((sum, row) => sum.map((value, j) => value + row[j]!));
  });
}

export interface Server extends LayersServer {
  /** A client whose requests come from `name`. */
  client(name?: string): Client<typeof LayersService>;
  readonly routes: (router: ConnectRouter) => void;
  readonly calls: LayersCall[];
  /** The layers that were opened, in order, with what for. */
  readonly opened: { readonly session: string; readonly task: string | undefined; readonly layers: Toy }[];
  /** By id, the client. A session that is taken out has ended. */
  readonly sessions: Map<string, string>;
}

/** Sessions 'a' and 'b' of the clients 'anna' and 'ben'. */
export function serve(
  options: Partial<Pick<LayersServiceOptions<never>, 'limits' | 'cacheSeconds'>> = {},
  open: (task: string | undefined) => Toy = () => toyLayers(),
): Server {
  const sessions = new Map([
    ['a', 'anna'],
    ['b', 'ben'],
  ]);
  const opened: { session: string; task: string | undefined; layers: Toy }[] = [];
  const calls: LayersCall[] = [];
  const server = layersService({
    limits: { bytes: 100_000, tokens: 64 },
    cacheSeconds: 60,
    ...options,
    onCall: (call) => calls.push(call),
    session(id, client) {
      if (sessions.get(id) !== client) throw unknownSession();
      return { id, client };
    },
    open({ id }, task) {
      const layers = open(task);
      opened.push({ session: id, task, layers });
      return layers;
    },
  });
  const routes = (router: ConnectRouter) => {
    router.service(LayersService, server.service);
  };
  return {
    ...server,
    sessions,
    opened,
    calls,
    routes,
    client: (name = 'anna') =>
      createClient(
        LayersService,
        createRouterTransport(routes, {
          transport: { interceptors: [says(name)] },
          router: { interceptors: [believed] },
        }),
      ),
  };
}

/** The client says who it is, and is believed. */
export const says =
  (name: string): Interceptor =>
  (next) =>
  (request) => {
    request.header.set('client', name);
    return next(request);
  };
export const believed: Interceptor = (next) => (request) => {
  request.contextValues.set(clientKey, request.header.get('client') ?? '');
  return next(request);
};

export const activations = (rows: Matrix, encoding: ActivationsEncoding = 'float32') =>
  encodeActivations(tensor(rows), encoding);

export const layoutOf = (lengths: number[], paddedLength: number, prefix = 0) =>
  create(TokenLayoutSchema, { lengths, paddedLength, prefix });

/** Two sequences of 2 tokens and 1, behind one that both begin with. */
export const fiveRows: Matrix = [
  [1, 0, 2],
  [0, 1, 0],
  [2, 2, 1],
  [1, 1, 1],
  [0, 0, 0],
];
export const ofFive = layoutOf([3, 2], 2, 1);

/** The refusal's message, if it has this code. */
export async function refusal(call: Promise<unknown>, code: Code): Promise<string> {
  const error = await call.then(
    () => expect.fail('it was answered'),
    (reason: unknown) => ConnectError.from(reason),
  );
  expect(error.code, error.message).toBe(code);
  return error.rawMessage;
}
