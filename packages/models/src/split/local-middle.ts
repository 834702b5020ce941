// The middle layers in this process: what a server keeps for one client, and what stands in for it where both are one.
import {
  type AdamWOptions,
  adamW,
  type Float32Tensor,
  globalNorm,
  type NamedTensors,
  type Tensor,
  zeros,
} from '@fellrec/graph';
import { addTo } from '../batch.ts';
import type { DecodingCache } from '../decoding.ts';
import { gradientName } from '../programs.ts';
import type { LayerRange, Trained } from './cut-model.ts';
import type { CutLayers, KeptPass } from './layers.ts';
import type { MiddleLayers, TokenLayout } from './middle.ts';

export interface LocalMiddleOptions {
  readonly layers: CutLayers;
  readonly range: LayerRange;
  /** What these layers learn on the client's behalf; nothing if absent. */
  readonly trained?: Trained | undefined;
  readonly optimizer?: AdamWOptions;
}

export interface LocalMiddle extends MiddleLayers {
  /** Bytes that are kept between calls. */
  readonly heldBytes: number;
  /** What these layers have learned. */
  readonly parameters: NamedTensors;
  /** Drops what the last forward pass kept. */
  forget(): void;
  /** Frees all that is held; `parameters` stay. */
  close(): void;
}

interface Prompt {
  readonly read: Record<string, Tensor>;
  readonly layout: TokenLayout;
}

export function localMiddle({
  layers,
  range,
  trained,
  optimizer: settings,
}: LocalMiddleOptions): LocalMiddle {
  const optimizer = adamW(settings);
  let isOpen = true;
  let state = optimizer.init(trained?.tensors ?? new Map());
  let sums = new Map<string, Float32Tensor>();
  let kept: KeptPass | undefined;
  let prompt: Prompt | undefined;
  let cache: DecodingCache | undefined;
  /** What the prompt was computed with. */
  let decodedWith: Trained | undefined;
  const learned = (): Trained | undefined => trained && { ...trained, tensors: state.parameters };
  const forget = () => {
    kept = undefined;
    prompt = undefined;
    cache = undefined;
    decodedWith = undefined;
  };

  return {
    trains: trained !== undefined,
    get heldBytes() {
      if (!isOpen) return 0;
      const tensors = [...state.parameters.values(), ...sums.values(), ...Object.values(prompt?.read ?? {})];
      const moments = 2 * bytesOf([...state.parameters.values()]);
      return bytesOf(tensors) + moments + (kept?.bytes ?? 0) + (cache?.bytes ?? 0);
    },
    get parameters() {
      return state.parameters;
    },

    async forward(states, layout, { keep, adapted, dropout }) {
      forget();
      const options = { trained: adapted ? learned() : undefined, dropout };
      if (keep === 'gradient') {
        const found = await layers.forwardKept(range, states, layout, options);
        kept = found.kept;
        return found.states;
      }
      if (keep === 'cache') {
        const { states: after, read } = await layers.prompt(range, states, layout, options);
        prompt = { read, layout };
        decodedWith = options.trained;
        return after;
      }
      return layers.forward(range, states, layout, options);
    },

    async backward(gradient) {
      if (!kept) throw new Error('model: no forward pass was kept for this gradient');
      const pass = kept;
      kept = undefined;
      const found = await pass.backward(gradient, true);
      for (const [name, tensor] of found.gradients) addTo(sums, name, tensor);
      return found.gradient!;
    },

    async update(squaredNorm, learningRate) {
      if (!trained) return 0;
      const gradients = new Map(
        [...state.parameters].map(([name, { dims }]) => [name, sums.get(gradientName(name)) ?? zeros(dims)]),
      );
      sums = new Map();
      const own = globalNorm(gradients) ** 2;
      ({ state } = optimizer.update(gradients, state, learningRate, squaredNorm));
      return own;
    },

    async decode({ states, users, beams, parents }) {
      if (!cache) {
        if (!prompt || !layers.model.decoding) throw new Error('model: no prompt was kept to decode behind');
        cache = layers.model.decoding.cache(prompt.read, prompt.layout, beams);
        prompt = undefined;
      }
      const found = await layers.decode(range, states, cache.feeds(users, parents), { trained: decodedWith });
      cache.grow(found.grown);
      return found.states;
    },

    forget,
    close() {
      forget();
      sums = new Map();
      state = { ...state, first: new Map(), second: new Map() };
      isOpen = false;
    },
  };
}

function bytesOf(tensors: readonly Tensor[]): number {
  return tensors.reduce((sum, { data }) => sum + data.byteLength, 0);
}
