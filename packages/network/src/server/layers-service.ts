// The middle layers as a service. A request is checked as a whole before anything is done, those of a session are done
// one after another, and each is done once, however often it comes.
import { createHash } from 'node:crypto';
import { create, toBinary } from '@bufbuild/protobuf';
import type { GenMessage } from '@bufbuild/protobuf/codegenv2';
import type { HandlerContext, ServiceImpl } from '@connectrpc/connect';
import type { Float32Tensor } from '@fellrec/graph';
import type { ForwardOptions } from '@fellrec/models';
import {
  type BackwardRequest,
  BackwardRequestSchema,
  type BackwardResponse,
  BackwardResponseSchema,
  type BeginRequest,
  BeginRequestSchema,
  BeginResponseSchema,
  type DecodeRequest,
  DecodeRequestSchema,
  DecodeResponseSchema,
  type ForwardRequest,
  ForwardRequestSchema,
  ForwardResponseSchema,
  Keep,
  type LayersService,
  type UpdateRequest,
  UpdateRequestSchema,
  UpdateResponseSchema,
} from '#proto/layers_pb';
import {
  type Carrier,
  decodeActivations,
  encodeActivations,
  encodingOf,
  payloadBytes,
} from '../protocol/activations.ts';
import { invalid } from '../protocol/invalid.ts';
import { decodeDropout, decodeLayout, rowsOf } from '../protocol/layout.ts';
import { clientKey } from './identity.ts';
import { decodeNextTokens } from './layers-decoding.ts';
import { LayersSession, type ServedLayers } from './layers-session.ts';
import { exhausted, notNow } from './refusals.ts';

export interface LayersServiceOptions<S extends OpenSession> {
  /** The client's session of this id. @throws a ConnectError if it has none. */
  readonly session: (id: string, client: string) => S;
  /** Layers for a task, or of the base model without one. @throws a ConnectError if the session has no such task. */
  readonly open: (session: S, taskId: string | undefined) => ServedLayers | Promise<ServedLayers>;
  readonly limits: LayersLimits;
  /** Seconds that a cache is kept without a Decode. */
  readonly cacheSeconds: number;
  /** Hears of every call when it is over, also of one that was refused. */
  readonly onCall?: (call: LayersCall) => void;
}

export interface LayersLimits {
  /** Held for all sessions: by their layers, for requests that are being done, as last answers. */
  readonly bytes: number;
  /** Rows of a request's activations. */
  readonly tokens: number;
}

export interface OpenSession {
  readonly id: string;
  readonly client: string;
}

export interface LayersCall {
  readonly method: keyof ServiceImpl<typeof LayersService>;
  /** From the request to the answer, waiting included. */
  readonly seconds: number;
  /** Of activations. */
  readonly bytesIn: number;
  /** Of activations; 0 for what was refused. */
  readonly bytesOut: number;
}

export interface LayersServer {
  readonly service: ServiceImpl<typeof LayersService>;
  /** Frees what is held for a session that has ended, once no request of it is being done. */
  end(sessionId: string): Promise<void>;
  /** Bytes held for all sessions. */
  heldBytes(): number;
}

/** A `LayersService`, and what frees it of sessions that are over. */
export function layersService<S extends OpenSession>(options: LayersServiceOptions<S>): LayersServer {
  const { limits, cacheSeconds } = options;
  const sessions = new Map<string, LayersSession>();
  const heldBytes = () => [...sessions.values()].reduce((sum, session) => sum + session.heldBytes, 0);

  function assertFits(session: LayersSession, bytes: number): void {
    if (bytes > limits.bytes)
      throw invalid(
        `layers: the request takes ${bytes} bytes of memory; at most ${limits.bytes} are allowed`,
      );
    if (heldBytes() - session.heldBytes + bytes > limits.bytes)
      throw exhausted(`layers: no ${bytes} bytes of memory beside those of other clients; try again`);
  }

  function held(id: string): LayersSession {
    const session = sessions.get(id) ?? new LayersSession({ cacheSeconds, assertFits });
    sessions.set(id, session);
    return session;
  }

  function method<
    I extends Carrier & { readonly sessionId: string; readonly step: bigint },
    O extends Carrier,
  >(
    name: LayersCall['method'],
    schema: GenMessage<I>,
    work: (session: LayersSession, request: I, open: S) => Promise<O>,
  ) {
    return async (request: I, context: HandlerContext): Promise<O> => {
      const started = performance.now();
      let bytesOut = 0;
      try {
        const open = () => options.session(request.sessionId, context.values.get(clientKey));
        const session = held(open().id);
        const answer = await session.answer({
          step: request.step,
          hash: () => createHash('sha256').update(name).update(toBinary(schema, request)).digest('hex'),
          assertOpen: open,
          work: () => work(session, request, open()),
        });
        bytesOut = payloadBytes(answer);
        return answer;
      } finally {
        const seconds = (performance.now() - started) / 1000;
        options.onCall?.({ method: name, seconds, bytesIn: payloadBytes(request), bytesOut });
      }
    };
  }

  return {
    service: {
      begin: method('begin', BeginRequestSchema, async (session, { taskId }: BeginRequest, open) => {
        session.begin(await options.open(open, taskId || undefined));
        return create(BeginResponseSchema);
      }),
      forward: method('forward', ForwardRequestSchema, (session, request) =>
        forward(session, request, limits.tokens),
      ),
      backward: method('backward', BackwardRequestSchema, backward),
      update: method('update', UpdateRequestSchema, update),
      decode: method('decode', DecodeRequestSchema, (session, request) =>
        decode(session, request, limits.tokens),
      ),
    },
    heldBytes,
    async end(sessionId) {
      try {
        await sessions.get(sessionId)?.end();
      } finally {
        sessions.delete(sessionId);
      }
    },
  };
}

