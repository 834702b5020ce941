// AdamW (arXiv 1711.05101) as PyTorch computes it, with clipping by the global norm.
import type { Float32Tensor, NamedTensors } from '../tensor.ts';

export interface AdamWOptions {
  /** Exponential decay of the two moments. */
  readonly betas?: readonly [number, number];
  readonly epsilon?: number;
  /** Decoupled: parameters shrink by learningRate * weightDecay a step. */
  readonly weightDecay?: number;
  /** Gradients are scaled down to this global L2 norm if theirs is larger. */
  readonly clipNorm?: number;
}

export interface AdamWState {
  readonly step: number;
  readonly first: NamedTensors;
  readonly second: NamedTensors;
}

export interface AdamWUpdate {
  readonly parameters: NamedTensors;
  readonly state: AdamWState;
  /** Global L2 norm before clipping. */
  readonly gradientNorm: number;
}

export interface Optimizer<State> {
  init(parameters: NamedTensors): State;
  /** New parameters and state; what is passed in stays as it is. @throws if a gradient is missing. */
  update(parameters: NamedTensors, gradients: NamedTensors, state: State, learningRate: number): AdamWUpdate;
}

/**
 * m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; p = p (1 - lr wd) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps).
 */
export function adamW({
  betas: [beta1, beta2] = [0.9, 0.999],
  epsilon = 1e-8,
  weightDecay = 0,
  clipNorm = Number.POSITIVE_INFINITY,
}: AdamWOptions = {}): Optimizer<AdamWState> {
  return {
    init: (parameters) => ({ step: 0, first: zerosLike(parameters), second: zerosLike(parameters) }),
    update(parameters, gradients, state, learningRate) {
      const step = state.step + 1;
      const gradientNorm = globalNorm(gradients);
      // As torch.nn.utils.clip_grad_norm_.
      const clip = Math.min(1, clipNorm / (gradientNorm + 1e-6));
      const correction1 = 1 - beta1 ** step;
      const correction2 = 1 - beta2 ** step;
      const next = { parameters: new Map(), first: new Map(), second: new Map() } as Record<
        'parameters' | 'first' | 'second',
        Map<string, Float32Tensor>
      >;
      for (const [name, parameter] of parameters) {
        const gradient = gradients.get(name)?.data;
        if (!gradient) throw new Error(`adamw: no gradient for "${name}"`);
        const m = state.first.get(name)!.data.slice();
        const v = state.second.get(name)!.data.slice();
        const p = parameter.data.slice();
        for (let i = 0; i < p.length; i++) {
          const g = gradient[i]! * clip;
          m[i] = beta1 * m[i]! + (1 - beta1) * g;
          v[i] = beta2 * v[i]! + (1 - beta2) * g * g;
          const direction = m[i]! / correction1 / (Math.sqrt(v[i]! / correction2) + epsilon);
          p[i] = p[i]! * (1 - learningRate * weightDecay) - learningRate * direction;
        }
        next.parameters.set(name, { ...parameter, data: p });
        next.first.set(name, { ...parameter, data: m });
        next.second.set(name, { ...parameter, data: v });
      }
      return {
        parameters: next.parameters,
        state: { step, first: next.first, second: next.second },
        gradientNorm,
      };
    },
  };
}

/** The L2 norm of all elements together. */
export function globalNorm(tensors: NamedTensors): number {
  let squares = 0;
  for (const { data } of tensors.values())
    for (let i = 0; i < data.length; i++) squares += data[i]! * data[i]!;
  return Math.sqrt(squares);
}

function zerosLike(tensors: NamedTensors): NamedTensors {
  return new Map([...tensors].map(([name, t]) => [name, { ...t, data: new Float32Array(t.data.length) }]));
}
