// RecFormer cut between layers.
import { input, times } from '@fellrec/graph';
import { loraGraph, ofLayers } from '../lora.ts';
import { type AttentionForm, layoutFeeds, lengthStepOf } from '../recformer/batch.ts';
import type { RecformerCheckpoint } from '../recformer/checkpoint.ts';
import { adaptedEncoderProjections } from '../recformer/config.ts';
import { encoderDropout } from '../recformer/dropout.ts';
import { recformer } from '../recformer/layers.ts';
import { sequenceGraph } from '../recformer/programs.ts';
import { type CutModel, isIn, type LayerOptions, runRange } from './cut-model.ts';

export function recformerCut(
  checkpoint: RecformerCheckpoint,
  formOf: (lengths: readonly number[]) => AttentionForm,
): CutModel {
  const { config } = checkpoint;
  return {
    layerCount: config.layerCount,
    hiddenSize: config.hiddenSize,
    adapted: (lora) => adaptedEncoderProjections(config, lora),
    problem({ lengths, time, prefix }) {
      const longest = Math.max(...lengths);
      const step = lengthStepOf(config, formOf(lengths));
      if (prefix > 0) return 'an encoder has no prefix';
      if (longest > config.positionCount - 2)
        return `a sequence has ${longest} tokens, the position table is for ${config.positionCount - 2}`;
      return time % step === 0 ? undefined : `sequences are padded to ${time} tokens, no multiple of ${step}`;
    },
    form: ({ lengths }) => formOf(lengths),
    layers(range, form, { trained, training }: LayerOptions) {
      const { lora: loraConfig, tensors } = trained ?? { tensors: new Map() };
      const lora =
        loraConfig &&
        loraGraph(ofLayers(adaptedEncoderProjections(config, loraConfig), isIn(range)), loraConfig, {
          training,
        });
      const own = new Map(
        loraConfig
          ? []
          : [...ofLayers(tensors, isIn(range))].map(
              ([name, { dims }]) => [name, input(name, 'float32', dims)] as const,
            ),
      );
      // Blocks of the widest window of these layers.
      const windows = config.attentionWindows.map((window, layer) => (isIn(range)(layer) ? window : 0));
      const { context } = sequenceGraph(
        { ...config, attentionWindows: windows },
        form as AttentionForm,
        lora,
      );
      const hidden = input('hidden', 'float32', [times(context.batch, context.time), config.hiddenSize]);
      const states = runRange(recformer(checkpoint, own), range, hidden, context);
      return {
        hidden,
        states,
        parameters: lora?.parameters ?? own,
        masks: lora?.masks ?? new Map(),
        read: {},
      };
    },
    feeds: ({ lengths, time }) => layoutFeeds(config, lengths, time, formOf(lengths)),
    dropout: (masks, rate, { lengths, time }, { seed, sequences }) =>
      encoderDropout(
        masks,
        rate,
        lengths.map((tokens, i) => ({ stream: sequences[i]!, tokens })),
        time,
        seed,
      ),
  };
}