async function forward(session: LayersSession, request: ForwardRequest, maxTokens: number) {
  const { hiddenSize, canDecode, problem } = session.layers;
  const layout = decodeLayout('layout', request.layout, maxTokens);
  const wrong = problem(layout);
  if (wrong !== undefined) throw invalid(`layout: ${wrong}`);
  const { lengths } = layout;
  const rows = rowsOf(layout);
  const keep = keptFor(request.keep);
  if (keep === 'cache' && !canDecode) throw invalid('keep: an encoder has no Decode; keep nothing for it');
  const dropout = request.dropout && decodeDropout('dropout', request.dropout, lengths.length);
  const states = decodeActivations('states', request.states, { rows, columns: hiddenSize });
  const options: ForwardOptions = {
    adapted: request.adapted,
    ...(keep && { keep }),
    ...(dropout && { dropout }),
  };
  session.setAsideForForward(workBytes(states));
  const found = await session.compute((layers) => layers.forward(states, layout, options));
  const answer = encodeActivations(found, encodingOf('states', request.states!));
  const message = create(ForwardResponseSchema, { states: answer });
  if (keep === 'gradient') session.keepIfFits({ for: keep, rows }, payloadBytes(message));
  if (keep === 'cache') session.keepIfFits({ for: keep, users: [...lengths.keys()] }, payloadBytes(message));
  return message;
}

async function backward(session: LayersSession, request: BackwardRequest): Promise<BackwardResponse> {
  const { layers, kept } = session;
  if (kept.for !== 'gradient')
    throw notNow(
      `Backward: ${kept.for === 'nothing' ? kept.why : 'the last forward pass was kept for Decode'}`,
    );
  const shape = { rows: kept.rows, columns: layers.hiddenSize };
  const gradient = decodeActivations('gradient', request.gradient, shape);
  session.setAside(workBytes(gradient));
  const found = await session.compute((layers) => layers.backward(gradient));
  session.forget('the last forward pass had its Backward');
  const encoding = encodingOf('gradient', request.gradient!);
  return create(BackwardResponseSchema, { gradient: encodeActivations(found, encoding) });
}

async function update(session: LayersSession, { squaredNorm, learningRate }: UpdateRequest) {
  for (const [field, value] of Object.entries({ squared_norm: squaredNorm, learning_rate: learningRate }))
    if (!(value >= 0 && Number.isFinite(value)))
      throw invalid(`${field}: expected a finite number from 0, found ${value}`);
  const found = await session.compute((layers) => layers.update(squaredNorm, learningRate));
  return create(UpdateResponseSchema, { squaredNorm: found });
}

async function decode(session: LayersSession, request: DecodeRequest, tokens: number) {
  const { layers, kept } = session;
  const next = decodeNextTokens(request, kept, { hiddenSize: layers.hiddenSize, tokens });
  session.setAside(workBytes(next.states));
  const found = await session.compute((layers) => layers.decode(next));
  session.keep({ for: 'cache', users: next.users, beams: next.beams });
  const states = encodeActivations(found, encodingOf('states', request.states!));
  return create(DecodeResponseSchema, { states });
}

function keptFor(keep: Keep): ForwardOptions['keep'] {
  switch (keep) {
    case Keep.UNSPECIFIED:
      return undefined;
    case Keep.GRADIENT:
      return 'gradient';
    case Keep.CACHE:
      return 'cache';
    default:
      throw invalid(`keep: expected ${Keep.UNSPECIFIED} to ${Keep.CACHE}, found ${keep}`);
  }
}

/** What a request takes while it is done: states or a gradient, and an answer of its shape. */
function workBytes({ data }: Float32Tensor): number {
  return 2 * data.byteLength;
}
