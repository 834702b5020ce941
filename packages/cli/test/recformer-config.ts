// An encoder that trains in a second.
import type { RecformerConfig } from '@fellrec/models';

export const tinyEncoder: RecformerConfig = {
  vocabularySize: 512,
  hiddenSize: 16,
  intermediateSize: 32,
  layerCount: 2,
  headCount: 2,
  headDim: 8,
  positionCount: 130,
  tokenTypeCount: 4,
  itemPositionCount: 11,
  attentionWindows: [16, 16],
  normEpsilon: 1e-5,
  pooling: 'cls',
  startId: 1,
  padId: 0,
  limits: { maxAttributes: 3, maxAttributeLength: 16, maxItems: 10, maxTokens: 128 },
};
