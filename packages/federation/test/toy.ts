// Clients without a model: each pulls its parameters towards a target of its own by gradient descent on
// loss = |x - target|^2 / (2 d).
import type { Float32Tensor, NamedTensors } from '@fellrec/graph';
import type { Client, FederationState } from '../src/index.ts';

export function tensors(values: Readonly<Record<string, readonly number[] | Float32Array>>): NamedTensors {
  return new Map(
    Object.entries(values).map(([name, data]): [string, Float32Tensor] => [
      name,
      { dtype: 'float32', dims: [data.length], data: Float32Array.from(data) },
    ]),
  );
}

export interface QuadraticOptions {
  readonly target: readonly number[];
  /** Where validation would like it to be, if not at the target: training on then makes it worse again. */
  readonly validationTarget?: readonly number[];
  readonly samples?: number;
  readonly validationSamples?: number;
  readonly steps?: number;
}

export function quadratic(name: string, options: QuadraticOptions): Client {
  const { target, validationTarget = target, samples = 10, validationSamples = 4, steps = 3 } = options;
  return {
    name,
    samples,
    async train(parameters, { onProgress }) {
      const x = Float64Array.from(parameters.get('x')!.data);
      let sum = 0;
      for (let step = 1; step <= steps; step++) {
        const loss = distance(x, target);
        sum += loss;
        for (let i = 0; i < x.length; i++) x[i]! -= 0.2 * (x[i]! - target[i]!);
        onProgress?.({ step, steps, loss });
      }
      return {
        parameters: tensors({ x: Float32Array.from(x) }),
        loss: sum / steps,
        samples,
        tokens: { real: samples * 7, computed: samples * 8, padding: samples },
      };
    },
    async evaluate(parameters) {
      return { loss: distance(parameters.get('x')!.data, validationTarget), samples: validationSamples };
    },
  };
}

function distance(x: ArrayLike<number>, target: readonly number[]): number {
  return target.reduce((sum, value, i) => sum + (x[i]! - value) ** 2, 0) / (2 * target.length);
}

/** A state with its parameters read, so that states compare. */
export async function loaded({ parameters, ...state }: FederationState): Promise<object> {
  const read = [...parameters].map(async ([name, parametersOf]) => [name, await parametersOf()] as const);
  return { ...state, parameters: new Map(await Promise.all(read)) };
}

export async function* stream<T>(...items: readonly T[]): AsyncGenerator<T> {
  yield* items;
}
