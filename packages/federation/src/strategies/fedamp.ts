// FedAMP (Huang et al., AAAI 2021, arXiv 2007.03797): attentive message passing. Every client takes the more from
// another the closer their parameters are, so that those alike come closer still.
import type { Strategy } from './strategy.ts';

export interface FedampOptions {
  /** Step size of the message passing: how much others count. */
  readonly alpha: number;
  /** Squared distance over which attention falls to 1/e of itself. */
  readonly sigma: number;
}

/**
 * xi_ij = alpha A'(|w_i - w_j|^2) for j != i, xi_ii = 1 - sum_{j != i} xi_ij, of A(x) = 1 - exp(-x / sigma), so
 * A'(x) = exp(-x / sigma) / sigma. Where the others' weights exceed 1 in sum, they are divided by it and xi_ii = 0: the
 * paper asks for an alpha so small that this does not happen.
 *
 * The term lambda/(2 alpha) |w - u_i|^2 of a client's objective, u_i its mixture, is the clients' affair: without it this
 * is the mixing alone. HeurFedAMP's attention over cosines is FELLRec's form `attention`.
 * @throws if `alpha` or `sigma` is not above 0
 */
export function fedamp({ alpha, sigma }: FedampOptions): Strategy {
  for (const [name, value] of Object.entries({ alpha, sigma }))
    if (!(value > 0 && Number.isFinite(value)))
      throw new Error(`fedamp: ${name} is ${value}; it must be a number above 0`);
  return {
    name: 'fedamp',
    compares: ['squaredDistances'],
    mix(_, { squaredDistances }) {
      if (!squaredDistances) throw new Error('fedamp: the distances between the clients are missing');
      const attention = (squared: number) => (alpha * Math.exp(-squared / sigma)) / sigma;
      return {
        matrix: squaredDistances.map((row, i) => {
          const weights = row.map((squared, j) => (i === j ? 0 : attention(squared)));
          const others = weights.reduce((sum, weight) => sum + weight, 0);
          if (others > 1) return weights.map((weight) => weight / others);
          return weights.map((weight, j) => (i === j ? 1 - others : weight));
        }),
      };
    },
  };
}
