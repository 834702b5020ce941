// The middle layers of a model where a server computes them.
import { create } from '@bufbuild/protobuf';
import { type Client, createClient, type Transport } from '@connectrpc/connect';
import type { MiddleLayers } from '@fellrec/models';
import {
  BackwardRequestSchema,
  BeginRequestSchema,
  DecodeRequestSchema,
  ForwardRequestSchema,
  Keep,
  LayersService,
  UpdateRequestSchema,
} from '#proto/layers_pb';
import {
  type ActivationsEncoding,
  type Carrier,
  decodeActivations,
  encodeActivations,
  payloadBytes,
} from '../protocol/activations.ts';
import { invalid } from '../protocol/invalid.ts';
import { encodeDropout, encodeLayout } from '../protocol/layout.ts';

export type LayersClient = Client<typeof LayersService>;

export function layersClient(transport: Transport): LayersClient {
  return createClient(LayersService, transport);
}

export interface RemoteMiddleOptions {
  /**
   * Makes a call in the client's open session, and the same again as often as it takes: when a connection is lost, and
   * while the server has no memory. Throws when the call is refused otherwise, or the session has ended.
   */
  readonly call: <T>(attempt: (client: LayersClient, sessionId: string) => Promise<T>) => Promise<T>;
  /** How activations and gradients cross, in both directions. */
  readonly encoding: ActivationsEncoding;
  /** Whether the server trains an adapter of the middle layers. */
  readonly trains: boolean;
}

export interface RemoteMiddle extends MiddleLayers {
  /** Starts on a task, which has to come before anything else in a session; on the base model without one. */
  begin(taskId: string | undefined): Promise<void>;
  /** Bytes of activations and gradients to the server, repeated ones included, and from it. */
  readonly traffic: { readonly up: number; readonly down: number };
}

const keeps = { gradient: Keep.GRADIENT, cache: Keep.CACHE } as const;

/** Middle layers over a `LayersService`. Their methods throw what `call` throws. */
export function remoteMiddle({ call, encoding, trains }: RemoteMiddleOptions): RemoteMiddle {
  const traffic = { up: 0, down: 0 };
  // Numbers of the requests that were answered, which count anew in every session.
  let answered = { sessionId: '', step: 0n };

  async function ask<I extends Carrier & { sessionId: string; step: bigint }, O extends Carrier>(
    request: I,
    send: (client: LayersClient, request: I) => Promise<O>,
  ): Promise<O> {
    return call(async (client, sessionId) => {
      if (sessionId !== answered.sessionId) answered = { sessionId, step: 0n };
      const step = answered.step + 1n;
      traffic.up += payloadBytes(request);
      const answer = await send(client, { ...request, sessionId, step });
      answered = { sessionId, step };
      traffic.down += payloadBytes(answer);
      return answer;
    });
  }

  return {
    trains,
    get traffic() {
      return { ...traffic };
    },

    async begin(taskId = '') {
      await ask(create(BeginRequestSchema, { taskId }), (client, request) => client.begin(request));
    },

    async forward(states, layout, { keep, adapted, dropout }) {
      const request = create(ForwardRequestSchema, {
        states: encodeActivations(states, encoding),
        layout: encodeLayout(layout),
        keep: keep ? keeps[keep] : Keep.UNSPECIFIED,
        adapted,
        ...(dropout && { dropout: encodeDropout(dropout) }),
      });
      const answer = await ask(request, (client, numbered) => client.forward(numbered));
      return decodeActivations('states', answer.states, shapeOf(states));
    },

    async backward(gradient) {
      const request = create(BackwardRequestSchema, { gradient: encodeActivations(gradient, encoding) });
      const answer = await ask(request, (client, numbered) => client.backward(numbered));
      return decodeActivations('gradient', answer.gradient, shapeOf(gradient));
    },

    async update(squaredNorm, learningRate) {
      const request = create(UpdateRequestSchema, { squaredNorm, learningRate });
      const answer = await ask(request, (client, numbered) => client.update(numbered));
      if (!(answer.squaredNorm >= 0 && Number.isFinite(answer.squaredNorm)))
        throw invalid(`squared_norm: expected a finite number from 0, found ${answer.squaredNorm}`);
      return answer.squaredNorm;
    },

    async decode({ states, users, beams, parents }) {
      const request = create(DecodeRequestSchema, {
        states: encodeActivations(states, encoding),
        users: [...users],
        beams,
        parents: [...parents],
      });
      const answer = await ask(request, (client, numbered) => client.decode(numbered));
      return decodeActivations('states', answer.states, shapeOf(states));
    },
  };
}

function shapeOf({ dims }: { readonly dims: readonly number[] }): { rows: number; columns: number } {
  return { rows: dims[0]!, columns: dims[1]! };
}
