// The graphs that a language model runs: a training step, a loss, hidden states, a shared prefix, the prompt's pass, one
// decoding step.
import {
  crossEntropy,
  type Dim,
  gather,
  gradients,
  input,
  logSoftmax,
  mul,
  type Outputs,
  partialGradients,
  plus,
  reshape,
  times,
  topIndices,
  topValues,
  total,
  type Value,
} from '@fellrec/graph';
import { type DecodingCache, decodingAttention, selfAttention } from './attention.ts';
import type { LlamaConfig } from './checkpoint/config.ts';
import { type Attended, type CausalModel, type LayerContext, runLayers } from './layered-model.ts';
import type { LoraGraph } from './lora.ts';

/** A graph and what the caller must know to feed it. */
export interface TrainingProgram {
  /** With the gradients of adapter tensors by `gradientName`. */
  readonly outputs: Outputs;
  readonly masks: ReadonlyMap<string, Value>;
}

interface SequenceOptions {
  readonly lora?: LoraGraph | undefined;
  /** Whether keys and values of a shared prefix are inputs, by `prefixName`. */
  readonly prefixed?: boolean | undefined;
  /** Told of the keys and values that each layer read, [batch, KV, prefix + time, headDim]. */
  readonly onRead?: (layer: number, keys: Value, values: Value) => void;
}

/** Inputs of a batch of sequences, behind a prefix or not. */
function sequenceContext(
  { headCount: H, keyValueHeadCount: KV, headDim, layerCount }: LlamaConfig,
  { lora, prefixed = false, onRead }: SequenceOptions,
): { ids: Value; context: LayerContext; prefix: ReadonlyMap<string, Value> } {
  const all = prefixed ? plus('prefix', 'time') : 'time';
  const mask = input('mask', 'float32', ['batch', 1, times(H / KV, 'time'), all]);
  const names = prefixed ? cacheNames(layerCount).map(prefixName) : [];
  const prefix = new Map(
    names.map((name) => [name, input(name, 'float32', [1, KV, 'prefix', headDim])] as const),
  );
  const context: LayerContext = {
    ...rotaryInputs(headDim, 'batch', 'time'),
    attend(layer, attended) {
      const found = selfAttention(attended, {
        batch: 'batch',
        time: 'time',
        headDim,
        mask,
        ...(prefixed && {
          prefix: {
            keys: prefix.get(prefixName(keyName(layer)))!,
            values: prefix.get(prefixName(valueName(layer)))!,
          },
        }),
      });
      onRead?.(layer, found.keys, found.values);
      return found.read;
    },
    ...(lora && { adapt: lora.adapt }),
  };
  const ids = reshape(input('ids', 'int64', ['batch', 'time']), [times('batch', 'time')]);
  return { ids, context, prefix };
}

function rotaryInputs(
  headDim: number,
  batch: Dim,
  time: Dim,
): Pick<LayerContext, 'positions' | 'cos' | 'sin'> {
  return {
    positions: reshape(input('positions', 'int64', [batch, time]), [times(batch, time)]),
    cos: input('cos', 'float32', ['table', headDim / 2]),
    sin: input('sin', 'float32', ['table', headDim / 2]),
  };
}

/** Minus the log-probability of each label, [labels]. */
function labelLosses(
  model: CausalModel,
  config: LlamaConfig,
  lora?: LoraGraph,
): { losses: Value; prefix: ReadonlyMap<string, Value> } {
  const { ids, context, prefix } = sequenceContext(config, { lora, prefixed: true });
  const rows = input('rows', 'int64', ['labels']); // place in [batch * time] of the token before each label
  const hidden = model.normalize(runLayers(model, ids, context, rows));
  return { losses: crossEntropy(model.logits(hidden), input('labels', 'int64', ['labels'])), prefix };
}

/** The weighted sum of the labels' losses: with weights 1 / number of labels, the mean. */
function weightedLoss(
  model: CausalModel,
  config: LlamaConfig,
  lora?: LoraGraph,
): { loss: Value; prefix: ReadonlyMap<string, Value> } {
  const { losses, prefix } = labelLosses(model, config, lora);
  return { loss: total(mul(losses, input('weights', 'float32', ['labels']))), prefix };
}

export function lossesProgram(model: CausalModel, config: LlamaConfig, lora?: LoraGraph): { losses: Value } {
  return { losses: labelLosses(model, config, lora).losses };
}

