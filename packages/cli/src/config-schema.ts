// What a configuration may say: one schema with its defaults and descriptions; types come from it, unknown keys are errors.
import { bases, encoderProjections, projections } from '@fellrec/models';
import { videoGames } from '@fellrec/recsys';
import { z } from 'zod';

const count = z.number().int().positive();

const domain = z
  .strictObject({ items: z.string(), item: z.string(), used: z.string() })
  .describe('Words of the prompt: "movies", "movie", "watched"');

const attributes = z
  .array(z.string().min(1))
  .min(1)
  .describe('Attributes of an item in their order (default: title, brand and category, if there)');

const partition = z
  .discriminatedUnion('method', [
    z.strictObject({
      method: z.literal('kmeans'),
      clients: count.default(5),
      dimension: count.default(64),
      epochs: count.default(40),
    }),
    z.strictObject({ method: z.literal('random'), clients: count.default(5) }),
    z.strictObject({ method: z.literal('column'), column: z.string() }),
  ])
  .describe('Which user belongs to which client');

/** It becomes part of names of folders. */
export const label = z
  .string()
  .regex(
    /^[\p{L}\p{N}_][\p{L}\p{N}_-]{0,63}$/u,
    '1 to 64 letters, digits, "-" and "_", without "-" at the start: it names clients',
  );

const dataFolder = z.string().describe('Data folder, as written by "fellrec data import"');

const group = z
  .strictObject({
    name: label.describe('Its clients are called <name>-0 and so on, or <name> if there is one'),
    path: dataFolder,
    share: z
      .number()
      .positive()
      .max(1)
      .default(1)
      .describe('Of its users that there are at all, drawn at random'),
    domain: domain.optional().describe("Words of the prompt (default: the run's)"),
    attributes: attributes.optional(),
    partition: partition.optional().describe("Its users' clients (default: the run's partition)"),
  })
  .describe('Clients with a catalogue of their own');

/** Strategies that a client can choose among by its own validation samples. */
const choosable = ['fedavg', 'fellrec', 'groups', 'uniform', 'local', 'clustered', 'fedamp'] as const;

const rankingModes = ['grounded', 'constrained', 'rerank'] as const;
export const injectable = ['popularity', 'cooccurrence', 'sasrec', 'sentences'] as const;

