// `config.json` of a LLaMA checkpoint, checked and brought to our names.
import { z } from 'zod';

export interface LlamaConfig {
  readonly vocabularySize: number;
  /** d. */
  readonly hiddenSize: number;
  /** Inner size of the feed-forward part. */
  readonly intermediateSize: number;
  readonly layerCount: number;
  readonly headCount: number;
  /** Heads of keys and values; several query heads share one. */
  readonly keyValueHeadCount: number;
  readonly headDim: number;
  /** Longest sequence, in tokens. */
  readonly contextLength: number;
  readonly normEpsilon: number;
  readonly ropeTheta: number;
  /** llama3 scaling, if any. */
  readonly ropeScaling?: {
    readonly factor: number;
    readonly lowFrequencyFactor: number;
    readonly highFrequencyFactor: number;
    readonly originalMaxPositions: number;
  };
  /** The head is the embedding. */
  readonly tied: boolean;
  readonly bosId?: number;
  readonly eosIds: readonly number[];
}

const size = z
  .number()
  .int()
  .positive()
  .max(2 ** 24);
const ropeSchema = z.looseObject({
  rope_type: z.string().optional(),
  type: z.string().optional(),
  rope_theta: z.number().positive().optional(),
  factor: z.number().positive().optional(),
  low_freq_factor: z.number().positive().optional(),
  high_freq_factor: z.number().positive().optional(),
  original_max_position_embeddings: size.optional(),
  partial_rotary_factor: z.number().optional(),
});
const schema = z.looseObject({
  model_type: z.string(),
  vocab_size: size,
  hidden_size: size,
  intermediate_size: size,
  num_hidden_layers: size.max(10_000),
  num_attention_heads: size,
  num_key_value_heads: size.nullish(),
  head_dim: size.nullish(),
  max_position_embeddings: size,
  rms_norm_eps: z.number().positive(),
  rope_theta: z.number().positive().nullish(),
  rope_scaling: ropeSchema.nullish(),
  rope_parameters: ropeSchema.nullish(),
  tie_word_embeddings: z.boolean().nullish(),
  bos_token_id: z.number().int().nullish(),
  eos_token_id: z.union([z.number().int(), z.array(z.number().int())]).nullish(),
  hidden_act: z.string().nullish(),
  attention_bias: z.boolean().nullish(),
  mlp_bias: z.boolean().nullish(),
});

/** @throws naming every field that is missing, wrong, or asks for what we do not compute; `source` is for the message. */
export function parseConfig(json: unknown, source: string): LlamaConfig {
  const modelType = z.looseObject({ model_type: z.string() }).safeParse(json).data?.model_type;
  if (modelType && modelType !== 'llama')
    throw new Error(`model: ${source}: unsupported architecture "${modelType}"; supported: llama`);
  const parsed = schema.safeParse(json);
  if (!parsed.success)
    throw new Error(`model: ${source} is not a LLaMA configuration:\n${z.prettifyError(parsed.error)}`);
  const c = parsed.data;
  const heads = c.num_attention_heads;
  const kvHeads = c.num_key_value_heads ?? heads;
  const rope = c.rope_parameters ?? c.rope_scaling ?? undefined;
  const ropeType = rope?.rope_type ?? rope?.type ?? 'default';
  const headDim = c.head_dim ?? c.hidden_size / heads;
  const [lowFrequencyFactor, highFrequencyFactor] = [rope?.low_freq_factor ?? 1, rope?.high_freq_factor ?? 4];
  const problems = [
    (c.hidden_act ?? 'silu') !== 'silu' && `hidden_act "${c.hidden_act}" (supported: silu)`,
    c.attention_bias && 'attention_bias',
    c.mlp_bias && 'mlp_bias',
    heads % kvHeads !== 0 && `${heads} heads that ${kvHeads} key-value heads do not divide`,
    (!Number.isInteger(headDim) || headDim % 2 !== 0) && `a head size of ${headDim} (supported: even)`,
    ropeType !== 'default' &&
      ropeType !== 'llama3' &&
      `RoPE scaling "${ropeType}" (supported: default, llama3)`,
    ropeType === 'llama3' && rope?.factor === undefined && 'llama3 RoPE scaling without a factor',
    ropeType === 'llama3' &&
      lowFrequencyFactor >= highFrequencyFactor &&
      `a low_freq_factor of ${lowFrequencyFactor} that is not below the high_freq_factor of ${highFrequencyFactor}`,
    (rope?.partial_rotary_factor ?? 1) !== 1 &&
      `a partial_rotary_factor of ${rope!.partial_rotary_factor} (supported: 1)`,
  ].filter((problem) => typeof problem === 'string');
  if (problems.length > 0) throw new Error(`model: ${source} has ${problems.join('; ')}`);
  return {
    vocabularySize: c.vocab_size,
    hiddenSize: c.hidden_size,
    intermediateSize: c.intermediate_size,
    layerCount: c.num_hidden_layers,
    headCount: heads,
    keyValueHeadCount: kvHeads,
    headDim,
    contextLength: c.max_position_embeddings,
    normEpsilon: c.rms_norm_eps,
    ropeTheta: rope?.rope_theta ?? c.rope_theta ?? 10_000,
    ...(ropeType === 'llama3' && {
      ropeScaling: {
        factor: rope!.factor!,
        lowFrequencyFactor,
        highFrequencyFactor,
        originalMaxPositions: rope!.original_max_position_embeddings ?? 8192,
      },
    }),
    tied: c.tie_word_embeddings ?? false,
    ...(c.bos_token_id != null && { bosId: c.bos_token_id }),
    eosIds: c.eos_token_id == null ? [] : [c.eos_token_id].flat(),
  };
}

/** The inverse of `parseConfig`: what Hugging Face's config.json says of a model. */
export function configJson(config: LlamaConfig): Record<string, unknown> {
  const { ropeScaling: scaling } = config;
  return {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    vocab_size: config.vocabularySize,
    hidden_size: config.hiddenSize,
    intermediate_size: config.intermediateSize,
    num_hidden_layers: config.layerCount,
    num_attention_heads: config.headCount,
    num_key_value_heads: config.keyValueHeadCount,
    head_dim: config.headDim,
    max_position_embeddings: config.contextLength,
    rms_norm_eps: config.normEpsilon,
    rope_theta: config.ropeTheta,
    ...(scaling && {
      rope_scaling: {
        rope_type: 'llama3',
        factor: scaling.factor,
        low_freq_factor: scaling.lowFrequencyFactor,
        high_freq_factor: scaling.highFrequencyFactor,
        original_max_position_embeddings: scaling.originalMaxPositions,
      },
    }),
    tie_word_embeddings: config.tied,
    ...(config.bosId !== undefined && { bos_token_id: config.bosId }),
    eos_token_id: config.eosIds.length > 1 ? config.eosIds : (config.eosIds[0] ?? null),
    hidden_act: 'silu',
  };
}
