// Clients that keep some layers of the model: which tensors are theirs, and their middle layers in this process.
import { type CutLayers, isMiddle, type LocalMiddle, localMiddle, type MiddleLayers } from '@fellrec/models';
import type { Elsewhere } from '@fellrec/recsys';
import { type Config, ConfigError } from './config.ts';

/** k of a client; undefined if it keeps all layers. @throws if the model has no such layer, or a client is not named. */
export function keptLayers({ split: { k } }: Config, client: string, layerCount: number): number | undefined {
  if (k === undefined) return undefined;
  const own = typeof k === 'number' ? k : k[client];
  if (own === undefined) throw new ConfigError(`config: split.k says nothing of "${client}"`);
  if (own >= layerCount)
    throw new ConfigError(
      `config: split.k of "${client}" is ${own}; the model has ${layerCount} layers, so 0 to ${layerCount - 1} are possible`,
    );
  return own;
}

/** Whether a client that keeps k layers (all if undefined) has a part in what becomes of a tensor. */
export function holds({ split: { adapters } }: Config, k: number | undefined, layerCount: number) {
  return (name: string): boolean =>
    k === undefined || adapters === 'all-layers' || !isMiddle(name, k, layerCount);
}

/** How layers in the middle learn: as the client's own. */
export function middleOptions({ training, lora, recommender, recformer }: Config) {
  const full = recommender === 'recformer' && recformer.tune === 'full';
  return {
    lora: full ? undefined : lora,
    optimizer: { weightDecay: training.weightDecay, clipNorm: training.clipNorm },
  };
}

/** The middle layers of a client in this process, and the seam that hands them their parameters. */
export function middleHere(
  config: Config,
  layers: CutLayers,
  k: number,
): { readonly middle: MiddleLayers; readonly elsewhere: Elsewhere } {
  const { layerCount } = layers.model;
  const { lora, optimizer } = middleOptions(config);
  const range = { from: k, to: layerCount - 1 };
  let current: LocalMiddle = localMiddle({ layers, range });
  return {
    middle: {
      get trains() {
        return current.trains;
      },
      forward: (states, layout, options) => current.forward(states, layout, options),
      backward: (gradient) => current.backward(gradient),
      update: (squaredNorm, learningRate) => current.update(squaredNorm, learningRate),
      decode: (request) => current.decode(request),
    },
    elsewhere: {
      holds: (name) => isMiddle(name, k, layerCount),
      begin(tensors) {
        const trained = tensors.size > 0 ? { ...(lora && { lora }), tensors } : undefined;
        current = localMiddle({ layers, range, trained, optimizer });
      },
      learned: () => current.parameters,
    },
  };
}