export const configSchema = z
  .strictObject({
    name: z
      .string()
      .regex(/^[\w.-]+$/, 'letters, digits, ".", "-" and "_" only: it names the run\'s folder')
      .describe('Name of the run: its folder is runs/<name>'),
    seed: z.number().int().nonnegative().default(1).describe('Drives everything that is drawn at random'),
    runs: z.string().default('runs').describe('Folder of all runs'),
    cache: z
      .string()
      .default('.cache/fellrec')
      .describe('Folder of dequantised and quantised weights and of title vectors'),
    threads: count.optional().describe('Threads to compute with (default: all cores)'),
    recommender: z
      .enum(['bigrec', 'recformer'])
      .default('bigrec')
      .describe('bigrec: a language model generates titles; recformer: an encoder compares texts'),
    data: z
      .strictObject({
        path: dataFolder.optional(),
        trainSamples: count
          .optional()
          .describe('Training samples of all users of a group together, drawn at random (default: all)'),
        validationSamples: count
          .optional()
          .describe('Validation samples of all users of a group together (default: all)'),
        testUsers: count.optional().describe('Test users of a group, drawn at random (default: all)'),
      })
      .prefault({})
      .describe('Without groups, all users are one'),
    groups: z
      .array(group)
      .min(1)
      .max(100)
      .optional()
      .describe('Organisations with users and a catalogue each, in the place of data.path'),
    domain: domain.default(videoGames),
    model: z.strictObject({
      path: z
        .string()
        .describe(
          'bigrec: Hugging Face folder or GGUF file of a LLaMA-architecture model; recformer: folder of a RecFormer, Longformer, RoBERTa or BERT',
        ),
      base: z
        .enum(bases)
        .default('float32')
        .describe(
          'Frozen weights: as they are, or as 8-bit integers, which is faster and another model; int8 rounds activations to two 8-bit terms, int8-fast to one',
        ),
      maxTokens: count.default(512).describe('Longest sequence; older history is dropped'),
    }),
    partition: partition.prefault({ method: 'kmeans' }),
    lora: z
      .strictObject({
        rank: count.max(4096).default(8),
        alpha: z.number().positive().default(16),
        dropout: z.number().min(0).max(0.9).default(0.05),
        targetModules: z
          .array(z.enum([...projections, ...encoderProjections]))
          .min(1)
          .optional()
          .describe(
            'Projections (default: q_proj and v_proj; of recformer query, value, query_global and value_global)',
          ),
      })
      .prefault({}),
    training: z
      .strictObject({
        epochs: count.default(1).describe('Local epochs of a round'),
        targetsPerUser: count
          .default(1)
          .describe(
            "Of a user's last training items, at least so many are targets; the paper's is one for users with up to 11 items",
          ),
        batchSize: count.default(16).describe('Samples of one optimizer step'),
        microBatch: count
          .default(2)
          .describe('Samples computed at once; changes memory and speed, not the result'),
        learningRate: z.number().positive().default(1e-4),
        warmupSteps: z.number().int().nonnegative().default(0).describe('Of the first round only'),
        weightDecay: z.number().nonnegative().default(0),
        clipNorm: z.number().positive().default(1),
        lossOn: z
          .enum(['answer', 'all'])
          .default('answer')
          .describe('Learn the answer only, or prompt and answer'),
      })
      .prefault({}),
    recformer: z
      .strictObject({
        attributes: attributes.optional(),
        tune: z
          .enum(['lora', 'full'])
          .default('lora')
          .describe('What is trained: an adapter, or all tensors of the encoder'),
        pooling: z
          .enum(['cls', 'avg'])
          .optional()
          .describe("A sequence's vector: of its first token, or the mean (default: as the model says)"),
        temperature: z.number().positive().default(0.05).describe('Divides the cosines'),
        negatives: z
          .union([z.literal('all'), count])
          .default('all')
          .describe(
            'Items that a target is compared with in training: all, or so many drawn for each sample',
          ),
        itemTable: z
          .strictObject({
            every: count.default(1).describe('Rounds from one encoding of all items to the next'),
            stage1Rounds: count
              .optional()
              .describe('Rounds after which the item table is frozen (default: never)'),
          })
          .prefault({}),
      })
      .prefault({}),
    split: z
      .strictObject({
        k: z
          .union([z.number().int().nonnegative(), z.record(z.string(), z.number().int().nonnegative())])
          .optional()
          .describe(
            'First layers that clients keep besides the last one, by client name if they differ; the middle ones are elsewhere (default: clients keep all). Remote clients choose their own',
          ),
        adapters: z
          .enum(['client-layers', 'all-layers'])
          .default('client-layers')
          .describe('Whether the middle layers learn too: all-layers, on the side that has them'),
        recompute: z
          .boolean()
          .default(false)
          .describe(
            'Computes activations again in the backward pass instead of keeping them: slower, less memory',
          ),
      })
      .prefault({})
      .describe('Which layers a client keeps'),
    evaluation: z
      .strictObject({
        maskHistory: z
          .boolean()
          .default(true)
          .describe("Leaves a user's earlier items out of the ranking; RecFormer's reference does not"),
      })
      .prefault({}),
    ranking: z
      .strictObject({
        mode: z
          .enum(rankingModes)
          .default('grounded')
          .describe(
            "bigrec: the catalogue by its distance to a generated title (the paper's), beams that run along the catalogue's titles, or a shortlist by the likelihood of its titles",
          ),
        from: z
          .enum(['best', 'all'])
          .default('best')
          .describe('Of grounded: distance to the best beam, or to the nearest of all'),
        beams: count.max(64).default(20).describe('Of constrained'),
        shortlist: z
          .strictObject({
            of: z
              .enum(['cooccurrence', 'popularity', 'sentences', 'grounded'])
              .default('cooccurrence')
              .describe("Whose best items, by the client's own users"),
            size: count.max(1000).default(100),
          })
          .prefault({})
          .describe('Of rerank'),
        sentences: z
          .string()
          .optional()
          .describe(
            'Folder of a sentence encoder (BERT or RoBERTa), where titles of like meaning are asked for',
          ),
        perToken: z.boolean().default(false).describe('Of rerank: likelihoods by token, not of whole titles'),
        inject: z
          .enum(injectable)
          .optional()
          .describe("Combined with the ranking's scores, by the client's own users (default: nothing)"),
        gamma: z
          .union([z.literal('validation'), z.number().nonnegative()])
          .default('validation')
          .describe('How much that counts; validation: what is best on the validation samples'),
      })
      .prefault({})
      .describe('How items are ranked'),
    generation: z
      .strictObject({
        beams: count.max(64).default(4),
        maxNewTokens: count.default(48),
        batch: count.default(8).describe('Users generated for at once'),
      })
      .prefault({}),
    federation: z
      .strictObject({
        strategy: z
          .enum([
            'fellrec',
            'fedavg',
            'fedprox',
            'ditto',
            'fedamp',
            'fedfomo',
            'clustered',
            'groups',
            'chosen',
            'uniform',
            'local',
            'centralized',
          ])
          .default('fellrec'),
        rounds: count.default(3),
        patience: count.default(5).describe('Rounds without a better validation loss before it stops'),
        similarityOn: z
          .enum(['update', 'parameters', 'displacement', 'none'])
          .default('update')
          .describe(
            'What clients compare under fellrec: what a round changed, their parameters, or all that changed since the common start; none: all count as equally similar',
          ),
        similarity: z
          .strictObject({
            form: z
              .enum(['shifted', 'relative', 'attention'])
              .default('shifted')
              .describe(
                "Cosines as similarities: (1 + cos)/2, the paper's; as shares of the round's largest; or sharpened",
              ),
            sharpness: z.number().positive().default(25).describe('Of attention: exp(sharpness cos)'),
            smoothing: z
              .number()
              .min(0)
              .max(0.99)
              .default(0)
              .describe("How much of the cosines is the rounds' before"),
          })
          .prefault({})
          .describe('How cosines become similarities under fellrec'),
        neighbours: count
          .optional()
          .describe('Others that a client mixes in under fellrec, the most similar ones (default: all)'),
        weighting: z
          .enum(['clients', 'samples'])
          .default('clients')
          .describe(
            "How clients count under fellrec: all alike, the paper's, or also by their numbers of training samples, as under fedavg",
          ),
        mu: z
          .number()
          .nonnegative()
          .default(0.01)
          .describe('Of fedprox: mu/2 |x - start of the round|^2 is added to the loss of training'),
        lambda: z
          .number()
          .nonnegative()
          .default(0.1)
          .describe("Of ditto: lambda/2 |x - global model|^2 is added to the loss of a client's own model"),
        fedamp: z
          .strictObject({
            alpha: z.number().positive().default(2).describe('How much others count'),
            sigma: z
              .number()
              .positive()
              .default(5)
              .describe('Squared distance of adapters over which attention falls to 1/e'),
            lambda: z
              .number()
              .nonnegative()
              .default(0.01)
              .describe('lambda/(2 alpha) |x - start of the round|^2 is added to the loss of training'),
          })
          .prefault({}),
        clustered: z
          .strictObject({
            epsilon1: z
              .number()
              .min(0)
              .max(1)
              .default(0.5)
              .describe("Splits a cluster whose mean update is shorter than this share of its clients' own"),
            epsilon2: z
              .number()
              .nonnegative()
              .default(0)
              .describe('Leaves one whose largest update is no longer than this'),
            gammaMax: z.number().min(0).max(1).default(0).describe('How far its parts have to point apart'),
          })
          .prefault({}),
        candidates: z
          .array(z.enum(choosable))
          .min(1)
          .default(['fedavg', 'fellrec', 'local'])
          .describe(
            'Of chosen: each client takes, each round, the mixture with the lowest loss on its own validation samples',
          ),
        heating: z
          .union([
            z.literal(false),
            z.strictObject({
              alpha: z.number().positive().default(0.7),
              beta: z.number().positive().default(1),
              temperature: z.number().positive().default(1),
              exponent: z.enum(['t/beta', '(t+1)/beta', 't+1/beta']).default('t/beta'),
            }),
          ])
          .prefault({}),
      })
      .prefault({}),
  })
  .describe('FELLRec run');

/** A configuration before what depends on the recommender is filled in. */
export type Parsed = z.output<typeof configSchema>;

/** JSON Schema for editors. */
export function configJsonSchema(): object {
  return z.toJSONSchema(configSchema, { io: 'input' });
}
