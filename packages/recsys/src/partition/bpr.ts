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
  { dimension = 64, epochs = 40, learningRate = 0.3, regularisation = 0.0005, seed, onEpoch }: BprOptions,
): Float32Array[] {
  const { normal, integer } = random(seed, 'bpr');
  const draw = (count: number) => Float32Array.from({ length: count * dimension }, () => 0.1 * normal());
  const P = draw(users.length);
  const Q = draw(itemCount);
  const bias = new Float32Array(itemCount);
  const owned = users.map(({ train }) => new Set(train));
  const userOf = Int32Array.from(users.flatMap(({ train }, user) => train.map(() => user)));
  const itemOf = Int32Array.from(users.flatMap(({ train }) => train));
  const order = Uint32Array.from(itemOf, (_, i) => i);
  for (let epoch = 0; epoch < epochs; epoch++) {
    shuffle(order, integer);
    const rate = learningRate * (1 - epoch / epochs);
    // No arrays are made in here: this runs 14 million times on the Games data.
    for (const index of order) {
      const user = userOf[index]!;
      const positive = itemOf[index]!;
      let negative = integer(itemCount);
      for (let tries = 0; owned[user]!.has(negative) && tries < 20; tries++) negative = integer(itemCount);
      const u = user * dimension;
      const p = positive * dimension;
      const n = negative * dimension;
      let difference = bias[positive]! - bias[negative]!;
      for (let d = 0; d < dimension; d++) difference += P[u + d]! * (Q[p + d]! - Q[n + d]!);
      const gradient = 1 / (1 + Math.exp(difference));
      bias[positive]! += rate * (gradient - regularisation * bias[positive]!);
      bias[negative]! -= rate * (gradient + regularisation * bias[negative]!);
      for (let d = 0; d < dimension; d++) {
        const pu = P[u + d]!;
        const qp = Q[p + d]!;
        const qn = Q[n + d]!;
        P[u + d] = pu + rate * (gradient * (qp - qn) - regularisation * pu);
        Q[p + d] = qp + rate * (gradient * pu - regularisation * qp);
        Q[n + d] = qn - rate * (gradient * pu + regularisation * qn);
      }
    }
    onEpoch?.(epoch + 1, epochs);
  }
  return users.map((_, user) => P.slice(user * dimension, (user + 1) * dimension));
}

/** In place (Fisher-Yates). */
function shuffle(order: Uint32Array, integer: (below: number) => number): void {
  for (let i = order.length - 1; i > 0; i--) {
    const j = integer(i + 1);
    const swapped = order[i]!;
    order[i] = order[j]!;
    order[j] = swapped;
  }
}
