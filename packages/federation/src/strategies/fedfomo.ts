// FedFomo (Zhang et al., ICLR 2021, arXiv 2012.08565): every client tries all others' parameters on its own validation
// samples, and takes from each as much as it helps for the way that it is off.
import { oneHot } from '../mixing.ts';
import type { Strategy } from './strategy.ts';

/**
 * w_ij = max(0, (L_i(start_i) - L_i(theta_j)) / |theta_j - start_i|), its own j = i included, divided by the sum over j;
 * L_i is the loss on i's validation samples. Where no weight is positive, a client keeps what it trained; in the paper it
 * goes back to what it had before the round. So does here, with its own, one that has no validation samples or is late.
 *
 * Every client is sent the parameters of all others as they are (`showsOthers`), and the losses that it returns say how
 * well each fits its data: over a wire this is what a federation is there to avoid. The paper spares part of it by
 * sending each client the models of a few others only.
 */
export function fedfomo(): Strategy {
  return {
    name: 'fedfomo',
    compares: ['squaredMoves'],
    showsOthers: true,
    candidates: (reports) =>
      reports.map((_, i) => [
        ...ownFirst(i, reports.length).map((j) => ({
          name: reports[j]!.client,
          row: oneHot(j, reports.length),
        })),
        { name: 'start', row: 'start' },
      ]),
    mix(reports, { squaredMoves, judged }) {
      if (!squaredMoves || !judged)
        throw new Error("fedfomo: the clients' losses, or the distances from their starts, are missing");
      return {
        matrix: judged.map((losses, i) => {
          const own = oneHot(i, reports.length);
          if (!losses) return own;
          const start = losses.at(-1)!;
          const weights = own.map(() => 0);
          for (const [place, j] of ownFirst(i, reports.length).entries()) {
            const distance = Math.sqrt(squaredMoves[i]![j]!);
            // What did not move has the loss of the start.
            if (distance > 0) weights[j] = Math.max(0, (start - losses[place]!) / distance);
          }
          const total = weights.reduce((sum, weight) => sum + weight, 0);
          return total > 0 ? weights.map((weight) => weight / total) : own;
        }),
      };
    },
  };
}

/** The own place and then the others: the first candidate is what a client gets that judges none. */
function ownFirst(own: number, count: number): number[] {
  return [own, ...Array.from({ length: count }, (_, j) => j).filter((j) => j !== own)];
}