export function lossProgram(model: CausalModel, config: LlamaConfig, lora?: LoraGraph): { loss: Value } {
  return { loss: weightedLoss(model, config, lora).loss };
}

/** `loss`, and its gradient with respect to every adapter tensor and to the prefix' keys and values. */
export function trainingStep(model: CausalModel, config: LlamaConfig, lora: LoraGraph): TrainingProgram {
  const { loss, prefix } = weightedLoss(model, config, lora);
  const variables = new Map([...lora.parameters, ...prefix]);
  const found = gradients(loss, [...variables.values()]);
  return { outputs: { loss, ...named([...variables.keys()], found) }, masks: lora.masks };
}

/**
 * The keys and values of one sequence, [1, KV, prefix + time, headDim] a layer: what all sequences behind it read. With
 * `prefixed` it lies behind a prefix itself, which is theirs too.
 */
export function prefixProgram(
  model: CausalModel,
  config: LlamaConfig,
  { lora, prefixed }: Pick<SequenceOptions, 'lora' | 'prefixed'>,
): TrainingProgram {
  return { outputs: keysAndValues(model, config, { lora, prefixed }), masks: lora?.masks ?? new Map() };
}

/** The gradient of adapter tensors, given that of the prefix' keys and values; only of those that have a part in them. */
export function prefixGradients(model: CausalModel, config: LlamaConfig, lora: LoraGraph): TrainingProgram {
  const seeds = Object.entries(keysAndValues(model, config, { lora })).map(([name, value]) => ({
    value,
    gradient: input(gradientName(prefixName(name)), 'float32', value.shape),
  }));
  const found = partialGradients(seeds, [...lora.parameters.values()]);
  return { outputs: named([...lora.parameters.keys()], found), masks: lora.masks };
}

function keysAndValues(model: CausalModel, config: LlamaConfig, options: SequenceOptions): Outputs {
  const outputs: Record<string, Value> = {};
  const { ids, context } = sequenceContext(config, {
    ...options,
    onRead(layer, keys, values) {
      outputs[keyName(layer)] = keys;
      outputs[valueName(layer)] = values;
    },
  });
  runLayers(model, ids, context);
  return outputs;
}

/** Gradients are outputs beside inputs of the same name, so they get a name of their own. */
export function gradientName(name: string): string {
  return `gradient.${name}`;
}

/** The gradients that there are, as outputs. */
export function named(names: readonly string[], found: readonly (Value | undefined)[]): Outputs {
  return Object.fromEntries(names.flatMap((name, i) => (found[i] ? [[gradientName(name), found[i]]] : [])));
}

/** `vectors`: normalised last hidden states of chosen rows, [rows, d]. */
export function vectorProgram(model: CausalModel, config: LlamaConfig, lora?: LoraGraph): { vectors: Value } {
  const { ids, context } = sequenceContext(config, { lora });
  return { vectors: model.normalize(runLayers(model, ids, context, input('rows', 'int64', ['rows']))) };
}

/** All hidden states `hidden.0` (embeddings) ... `hidden.n` (after the final norm), [batch * time, d], and `logits`. */
export function tracingProgram(model: CausalModel, config: LlamaConfig, lora?: LoraGraph): Outputs {
  const { ids, context } = sequenceContext(config, { lora });
  const outputs: Record<string, Value> = {};
  let hidden = model.embed(ids);
  for (let index = 0; index < model.layerCount; index++) {
    outputs[`hidden.${index}`] = hidden;
    hidden = model.layer(index, hidden, context);
  }
  const last = model.normalize(hidden);
  return { ...outputs, [`hidden.${model.layerCount}`]: last, logits: model.logits(last) };
}

/** What projections read, by the path of the first that shares it, [batch * time, in]. */
export function tappingProgram(model: CausalModel, config: LlamaConfig): Outputs {
  const { ids, context } = sequenceContext(config, {});
  const outputs: Record<string, Value> = {};
  const tapping: LayerContext = {
    ...context,
    adapt(paths, x) {
      outputs[paths[0]!] = x;
      return [];
    },
  };
  runLayers(model, ids, tapping);
  return outputs;
}

/** The next tokens whose log-probabilities a program returns: so many likeliest of each row, or those it is asked for. */
export type WantedTokens = number | 'chosen';

/**
 * `nextIds` (int64) of each row's likeliest tokens, likeliest first, and their `logProbabilities`, [rows, count]. Or the
 * `logProbabilities` of `chosen` (int64), places in [rows * vocabulary]: [chosen].
 */
