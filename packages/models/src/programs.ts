// The graphs that a language model runs: a training step, a loss, hidden states, the prompt's pass, one decoding step.
import {
  crossEntropy,
  type Dim,
  gradients,
  input,
  logSoftmax,
  mul,
  type Outputs,
  reshape,
  total,
  type Value,
} from '@fellrec/graph';
import { type DecodingCache, decodingAttention, selfAttention } from './attention.ts';
import type { LlamaConfig } from './checkpoint/config.ts';
import { type Attended, type LayerContext, type LayeredModel, runLayers } from './layered-model.ts';
import type { LoraGraph } from './lora.ts';

/** A graph and what the caller must know to feed it. */
export interface TrainingStep {
  /** `loss` and, by PEFT's name, the gradient of every adapter tensor. */
  readonly outputs: Outputs;
  readonly masks: ReadonlyMap<string, Value>;
}

/** Inputs of a batch of sequences. */
function sequenceContext(config: LlamaConfig, lora?: LoraGraph): { ids: Value; context: LayerContext } {
  const mask = input('mask', 'float32', ['batch', 1, 1, 'time', 'time']);
  const context = {
    batch: 'batch',
    time: 'time',
    ...positionInputs(config, 'batch', 'time'),
    attend: (_: number, attended: Attended) => selfAttention(attended, mask),
    ...(lora && { adapt: lora.adapt }),
  };
  return { ids: input('ids', 'int64', ['batch', 'time']), context };
}

function positionInputs(
  { headDim }: LlamaConfig,
  batch: Dim,
  time: Dim,
): Pick<LayerContext, 'positions' | 'cos' | 'sin'> {
  return {
    positions: input('positions', 'int64', [batch, time]),
    cos: input('cos', 'float32', ['table', headDim / 2]),
    sin: input('sin', 'float32', ['table', headDim / 2]),
  };
}

/** The weighted sum of the labels' losses: with weights 1 / number of labels, the mean. */
function weightedLoss(model: LayeredModel, config: LlamaConfig, lora?: LoraGraph): Value {
  const { ids, context } = sequenceContext(config, lora);
  const rows = input('rows', 'int64', ['labels']); // place in [batch * time] of the token before each label
  const hidden = model.normalize(runLayers(model, ids, context, rows));
  const losses = crossEntropy(model.logits(hidden), input('labels', 'int64', ['labels']));
  return total(mul(losses, input('weights', 'float32', ['labels'])));
}

export function lossProgram(model: LayeredModel, config: LlamaConfig, lora?: LoraGraph): { loss: Value } {
  return { loss: weightedLoss(model, config, lora) };
}

export function trainingStep(model: LayeredModel, config: LlamaConfig, lora: LoraGraph): TrainingStep {
  const loss = weightedLoss(model, config, lora);
  const names = [...lora.parameters.keys()];
  const found = gradients(loss, [...lora.parameters.values()]);
  const outputs = { loss, ...Object.fromEntries(names.map((name, i) => [name, found[i]!])) };
  return { outputs: prefixed(outputs, names), masks: lora.masks };
}

/** Gradients are outputs beside inputs of the same name, so they get a name of their own. */
function prefixed(outputs: Outputs, names: readonly string[]): Outputs {
  const isGradient = new Set(names);
  return Object.fromEntries(
    Object.entries(outputs).map(([name, value]) => [isGradient.has(name) ? gradientName(name) : name, value]),
  );
}

export function gradientName(parameter: string): string {
  return `gradient.${parameter}`;
}

/** `vectors`: normalised last hidden states of chosen rows, [rows, d]. */
export function vectorProgram(
  model: LayeredModel,
  config: LlamaConfig,
  lora?: LoraGraph,
): { vectors: Value } {
  const { ids, context } = sequenceContext(config, lora);
  return { vectors: model.normalize(runLayers(model, ids, context, input('rows', 'int64', ['rows']))) };
}

/** All hidden states `hidden.0` (embeddings) ... `hidden.n` (after the final norm), [batch * time, d], and `logits`. */
export function tracingProgram(model: LayeredModel, config: LlamaConfig, lora?: LoraGraph): Outputs {
  const { ids, context } = sequenceContext(config, lora);
  const outputs: Record<string, Value> = {};
  let hidden = model.embed(ids);
  for (let index = 0; index < model.layerCount; index++) {
    outputs[`hidden.${index}`] = hidden;
    hidden = model.layer(index, hidden, context);
  }
  const last = model.normalize(hidden);
  return { ...outputs, [`hidden.${model.layerCount}`]: last, logits: model.logits(last) };
}

/** `logProbabilities` of the token after each prompt, [users, vocabulary], and the prompts' keys and values per layer. */
export function promptProgram(model: LayeredModel, config: LlamaConfig, lora?: LoraGraph): Outputs {
  const outputs: Record<string, Value> = {};
  const { ids, context } = sequenceContext(config, lora);
  const keeping: LayerContext = {
    ...context,
    attend: (layer, attended) => {
      outputs[keyName(layer)] = attended.keys;
      outputs[valueName(layer)] = attended.values;
      return context.attend(layer, attended);
    },
  };
  const hidden = runLayers(model, ids, keeping, input('rows', 'int64', ['rows']));
  return { logProbabilities: logSoftmax(model.logits(model.normalize(hidden))), ...outputs };
}

/** `logProbabilities` after one more token of every beam, [users * beams, vocabulary], and the grown cache. */
export function decodingProgram(model: LayeredModel, config: LlamaConfig, lora?: LoraGraph): Outputs {
  const { keyValueHeadCount: KV, headDim } = config;
  const outputs: Record<string, Value> = {};
  const ids = input('ids', 'int64', ['users', 'beams']);
  const rows = 'beams*users';
  const prompt = (name: string) => input(`prompt.${name}`, 'float32', ['users', KV, 'prompt', headDim]);
  const generated = (name: string) => input(name, 'float32', ['rows', KV, 'generated', headDim]);
  const parents = reshape(input('parents', 'int64', ['users', 'beams']), [rows]);
  const promptMask = input('promptMask', 'float32', ['users', 1, 1, 'prompt']);
  const context: LayerContext = {
    batch: rows,
    time: 1,
    ...positionInputs(config, rows, 1),
    attend: (layer, attended) => {
      const cache: DecodingCache = {
        users: 'users',
        beams: 'beams',
        promptKeys: prompt(keyName(layer)),
        promptValues: prompt(valueName(layer)),
        promptMask,
        generatedKeys: generated(keyName(layer)),
        generatedValues: generated(valueName(layer)),
        parents,
      };
      const { read, generatedKeys, generatedValues } = decodingAttention(attended, cache);
      outputs[keyName(layer)] = generatedKeys;
      outputs[valueName(layer)] = generatedValues;
      return read;
    },
    ...(lora && { adapt: lora.adapt }),
  };
  const hidden = runLayers(model, ids, context);
  // Outputs and inputs of a program may not share names.
  const grown = Object.fromEntries(Object.entries(outputs).map(([name, value]) => [grownName(name), value]));
  return { logProbabilities: logSoftmax(model.logits(model.normalize(hidden))), ...grown };
}

export const keyName = (layer: number): string => `keys.${layer}`;
export const valueName = (layer: number): string => `values.${layer}`;
export const grownName = (name: string): string => `grown.${name}`;
