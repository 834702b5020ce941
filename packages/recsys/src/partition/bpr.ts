// Matrix factorisation with Bayesian personalised ranking (arXiv 1205.2618), trained by seeded stochastic gradient
// descent on training interactions only: vectors of users whose tastes are alike point the same way.
import { random } from '@fellrec/graph';
import type { User } from '../dataset.ts';

export interface BprOptions {
  readonly dimension?: number;
  readonly epochs?: number;
  readonly learningRate?: number;
  readonly regularisation?: number;
  readonly seed: number;
  readonly onEpoch?: (epoch: number, epochs: number) => void;
}

/** One vector a user, `dimension` numbers each, in the users' order. */
export function userVectors(
  users: readonly User[],
  itemCount: number,
  { dimension = 64, epochs = 40, learningRate = 0.05, regularisation = 0.01, seed, onEpoch }: BprOptions,
): Float32Array[] {
  const { normal, integer, uniform } = random(seed, 'bpr');
  const draw = (count: number) => Float32Array.from({ length: count * dimension }, () => 0.1 * normal());
  const P = draw(users.length);
  const Q = draw(itemCount);
  const bias = new Float32Array(itemCount);
  const pairs = users.flatMap(({ train }, user) => train.map((item) => [user, item] as const));
  const owned = users.map(({ train }) => new Set(train));
  const order = Uint32Array.from(pairs, (_, i) => i);
  for (let epoch = 0; epoch < epochs; epoch++) {
    for (let i = order.length - 1; i > 0; i--) {
      const j = Math.floor(uniform() * (i + 1));
      const swapped = order[i]!;
      order[i] = order[j]!;
      order[j] = swapped;
    }
    const rate = learningRate * (1 - epoch / epochs);
    for (const index of order) {
      const [user, positive] = pairs[index]!;
      let negative = integer(itemCount);
      for (let tries = 0; owned[user]!.has(negative) && tries < 20; tries++) negative = integer(itemCount);
      const [u, p, n] = [user * dimension, positive * dimension, negative * dimension];
      let difference = bias[positive]! - bias[negative]!;
      for (let d = 0; d < dimension; d++) difference += P[u + d]! * (Q[p + d]! - Q[n + d]!);
      const gradient = 1 / (1 + Math.exp(difference));
      bias[positive] = bias[positive]! + rate * (gradient - regularisation * bias[positive]!);
      bias[negative] = bias[negative]! - rate * (gradient + regularisation * bias[negative]!);
      for (let d = 0; d < dimension; d++) {
        const [pu, qp, qn] = [P[u + d]!, Q[p + d]!, Q[n + d]!];
        P[u + d] = pu + rate * (gradient * (qp - qn) - regularisation * pu);
        Q[p + d] = qp + rate * (gradient * pu - regularisation * qp);
        Q[n + d] = qn - rate * (gradient * pu + regularisation * qn);
      }
    }
    onEpoch?.(epoch + 1, epochs);
  }
  return users.map((_, user) => P.slice(user * dimension, (user + 1) * dimension));
}
