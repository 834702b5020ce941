// Whether a user was among those that a client trained on, by what the server saw of it: the adapter that it was sent and
// the one that it returned, round after round. Two scores: how much the loss of the user's sample fell from the one to the
// other (a loss attack, arXiv 1709.01604, calibrated by the adapter before, arXiv 2111.08440), and the cosine of the update
// with the negative gradient of that loss (arXiv 1812.00910 and its successors).
//
// The attacker uses the base model, the adapters and a candidate's sample: its history and target. It applies to every
// recommender that has a loss; where a client's middle layers are trained by the server, it has their updates as well.
import { adamW, type NamedTensors, random } from '@fellrec/graph';
import type { LanguageModel, LoraConfig, Sequence } from '@fellrec/models';
import { quantile } from '@fellrec/recsys';
import type { Interval } from '../result.ts';
import { cosineOfTensors, difference } from './vectors.ts';

/** What the server sent to a client, and what came back. */
export interface SeenRound {
  readonly sent: NamedTensors;
  readonly returned: NamedTensors;
}

/** A recommender's mean loss of samples; with the gradient of it. */
export interface Learner<Sample> {
  loss(samples: readonly Sample[], parameters: NamedTensors): Promise<number>;
  gradients(
    samples: readonly Sample[],
    parameters: NamedTensors,
  ): Promise<{ readonly loss: number; readonly gradients: NamedTensors }>;
}

/** Of an adapter without dropout, whatever the client trains with. */
export function languageLearner(model: LanguageModel, lora: LoraConfig): Learner<Sequence> {
  const config = { ...lora, dropout: 0 };
  return {
    loss: (samples, tensors) => model.loss(samples, { config, tensors }),
    gradients: (samples, tensors) => model.gradients(samples, { config, tensors }, { microBatch: 4 }),
  };
}

/** Larger ones speak for membership. */
export interface MembershipScores {
  readonly lossDrop: number;
  readonly cosine: number;
}

/** Of each candidate, given the samples of each; means over rounds. */
export async function membershipScores<Sample>(
  learner: Learner<Sample>,
  candidates: readonly (readonly Sample[])[],
  rounds: readonly SeenRound[],
): Promise<MembershipScores[]> {
  if (rounds.length === 0) throw new Error('audit: no round of the client was seen');
  const sums = candidates.map(() => ({ lossDrop: 0, cosine: 0 }));
  for (const { sent, returned } of rounds) {
    const descent = difference(sent, returned);
    for (const [i, samples] of candidates.entries()) {
      const { loss: before, gradients } = await learner.gradients(samples, sent);
      const after = await learner.loss(samples, returned);
      sums[i]!.lossDrop += (before - after) / rounds.length;
      sums[i]!.cosine += cosineOfTensors(descent, gradients) / rounds.length;
    }
  }
  return sums;
}

/** P(score of a member > that of another user) + P(equal) / 2: the area under the ROC curve. */
export function areaUnderCurve(members: readonly number[], others: readonly number[]): number {
  if (members.length === 0 || others.length === 0)
    throw new Error(`audit: an AUC of ${members.length} members and ${others.length} other users`);
  let wins = 0;
  for (const member of members)
    for (const other of others) wins += member > other ? 1 : member === other ? 0.5 : 0;
  return wins / (members.length * others.length);
}

/** With its 95 % interval by the percentile bootstrap over members and over others. `mean` is the AUC itself. */
export function bootstrapAuc(
  members: readonly number[],
  others: readonly number[],
  seed: number,
  resamples = 1000,
): Interval {
  const { integer } = random(seed, 'bootstrap', 'auc');
  const drawn = (scores: readonly number[]) => scores.map(() => scores[integer(scores.length)]!);
  const found = Array.from({ length: resamples }, () => areaUnderCurve(drawn(members), drawn(others)));
  found.sort((a, b) => a - b);
  return {
    mean: areaUnderCurve(members, others),
    low: quantile(found, 0.025),
    high: quantile(found, 0.975),
  };
}

export interface SimulatedClient {
  readonly rounds: number;
  readonly epochs: number;
  readonly batchSize: number;
  readonly learningRate: number;
  readonly seed: number;
}

/** What the server would see of a client that trains alone: every round begins at what the one before returned. */
export async function simulatedRounds<Sample>(
  learner: Learner<Sample>,
  samples: readonly Sample[],
  start: NamedTensors,
  { rounds, epochs, batchSize, learningRate, seed }: SimulatedClient,
): Promise<SeenRound[]> {
  const optimizer = adamW({ clipNorm: 1 });
  const seen: SeenRound[] = [];
  let sent = start;
  for (let round = 0; round < rounds; round++) {
    let state = optimizer.init(sent);
    for (let epoch = 0; epoch < epochs; epoch++) {
      const order = random(seed, 'membership', round, epoch).shuffle(samples);
      for (let from = 0; from < order.length; from += batchSize) {
        const batch = order.slice(from, from + batchSize);
        const { gradients } = await learner.gradients(batch, state.parameters);
        ({ state } = optimizer.update(gradients, state, learningRate));
      }
    }
    seen.push({ sent, returned: state.parameters });
    sent = state.parameters;
  }
  return seen;
}
