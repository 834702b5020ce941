// Clients without a model: each pulls its parameters towards a target of its own by gradient descent on
// loss = |x - target|^2 / (2 d).
import type { Float32Tensor, NamedTensors } from '@fellrec/graph';
import type { Client, FederationState, SimilarityOn } from '../src/index.ts';
import type { RoundParameters } from '../src/parameters/round-parameters.ts';
import { cosines } from '../src/similarity.ts';

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

export interface HalfwayOptions {
  readonly target: number;
  /** Names of the tensors that it holds; all if absent. */
  readonly holds?: readonly string[];
  readonly samples?: number;
}

/** Takes each of its tensors half of the way to a wave of its own. */
export function halfway(name: string, { target, holds, samples = 3 }: HalfwayOptions): Client {
  const wave = (k: number) => target + Math.sin(target * (k + 1));
  return {
    name,
    samples,
    ...(holds && { holds: (tensor) => holds.includes(tensor) }),
    async train(parameters) {
      const moved = [...parameters].map(
        ([tensor, { data }]) => [tensor, data.map((x, k) => (x + wave(k)) / 2)] as const,
      );
      return { parameters: tensors(Object.fromEntries(moved)), loss: 1 + target / 10, samples };
    },
    async evaluate(parameters) {
      const [{ data }] = [...parameters.values()] as [Float32Tensor];
      return { loss: Math.abs(data[0]! - wave(0)), samples: 2 };
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

/** Between all clients of parameters that all hold alike. */
export async function cosinesOf(parameters: RoundParameters, on: SimilarityOn): Promise<number[][]> {
  const gram = await parameters.gram(on);
  return cosines([{ holders: [...gram.keys()], gram }], gram.length);
}
