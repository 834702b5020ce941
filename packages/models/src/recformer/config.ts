// `config.json` of a RecFormer, or of the BERT-family encoder that one starts from, checked and brought to our names.
import { z } from 'zod';
import { type AdaptedProjections, type EncoderProjection, layerOf, type Targets } from '../lora.ts';

export interface RecformerConfig {
  readonly vocabularySize: number;
  /** d. */
  readonly hiddenSize: number;
  /** Inner size of the feed-forward part. */
  readonly intermediateSize: number;
  readonly layerCount: number;
  readonly headCount: number;
  readonly headDim: number;
  /** Rows of the position table; the m-th token of a sequence, from 1, reads row m + 1. */
  readonly positionCount: number;
  readonly tokenTypeCount: number;
  /** Rows of the item position table: 0 is the first token's; the last one is padding's, and the oldest item's. */
  readonly itemPositionCount: number;
  /** Tokens to both sides that a token attends to, in all, by layer. */
  readonly attentionWindows: readonly number[];
  readonly normEpsilon: number;
  /** What a sequence's vector is: the first token's hidden state, or the mean over all tokens. */
  readonly pooling: 'cls' | 'avg';
  /** The first token, <s> or [CLS]. */
  readonly startId: number;
  readonly padId: number;
  readonly limits: TextLimits;
}

/** How much of the items goes into a sequence. */
export interface TextLimits {
  /** Attributes of an item. */
  readonly maxAttributes: number;
  /** Tokens of an attribute, name and value together. */
  readonly maxAttributeLength: number;
  readonly maxItems: number;
  /** Tokens of a sequence. */
  readonly maxTokens: number;
}

/** `model_type` of config.json. */
export const encoderTypes = ['longformer', 'roberta', 'bert'] as const;

/** What a configuration describes: a RecFormer, or an encoder without its tables. */
export type EncoderFamily = 'recformer' | (typeof encoderTypes)[number];

const size = z
  .number()
  .int()
  .positive()
  .max(2 ** 24);
const id = z.number().int().nonnegative();
const schema = z.looseObject({
  model_type: z.string(),
  vocab_size: size,
  hidden_size: size,
  intermediate_size: size,
  num_hidden_layers: size.max(10_000),
  num_attention_heads: size,
  max_position_embeddings: size.min(3),
  layer_norm_eps: z.number().positive().max(1).default(1e-12),
  hidden_act: z.string().default('gelu'),
  position_embedding_type: z.string().nullish(),
  attention_window: z.union([size, z.array(size).min(1)]).optional(),
  type_vocab_size: size.optional(),
  pad_token_id: id.nullish(),
  bos_token_id: id.nullish(),
  cls_token_id: id.nullish(),
  token_type_size: size.optional(),
  max_token_num: size.optional(),
  max_item_embeddings: size.min(3).optional(),
  max_attr_num: size.optional(),
  max_attr_length: size.optional(),
  pooler_type: z.enum(['cls', 'avg']).optional(),
});

/** Of the published RecFormer (arXiv 2305.13731). */
const defaults = { window: 64, maxTokens: 1024, itemPositions: 51, attributes: 3, attributeLength: 32 };

/** @throws naming every field that is missing, wrong, or asks for what we do not compute; `source` is for the message. */
export function parseEncoderConfig(
  json: unknown,
  source: string,
): { readonly config: RecformerConfig; readonly family: EncoderFamily; readonly typeRows: number } {
  const modelType = z.looseObject({ model_type: z.string() }).safeParse(json).data?.model_type;
  if (modelType && !encoderTypes.some((type) => type === modelType))
    throw new Error(
      `model: ${source}: unsupported architecture "${modelType}"; supported by recformer: longformer (RecFormer), roberta, bert`,
    );
  const parsed = schema.safeParse(json);
  if (!parsed.success)
    throw new Error(
      `model: ${source} is not the configuration of a BERT-family encoder:\n${z.prettifyError(parsed.error)}`,
    );
  const c = parsed.data;
  const family: EncoderFamily =
    c.token_type_size !== undefined ? 'recformer' : (c.model_type as (typeof encoderTypes)[number]);
  const headDim = c.hidden_size / c.num_attention_heads;
  const window = c.attention_window ?? defaults.window;
  const attentionWindows = Array.isArray(window)
    ? window
    : Array.from({ length: c.num_hidden_layers }, () => window);
  const problems = [
    c.hidden_act !== 'gelu' && `hidden_act "${c.hidden_act}" (supported: gelu)`,
    (c.position_embedding_type ?? 'absolute') !== 'absolute' &&
      `position_embedding_type "${c.position_embedding_type}" (supported: absolute)`,
    !Number.isInteger(headDim) && `${c.num_attention_heads} heads that do not divide ${c.hidden_size}`,
    attentionWindows.length !== c.num_hidden_layers &&
      `${attentionWindows.length} attention_windows for ${c.num_hidden_layers} layers`,
    attentionWindows.some((window) => window % 2 !== 0) &&
      `an odd attention_window (${attentionWindows.join(', ')}); one half of it lies on each side`,
    c.token_type_size !== undefined &&
      c.token_type_size !== 4 &&
      `a token_type_size of ${c.token_type_size} (supported: 4)`,
  ].filter((problem) => typeof problem === 'string');
  if (problems.length > 0) throw new Error(`model: ${source} has ${problems.join('; ')}`);
  // BERT counts positions from 0; its rows move up by the two that RoBERTa's padding takes.
  const positionCount = c.max_position_embeddings + (family === 'bert' ? 2 : 0);
  const itemPositionCount = c.max_item_embeddings ?? defaults.itemPositions;
  const config: RecformerConfig = {
    vocabularySize: c.vocab_size,
    hiddenSize: c.hidden_size,
    intermediateSize: c.intermediate_size,
    layerCount: c.num_hidden_layers,
    headCount: c.num_attention_heads,
    headDim,
    positionCount,
    tokenTypeCount: c.token_type_size ?? 4,
    itemPositionCount,
    attentionWindows,
    normEpsilon: c.layer_norm_eps,
    pooling: c.pooler_type ?? 'cls',
    startId: c.cls_token_id ?? c.bos_token_id ?? 0,
    padId: c.pad_token_id ?? (family === 'bert' ? 0 : 1),
    limits: {
      maxAttributes: c.max_attr_num ?? defaults.attributes,
      maxAttributeLength: c.max_attr_length ?? defaults.attributeLength,
      maxItems: itemPositionCount - 1,
      maxTokens: Math.min(c.max_token_num ?? defaults.maxTokens, positionCount - 2),
    },
  };
  return { config, family, typeRows: c.type_vocab_size ?? (family === 'bert' ? 2 : 1) };
}

