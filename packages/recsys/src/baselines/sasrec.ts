// SASRec (Kang & McAuley, ICDM 2018, arXiv 1808.09781), trained as RecBole does with `loss_type: CE`: every item of every
// user's training part is predicted among all items of the catalogue.
import { adamW, type NamedTensors, type Runtime, random } from '@fellrec/graph';
import type { User } from '../dataset.ts';
import { meanMetrics } from '../metrics.ts';
import { validationSamples } from '../samples.ts';
import { assertItems, assertLearnable, type Baseline, evaluateBaseline } from './baseline.ts';
import { initialParameters, type SasrecModel, type SasrecShape, sasrecModel } from './sasrec-model.ts';
import { batches, packed, trainingWindows } from './sasrec-windows.ts';

/** Defaults are RecBole's, where it has the option. */
export interface SasrecOptions {
  /** Width of the hidden states (default 64). */
  readonly hidden?: number;
  /** Default 2. */
  readonly layers?: number;
  /** Default 2. */
  readonly heads?: number;
  /** Share of embeddings, attention weights and sums' additions that a training step leaves out (default 0.5). */
  readonly dropout?: number;
  /** The last items of a history, which are all that is read (default 50). */
  readonly maxLength?: number;
  /** The most passes over the training parts (default 200). */
  readonly epochs?: number;
  /** Training ends after so many epochs without a better NDCG@10 of the validation items (default 10). */
  readonly patience?: number;
  /** Of AdamW, without weight decay (default 0.001). */
  readonly learningRate?: number;
  /** Targets of a step (default 2048). */
  readonly batch?: number;
  /** Of initial weights, order, dropout and ties. */
  readonly seed: number;
}

export interface SasrecProgress {
  /** From 1. */
  readonly epoch: number;
  readonly epochs: number;
  /** Mean training loss of the epoch's steps, with dropout. */
  readonly loss: number;
  /** Mean NDCG@10 of the validation items, under full ranking without the history. */
  readonly ndcg: number;
}

/**
 * Trains until validation gets no better, and keeps the weights of the best epoch.
 * @throws on options out of range, on users without training or validation items, and on a loss that is no number.
 */
export async function fitSasrec(
  users: readonly User[],
  itemCount: number,
  runtime: Runtime,
  options: SasrecOptions,
  onProgress?: (progress: SasrecProgress) => void,
): Promise<Baseline> {
  const o = completed(options);
  assertLearnable('sasrec', users, itemCount);
  const windows = users.flatMap(({ train }) => trainingWindows(train, o.maxLength));
  if (windows.length === 0)
    throw new Error(
      `sasrec: none of ${users.length} users has two training items, and an item is learned from those before it; import the data with a smaller share for validation and test`,
    );
  const validation = users.flatMap(validationSamples);
  if (validation.length === 0)
    throw new Error(
      `sasrec: none of ${users.length} users has training and validation items, by which the best epoch is chosen; import the data with a split that has them`,
    );
  const shape = { itemCount, ...o };
  const model = await sasrecModel(shape, o.dropout, runtime);
  try {
    const optimizer = adamW();
    let state = optimizer.init(initialParameters(shape, o.seed));
    let best = { epoch: 0, ndcg: Number.NEGATIVE_INFINITY, parameters: state.parameters };
    for (let epoch = 1; epoch <= o.epochs && epoch - best.epoch <= o.patience; epoch++) {
      const rows = packed(random(o.seed, 'sasrec', 'order', epoch).shuffle(windows), o.maxLength);
      const steps = batches(rows, o.batch);
      let loss = 0;
      for (const [step, batch] of steps.entries()) {
        const masks = model.masks(batch.length, [o.seed, 'sasrec', 'dropout', epoch, step]);
        const found = await model.gradients(batch, state.parameters, masks);
        if (!Number.isFinite(found.loss))
          throw new Error(
            `sasrec: the loss is ${found.loss} at step ${step + 1} of epoch ${epoch}; lower the learning rate of ${o.learningRate}`,
          );
        ({ state } = optimizer.update(found.gradients, state, o.learningRate));
        loss += found.loss / steps.length;
      }
      const candidate = fitted(model, shape, state.parameters);
      const { metrics } = await evaluateBaseline(candidate, validation, { seed: o.seed });
      const ndcg = meanMetrics(metrics)['ndcg@10']!;
      if (ndcg > best.ndcg) best = { epoch, ndcg, parameters: copied(state.parameters) };
      onProgress?.({ epoch, epochs: o.epochs, loss, ndcg });
    }
    return fitted(model, shape, best.parameters);
  } catch (error) {
    await model.dispose();
    throw error;
  }
}

/** Scores with fixed weights. */
function fitted(
  model: SasrecModel,
  { itemCount, maxLength }: SasrecShape,
  parameters: NamedTensors,
): Baseline {
  return {
    async score(queries) {
      const windows = queries.map(({ seen }, query) => {
        if (seen.length === 0)
          throw new Error(
            `sasrec: query ${query} has no items, and there is nothing to predict from; leave it out`,
          );
        const items = seen.slice(-maxLength);
        assertItems(`sasrec: query ${query}`, items, itemCount);
        return { items, from: items.length - 1 };
      });
      return model.score(packed(windows, maxLength), parameters);
    },
    dispose: () => model.dispose(),
  };
}

function copied(tensors: NamedTensors): NamedTensors {
  return new Map([...tensors].map(([name, tensor]) => [name, { ...tensor, data: tensor.data.slice() }]));
}

/** With the defaults. @throws naming all options that are out of range. */
function completed(options: SasrecOptions): Required<SasrecOptions> {
  const o = {
    hidden: 64,
    layers: 2,
    heads: 2,
    dropout: 0.5,
    maxLength: 50,
    epochs: 200,
    patience: 10,
    learningRate: 1e-3,
    batch: 2048,
    ...options,
  };
  const problems = (['hidden', 'layers', 'heads', 'maxLength', 'epochs', 'patience', 'batch'] as const)
    .filter((name) => !(Number.isInteger(o[name]) && o[name] >= 1))
    .map((name) => `${name} is ${o[name]}, not a whole number from 1`);
  if (o.hidden % o.heads !== 0)
    problems.push(`hidden is ${o.hidden}, not a multiple of heads, which is ${o.heads}`);
  if (!(o.dropout >= 0 && o.dropout < 1)) problems.push(`dropout is ${o.dropout}, not from 0 to below 1`);
  if (!(o.learningRate > 0)) problems.push(`learningRate is ${o.learningRate}, not above 0`);
  if (problems.length > 0) throw new Error(`sasrec: ${problems.join('; ')}; change these options`);
  return o;
}
