// Local training, the same for all recommenders: shuffled batches, AdamW, a linear schedule over the client's own steps.
import { adamW, float32, globalNorm, linearSchedule, type NamedTensors, random } from '@fellrec/graph';
import type { LanguageModel, StepOptions, StepResult } from '@fellrec/models';
import type { TrainOptions, TrainResult } from './recommender.ts';

export interface Fitting<Example> {
  /** Whose name errors begin with. */
  readonly name: string;
  /** Examples of an epoch. */
  readonly count: number;
  /** What is learned from in an epoch. */
  readonly examples: (epoch: number) => readonly Example[];
  readonly gradients: (
    batch: readonly Example[],
    parameters: NamedTensors,
    dropoutSeed: NonNullable<StepOptions['dropoutSeed']>,
  ) => Promise<StepResult>;
  /** The optimizer step of layers that are trained elsewhere; returns the sum of squares of their gradients. */
  readonly updateElsewhere?: LanguageModel['updateElsewhere'];
}

/** @throws on a loss that is no number, naming the step. */
export async function fit<Example>(
  { name, count, examples, gradients, updateElsewhere }: Fitting<Example>,
  start: NamedTensors,
  o: TrainOptions,
): Promise<TrainResult> {
  const optimizer = adamW({ weightDecay: o.weightDecay, clipNorm: o.clipNorm });
  const steps = o.epochs * Math.ceil(count / o.batchSize);
  let state = optimizer.init(start);
  let { parameters } = state;
  let step = 0;
  let weightedLoss = 0;
  const tokens = { real: 0, computed: 0, padding: 0 };
  for (let epoch = 0; epoch < o.epochs; epoch++)
    for (const batch of batches(examples(epoch), o.batchSize, [...o.stream, 'order', epoch])) {
      const found = await gradients(batch, parameters, [...o.stream, 'dropout', step]);
      if (!Number.isFinite(found.loss))
        throw new Error(
          `${name}: the loss is ${found.loss} at step ${step + 1} of ${steps}; ${step === 0 ? 'nothing was learned yet: are the weights numbers, and temperature and alpha sensible?' : 'lower the learning rate'}`,
        );
      const rate = o.learningRate * linearSchedule(step, steps, o.warmupSteps);
      const all = pulled(found.gradients, parameters, o.proximal, start);
      const elsewhere = await updateElsewhere?.(globalNorm(all) ** 2, rate);
      ({ parameters, state } = optimizer.update(all, state, rate, elsewhere));
      weightedLoss += found.loss * batch.length;
      tokens.real += found.tokens.real;
      tokens.computed += found.tokens.computed;
      tokens.padding += found.tokens.padding;
      step++;
      o.onStep?.({ step, steps, loss: found.loss });
    }
  return { parameters, loss: weightedLoss / (o.epochs * count), tokens };
}

/** With the gradient of the proximal term: g + weight (x - centre). */
function pulled(
  gradients: NamedTensors,
  parameters: NamedTensors,
  proximal: TrainOptions['proximal'],
  start: NamedTensors,
): NamedTensors {
  if (!proximal) return gradients;
  const { weight, centre = start } = proximal;
  return new Map(
    [...gradients].map(([name, { dims, data }]) => {
      const [x, c] = [parameters.get(name)!.data, centre.get(name)!.data];
      return [
        name,
        float32(
          data.map((g, i) => g + weight * (x[i]! - c[i]!)),
          dims,
        ),
      ];
    }),
  );
}

/** Shuffled batches. */
function batches<T>(
  examples: readonly T[],
  size: number,
  stream: readonly [number, ...(string | number)[]],
): T[][] {
  const order = random(...stream).shuffle(examples);
  return Array.from({ length: Math.ceil(order.length / size) }, (_, i) =>
    order.slice(i * size, (i + 1) * size),
  );
}