export function nextTokens(model: CausalModel, hidden: Value, wanted: WantedTokens): Outputs {
  const logProbabilities = logSoftmax(model.logits(model.normalize(hidden)));
  if (wanted !== 'chosen')
    return {
      nextIds: topIndices(logProbabilities, wanted),
      logProbabilities: topValues(logProbabilities, wanted),
    };
  // Picked in the graph: a step would copy [rows, vocabulary] for a few tokens of each row.
  const [rows, vocabulary] = logProbabilities.shape as [Dim, Dim];
  const flat = reshape(logProbabilities, [times(rows, vocabulary)]);
  return { logProbabilities: gather(flat, input('chosen', 'int64', ['chosen'])) };
}

export interface DecodingOptions {
  readonly lora?: LoraGraph | undefined;
  readonly wanted: WantedTokens;
}

/**
 * The next tokens after each prompt, and the keys and values of prefix and prompt per layer,
 * [users, KV, prefix + time, headDim].
 */
export function promptProgram(
  model: CausalModel,
  config: LlamaConfig,
  { lora, wanted }: DecodingOptions,
): Outputs {
  const outputs: Record<string, Value> = {};
  const { ids, context } = sequenceContext(config, {
    lora,
    prefixed: true,
    onRead(layer, keys, values) {
      outputs[keyName(layer)] = keys;
      outputs[valueName(layer)] = values;
    },
  });
  const hidden = runLayers(model, ids, context, input('rows', 'int64', ['rows']));
  return { ...nextTokens(model, hidden, wanted), ...outputs };
}

/** The next tokens after one more token of every beam of every user, and the grown cache. */
export function decodingProgram(
  model: CausalModel,
  config: LlamaConfig,
  { lora, wanted }: DecodingOptions,
): Outputs {
  const grown: Record<string, Value> = {};
  const { rows, context } = decodingContext(config, {
    lora,
    onRead(layer, keys, values) {
      // Outputs and inputs of a program may not share names.
      grown[grownName(keyName(layer))] = keys;
      grown[grownName(valueName(layer))] = values;
    },
  });
  const hidden = runLayers(model, decodingIds(rows), context);
  return { ...nextTokens(model, hidden, wanted), ...grown };
}

/** The ids of the new tokens, [users * beams]. */
function decodingIds(rows: Dim): Value {
  return reshape(input('ids', 'int64', ['users', 'beams']), [rows]);
}

/** The context of one new token a beam, and how many there are; tells of the caches of each layer that reads. */
export function decodingContext(
  { keyValueHeadCount: KV, headDim }: LlamaConfig,
  { lora, onRead }: Pick<SequenceOptions, 'lora' | 'onRead'>,
): { readonly rows: Dim; readonly context: LayerContext } {
  const rows = times('users', 'beams');
  const prompt = (name: string) => input(`prompt.${name}`, 'float32', ['users', KV, 'prompt', headDim]);
  const generated = (name: string) => input(name, 'float32', ['rows', KV, 'generated', headDim]);
  const parents = reshape(input('parents', 'int64', ['users', 'beams']), [rows]);
  const promptMask = input('promptMask', 'float32', ['users', 1, 1, 'prompt']);
  return {
    rows,
    context: {
      ...rotaryInputs(headDim, rows, 1),
      attend(layer, attended: Attended) {
        const cache: DecodingCache = {
          users: 'users',
          beams: 'beams',
          headDim,
          promptKeys: prompt(keyName(layer)),
          promptValues: prompt(valueName(layer)),
          promptMask,
          generatedKeys: generated(keyName(layer)),
          generatedValues: generated(valueName(layer)),
          parents,
        };
        const { read, generatedKeys, generatedValues } = decodingAttention(attended, cache);
        onRead?.(layer, generatedKeys, generatedValues);
        return read;
      },
      ...(lora && { adapt: lora.adapt }),
    },
  };
}

export const keyName = (layer: number): string => `keys.${layer}`;
export const valueName = (layer: number): string => `values.${layer}`;
/** Whether an output is the keys or the values of a layer. */
export const isCacheName = (name: string): boolean => /^(keys|values)\.\d+$/.test(name);
export const prefixName = (name: string): string => `prefix.${name}`;
export const grownName = (name: string): string => `grown.${name}`;
/** The names of all layers' keys and values. */
export function cacheNames(layerCount: number): string[] {
  return Array.from({ length: layerCount }, (_, layer) => [keyName(layer), valueName(layer)]).flat();
}
