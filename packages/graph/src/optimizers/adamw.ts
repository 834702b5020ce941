// AdamW (arXiv 1711.05101) as PyTorch computes it, with clipping by the global norm.
import type { NamedTensors } from '../tensor.ts';

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
  readonly parameters: NamedTensors;
  readonly first: NamedTensors;
  readonly second: NamedTensors;
}

export interface AdamWUpdate {
  /** The state's own: the next update changes them. */
  readonly parameters: NamedTensors;
  readonly state: AdamWState;
  /** Global L2 norm before clipping. */
  readonly gradientNorm: number;
}

export interface Optimizer<State> {
  /** Starts from a copy of `parameters`. */
  init(parameters: NamedTensors): State;
  /**
   * Updates the parameters that a state holds. The state is used up: its memory becomes the next one's, because on
   * encoders of 148 million parameters new memory would take longer than the arithmetic.
   * Clipping is by the norm over these gradients and others, whose squares sum to `othersSquared`.
   * @throws if a gradient is missing or has another size than its parameter; the state is then as it was.
   */
  update(gradients: NamedTensors, state: State, learningRate: number, othersSquared?: number): AdamWUpdate;
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
    init: (parameters) => ({
      step: 0,
      parameters: new Map([...parameters].map(([name, t]) => [name, { ...t, data: t.data.slice() }])),
      first: zerosLike(parameters),
      second: zerosLike(parameters),
    }),
    update(gradients, { step: before, parameters, first, second }, learningRate, othersSquared = 0) {
      for (const [name, { data }] of parameters) {
        const gradient = gradients.get(name);
        if (!gradient) throw new Error(`adamw: no gradient for "${name}"`);
        if (gradient.data.length !== data.length)
          throw new Error(
            `adamw: the gradient for "${name}" has ${gradient.data.length} numbers, the parameter ${data.length}`,
          );
      }
      const step = before + 1;
      const own = globalNorm(gradients);
      const gradientNorm = othersSquared === 0 ? own : Math.sqrt(own ** 2 + othersSquared);
      const coefficients: Coefficients = {
        beta1,
        beta2,
        epsilon,
        // As torch.nn.utils.clip_grad_norm_.
        clip: Math.min(1, clipNorm / (gradientNorm + 1e-6)),
        decay: 1 - learningRate * weightDecay,
        rate: learningRate / (1 - beta1 ** step),
        spread: 1 / Math.sqrt(1 - beta2 ** step),
      };
      for (const [name, { data }] of parameters)
        updateTensor(
          data,
          gradients.get(name)!.data,
          first.get(name)!.data,
          second.get(name)!.data,
          coefficients,
        );
      return { parameters, state: { step, parameters, first, second }, gradientNorm };
    },
  };
}

interface Coefficients {
  readonly beta1: number;
  readonly beta2: number;
  readonly epsilon: number;
  readonly clip: number;
  readonly decay: number;
  /** lr / (1 - b1^t). */
  readonly rate: number;
  /** 1 / sqrt(1 - b2^t). */
  readonly spread: number;
}

/** In place. A function of its own, with its numbers in locals: so the loop takes 5 ns an element. */
function updateTensor(
  p: Float32Array,
  g: Float32Array,
  m: Float32Array,
  v: Float32Array,
  { beta1, beta2, epsilon, clip, decay, rate, spread }: Coefficients,
): void {
  for (let i = 0; i < p.length; i++) {
    const clipped = g[i]! * clip;
    const mean = beta1 * m[i]! + (1 - beta1) * clipped;
    const square = beta2 * v[i]! + (1 - beta2) * clipped * clipped;
    m[i] = mean;
    v[i] = square;
    p[i] = p[i]! * decay - (rate * mean) / (Math.sqrt(square) * spread + epsilon);
  }
}

/** The L2 norm of all elements together. */
export function globalNorm(tensors: NamedTensors): number {
  // Two sums that do not wait for each other.
  let [even, odd] = [0, 0];
  for (const { data } of tensors.values()) {
    for (let i = 0; i + 1 < data.length; i += 2) {
      even += data[i]! * data[i]!;
      odd += data[i + 1]! * data[i + 1]!;
    }
    if (data.length % 2 === 1) even += data.at(-1)! ** 2;
  }
  return Math.sqrt(even + odd);
}

function zerosLike(tensors: NamedTensors): NamedTensors {
  return new Map([...tensors].map(([name, t]) => [name, { ...t, data: new Float32Array(t.data.length) }]));
}
