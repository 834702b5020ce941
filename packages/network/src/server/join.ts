// What a client says of itself when it joins, checked against the server's model.
import type { JoinRequest } from '#proto/federation_pb';
import { invalid } from '../protocol/invalid.ts';
import { notNow } from './refusals.ts';
import type { JoinFacts } from './sessions.ts';

export interface ServedModel {
  /** 64 hexadecimal digits. */
  readonly hash: string;
  /** The layers that the server computes; without them every client has all layers itself. */
  readonly layers?: ServedLayers;
}

export interface ServedLayers {
  /** n: layers of the whole model. */
  readonly count: number;
  /** The server holds layers from this one to n - 2. */
  readonly first: number;
}

/** @throws INVALID_ARGUMENT, and FAILED_PRECONDITION if it does not fit the server's model */
export function factsOf(request: JoinRequest, { hash, layers }: ServedModel): JoinFacts {
  const { modelHash, layersKept, trainSamples, validationSamples, testUsers, group } = request;
  if (!/^[0-9a-f]{64}$/.test(modelHash))
    throw invalid('model_hash: send 64 lower-case hexadecimal digits, as "fellrec model info" prints them');
  if (modelHash !== hash)
    throw notNow(
      `model_hash: the server's model is ${hash}, the client's ${modelHash}; take the same weights`,
    );
  if (layersKept !== undefined) assertServed(layersKept, layers);
  if (group !== undefined && !/^[\p{L}\p{N}_][\p{L}\p{N}_-]{0,63}$/u.test(group))
    throw invalid('group: 1 to 64 letters, digits, "-" and "_", without "-" at the start');
  return { modelHash, layersKept, trainSamples, validationSamples, testUsers, group };
}

function assertServed(layersKept: number, layers: ServedLayers | undefined): void {
  if (!layers) throw notNow(`layers_kept is ${layersKept}, but the server computes no layers; leave it out`);
  const { count, first } = layers;
  if (layersKept >= count)
    throw invalid(`layers_kept is ${layersKept}; of ${count} layers it can be 0 to ${count - 1}`);
  if (layersKept < first)
    throw notNow(`layers_kept is ${layersKept}, but the server holds layers from ${first} on; keep ${first}`);
}
