// The middle layers that a server computes for its clients: one set of them a task, with the adapter that it trains on
// the client's behalf, if it does.
import type { AdamWOptions, NamedTensors } from '@fellrec/graph';
import { type CutLayers, type LocalMiddle, type LoraConfig, localMiddle } from '@fellrec/models';
import { type MiddleParameters, notFound, notNow, type ServedLayers } from '@fellrec/network';

export interface ServedMiddles extends MiddleParameters {
  /** Layers k .. n - 2 for a task, or of the base model. @throws a ConnectError if there is no such task. */
  open(k: number | undefined, taskId: string | undefined): ServedLayers;
}

interface TaskMiddle {
  readonly start: NamedTensors;
  layers?: LocalMiddle;
}

export interface MiddlesOptions {
  /** Whether the middle layers learn: tasks then bring parameters of theirs. */
  readonly trains: boolean;
  /** Absent: tensors in the checkpoint's place. */
  readonly lora: LoraConfig | undefined;
  readonly optimizer: AdamWOptions;
}

export function servedMiddles(layers: CutLayers, { trains, lora, optimizer }: MiddlesOptions): ServedMiddles {
  const tasks = new Map<string, TaskMiddle>();
  const { model } = layers;
  return {
    start(taskId, tensors) {
      tasks.set(taskId, { start: tensors });
    },
    finish(taskId) {
      const { start, layers: middle } = tasks.get(taskId)!;
      return middle?.parameters ?? start;
    },
    close(taskId) {
      tasks.delete(taskId);
    },
    open(k, taskId) {
      if (k === undefined) throw notNow('layers: the client keeps all layers; nothing is computed for it');
      const task = taskId === undefined ? undefined : tasks.get(taskId);
      if (trains && taskId !== undefined && !task)
        throw notFound("layers: there is no such task; ask for the client's task");
      const tensors = task?.start;
      const middle = localMiddle({
        layers,
        range: { from: k, to: model.layerCount - 1 },
        ...(tensors && tensors.size > 0 && { trained: { ...(lora && { lora }), tensors } }),
        optimizer,
      });
      if (task) task.layers = middle;
      return Object.assign(middle, {
        hiddenSize: model.hiddenSize,
        canDecode: model.decoding !== undefined,
        problem: model.problem,
      });
    },
  };
}
