// RecFormer (arXiv 2305.13731): histories and items are texts, one encoder makes vectors of both, cosines rank the
// catalogue.
import { type NamedTensors, type Runtime, random } from '@fellrec/graph';
import {
  adaptedEncoderProjections,
  assertKnown,
  type EncoderModel,
  type EncoderParameters,
  freshAdapter,
  type LabelledSequence,
  type LoraConfig,
  readParameters,
  type Tokenizer,
  unitRows,
} from '@fellrec/models';
import type { Catalogue } from '../catalogue.ts';
import { listing } from '../lists.ts';
import type { Query, Recommender, Scored, ScoreOptions, TrainOptions, TrainResult } from '../recommender.ts';
import type { Sample } from '../samples.ts';
import { fit } from '../training.ts';
import { cosines } from './cosines.ts';
import { encodeSorted, itemTable } from './items.ts';
import { itemText } from './text.ts';

export interface RecformerOptions {
  readonly model: EncoderModel;
  /** Compares vectors. */
  readonly runtime: Runtime;
  readonly tokenizer: Tokenizer;
  readonly catalogue: Catalogue;
  /** Of an item, in their order; `title` is the title. */
  readonly attributes: readonly string[];
  /** What is trained: an adapter, or all tensors of the encoder. */
  readonly tune: LoraConfig | 'full';
  /** Divides the cosines. */
  readonly temperature: number;
  /** Items that a target is compared with: all, or so many others drawn for each sample. */
  readonly negatives: 'all' | number;
  /** Of item vectors. None: they are computed whenever they are asked for, as more than the parameters decides them. */
  readonly cacheDir: string | undefined;
  /** Of the computation of item vectors. */
  readonly onProgress?: (done: number, total: number) => void;
}

export function recformer(options: RecformerOptions): Recommender {
  const { model, catalogue, tune, temperature, cacheDir, onProgress } = options;
  const others = catalogue.items.length - 1;
  const negatives =
    options.negatives === 'all' || options.negatives >= others ? undefined : options.negatives;
  const { checkpoint } = model;
  const compared = cosines(options.runtime);
  const text = itemText({ ...options, config: checkpoint.config });
  const parameters = (tensors: NamedTensors): EncoderParameters =>
    tune === 'full' ? { tensors } : { lora: tune, tensors };
  const sequences = catalogue.items.map((_, item) => text.item(item).sequence);
  // Refuses another model's tokenizer before anything is computed.
  for (const sequence of sequences) assertKnown(checkpoint.config, sequence);
  const table = itemTable({
    model,
    sequences,
    parameters,
    cacheDir,
    onProgress,
  });

  /** An item and `count` others, drawn. */
  function candidates(
    label: number,
    count: number,
    stream: readonly [number, ...(string | number)[]],
  ): readonly number[] {
    const { integer } = random(...stream);
    const drawn = new Set([label]);
    while (drawn.size <= count) drawn.add(integer(catalogue.items.length));
    return [...drawn];
  }

  /** Each epoch draws one target from each sample's items, and learns it from the items before it, which may be none. */
  function examples(
    samples: readonly Sample[],
    stream: TrainOptions['stream'],
    epoch: number,
  ): LabelledSequence[] {
    const { integer } = random(...stream, 'targets', epoch);
    return samples.map(({ seen, targets }, i) => {
      const items = [...seen, targets[0]!];
      const place = integer(items.length);
      const label = items[place]!;
      const { sequence } = text.history(items.slice(0, place));
      return negatives === undefined
        ? { sequence, label }
        : { sequence, label, candidates: candidates(label, negatives, [...stream, 'negatives', epoch, i]) };
    });
  }

  async function train(
    samples: readonly Sample[],
    start: NamedTensors,
    o: TrainOptions,
  ): Promise<TrainResult> {
    const items = await table.vectors(o.items ?? start);
    const contrast = { items, temperature, microBatch: o.microBatch };
    return fit(
      {
        name: 'recformer',
        count: samples.length,
        examples: (epoch) => examples(samples, o.stream, epoch),
        gradients: (batch, tensors, dropoutSeed) =>
          model.gradients(batch, parameters(tensors), { ...contrast, dropoutSeed }),
        updateElsewhere: model.updateElsewhere,
      },
      start,
      o,
    );
  }

  async function* score(
    queries: readonly Query[],
    tensors: NamedTensors,
    o: ScoreOptions,
  ): AsyncIterable<Scored> {
    const vectors = await table.vectors(o.items ?? tensors, { store: true });
    const fitted = queries.map(({ seen }) => text.history(seen));
    const sequences = fitted.map(({ sequence }) => sequence);
    const found = unitRows(await encodeSorted(model, sequences, parameters(tensors), o.onProgress));
    let index = 0;
    for await (const scores of compared.rows(found, vectors))
      yield { scores, dropped: fitted[index++]!.dropped };
  }

  return {
    initialParameters: async (seed) =>
      tune === 'full'
        ? readParameters(checkpoint)
        : freshAdapter(adaptedEncoderProjections(checkpoint.config, tune), tune, seed),
    train,
    truncated: (samples) => samples.filter(({ seen }) => text.history(seen).dropped > 0).length,
    async loss(samples, tensors, items = tensors) {
      const batch = samples.map(({ seen, targets }) => ({
        sequence: text.history(seen).sequence,
        label: targets[0]!,
      }));
      return model.loss(batch, parameters(tensors), { items: await table.vectors(items), temperature });
    },
    ...listing(score),
    async dispose() {
      await compared.release();
      await model.release();
    },
  };
}