/** The inverse of `parseEncoderConfig`: the config.json of a RecFormer. */
export function recformerConfigJson(config: RecformerConfig): Record<string, unknown> {
  const { limits } = config;
  return {
    architectures: ['RecformerForSeqRec'],
    model_type: 'longformer',
    vocab_size: config.vocabularySize,
    hidden_size: config.hiddenSize,
    intermediate_size: config.intermediateSize,
    num_hidden_layers: config.layerCount,
    num_attention_heads: config.headCount,
    max_position_embeddings: config.positionCount,
    layer_norm_eps: config.normEpsilon,
    hidden_act: 'gelu',
    attention_window: config.attentionWindows,
    type_vocab_size: 1,
    pad_token_id: config.padId,
    bos_token_id: config.startId,
    token_type_size: config.tokenTypeCount,
    max_token_num: limits.maxTokens,
    max_item_embeddings: config.itemPositionCount,
    max_attr_num: limits.maxAttributes,
    max_attr_length: limits.maxAttributeLength,
    pooler_type: config.pooling,
  };
}

/** The tensors of a RecFormer by Hugging Face's names, without prefix. */
export function recformerTensors(config: RecformerConfig): Map<string, readonly number[]> {
  const { hiddenSize: d, intermediateSize: f, layerCount } = config;
  const norm = (name: string) =>
    [
      [`${name}.weight`, [d]],
      [`${name}.bias`, [d]],
    ] as const;
  return new Map<string, readonly number[]>([
    ['embeddings.word_embeddings.weight', [config.vocabularySize, d]],
    ['embeddings.position_embeddings.weight', [config.positionCount, d]],
    ['embeddings.token_type_embeddings.weight', [config.tokenTypeCount, d]],
    ['embeddings.item_position_embeddings.weight', [config.itemPositionCount, d]],
    ...norm('embeddings.LayerNorm'),
    ...Array.from({ length: layerCount }).flatMap((_, index) => {
      const path = `encoder.layer.${index}`;
      const projection = (name: string, out: number, in_: number) =>
        [
          [`${path}.${name}.weight`, [out, in_]],
          [`${path}.${name}.bias`, [out]],
        ] as const;
      return [
        ...attentionProjections.flatMap((name) => projection(`attention.self.${name}`, d, d)),
        ...projection('attention.output.dense', d, d),
        ...norm(`${path}.attention.output.LayerNorm`),
        ...projection('intermediate.dense', f, d),
        ...projection('output.dense', d, f),
        ...norm(`${path}.output.LayerNorm`),
      ];
    }),
  ]);
}

export const localProjections = ['query', 'key', 'value'] as const;
const attentionProjections = [
  ...localProjections,
  ...localProjections.map((name) => `${name}_global` as const),
] satisfies EncoderProjection[];

/** `encoder.layer.0.attention.self.query` for every adapted projection, in the model's order. */
export function adaptedEncoderProjections(
  config: RecformerConfig,
  { targetModules, layers }: Targets,
): AdaptedProjections {
  const targets: readonly string[] = targetModules;
  return new Map(
    [...recformerTensors(config)].flatMap(([name, dims]) => {
      const path = name.replace(/\.weight$/, '');
      const [out, in_] = dims;
      const adapted =
        path !== name &&
        in_ !== undefined &&
        targets.includes(path.split('.').at(-1)!) &&
        (layers?.includes(layerOf(path)!) ?? true);
      return adapted ? [[path, [out!, in_]] as const] : [];
    }),
  );
}
