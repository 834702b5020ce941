// What a server could reconstruct of users from hidden states, measured on a model and data of one's own.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  type AttackName,
  type AuditedModel,
  type AuditedSequence,
  type AuditResult,
  attackStates,
  auditedModel,
  type Claim,
  claimedPlaces,
  cutCosts,
  type Defence,
  type DefenceResult,
  defenceName,
  defendedMiddle,
  type GradientResult,
  gradientAttacks,
  itemSequences,
  type MetricName,
  type PromptOptions,
  promptSequences,
  type Release,
  recommendation,
  releaseOf,
  type SequenceMaker,
  type StudyOptions,
  typicalNorms,
} from '@fellrec/audit';
import { elementCount, type NamedTensors, nodeRuntime, type Runtime } from '@fellrec/graph';
import {
  assertWhole,
  holdsEncoder,
  type LanguageModel,
  languageModel,
  loadTokenizer,
  type RecformerCheckpoint,
  readAdapter,
  type Tokenizer,
  type Trained,
} from '@fellrec/models';
import {
  bootstrap,
  type Dataset,
  popularity,
  type Recommender,
  readDataset,
  type Sample,
  splitRecommender,
  subset,
  testSamples,
} from '@fellrec/recsys';
import { type AnyCheckpoint, type Backend, defaultAttributes, openBackend } from './backends.ts';
import { type Captured, type CaptureOptions, capturedSequences } from './captured.ts';
import { type Config, ConfigError, parseConfig } from './config.ts';
import { type Progress, silent } from './progress.ts';
import { openSentences } from './sentences.ts';
import { middleHere } from './split.ts';

export interface AuditOptions {
  readonly model: string;
  readonly data: string;
  /** What the client's layers have learned: a PEFT folder. */
  readonly adapter?: string | undefined;
  /** What `fellrec serve --record` wrote: its states are attacked instead, at the depth that they come from. */
  readonly capture?: CaptureOptions | undefined;
  /** Depths that are attacked (default: all). */
  readonly layers?: readonly number[] | undefined;
  readonly attacks: readonly AttackName[];
  readonly defences: readonly Defence[];
  /** Depths that defences are measured at (default: 1, a quarter and a half of the layers). */
  readonly defenceLayers?: readonly number[] | undefined;
  /** Users that are attacked, and users that quality is measured on. */
  readonly users: number;
  readonly qualityUsers: number;
  /** Users whose gradients and updates are attacked, of a language model; 0 for none. */
  readonly gradientUsers: number;
  /** Other users whose prompts the inverter is trained on. */
  readonly auxiliaryUsers: number;
  readonly epochs: number;
  /** Candidates that the search tries for a token. */
  readonly budget: number;
  /** Titles that the catalogue attack compares. */
  readonly titles: number;
  readonly threshold: number;
  readonly metric: MetricName;
  /** A sentence encoder, for the reconstruction similarity. */
  readonly sentences?: string | undefined;
  readonly maxTokens: number;
  readonly seed: number;
  readonly cache: string;
  readonly threads?: number | undefined;
}

/** Relative distance within which a state counts as reproduced in float32. */
const exact = 1e-3;
/** Users that the inverter's accuracy is measured on. */
const heldUsers = 30;
/** Users whose states are matched, and batches of each size that the span test is tried on. */
const matchedUsers = 4;
const spanGroups = 2;

/** @throws if the model has no such layer, or the data too few users. */
export async function audit(o: AuditOptions, progress: Progress = silent): Promise<AuditResult> {
  const started = performance.now();
  const runtime = nodeRuntime({ ...(o.threads && { threads: o.threads }), spinning: false });
  const dataset = await readDataset(o.data);
  const subject = await openSubject(o, dataset, runtime, progress);
  const { backend, model, maker, tokenizer, trained } = subject;
  const { layerCount, hiddenSize } = model.cut;
  const captured = o.capture && (await capturedSequences(o.capture, subject, dataset, o.users));
  const depths = captured
    ? [captured.k]
    : (o.layers ?? Array.from({ length: layerCount + 1 }, (_, depth) => depth));
  const cuts = o.defenceLayers ?? usualCuts(layerCount);
  assertDepths(depths, layerCount);
  assertDefences(o, cuts, layerCount);
  const users = chosenUsers(o, dataset, maker, captured);
  const guesses = new Map<number, readonly Claim[]>();
  const study: StudyOptions = {
    model,
    tokenizer,
    catalogue: dataset.catalogue,
    sequences: maker,
    ...users,
    popularity: popularity(dataset.users, dataset.catalogue.items.length),
    trained,
    known: trained,
    attacks: o.attacks,
    depths,
    epochs: o.epochs,
    // Its adapter changed from step to step: no state is reproduced exactly.
    search: captured
      ? { budget: o.budget, tolerance: Number.POSITIVE_INFINITY, take: 'nearest' }
      : { budget: o.budget, tolerance: exact, take: 'first' },
    release: captured?.release,
    titles: o.titles,
    seed: o.seed,
    similarity:
      o.sentences === undefined ? undefined : (await openSentences(o.sentences, o.cache, runtime)).vectors,
    onFinding: ({ attack, depth, claims }) => {
      if (attack === 'inverter') guesses.set(depth, claims);
    },
    report: progress.report,
  };
  try {
    const found = await attackStates(study);
    const gradients = await attackGradients(o, study, subject, users, guesses, progress);
    const defences = await measureDefences(o, study, subject, dataset, cuts, progress);
    const sizes = new Map(
      [...backend.checkpoint.tensors].map(([name, { dims }]) => [name, elementCount(dims)]),
    );
    const costs = cutCosts(sizes, layerCount, hiddenSize);
    const { metric, threshold } = o;
    return {
      model: {
        path: o.model,
        hash: backend.checkpoint.hash,
        recommender: subject.config.recommender,
        layerCount,
        hiddenSize,
        ...(o.adapter !== undefined && { adapter: o.adapter }),
        ...(o.capture && { capture: o.capture.folder }),
      },
      data: {
        name: dataset.name,
        items: dataset.catalogue.items.length,
        users: users.victims.length,
        historyTokens: users.victims.reduce((n, { items }) => n + tokenCount(items), 0),
      },
      seed: o.seed,
      ...found,
      gradients,
      defences,
      costs,
      recommendation: recommendation({
        attacks: found.attacks,
        costs,
        layerCount,
        metric,
        threshold,
        adapterKnown: study.known !== undefined,
        tied: model.cut.tied,
      }),
      seconds: (performance.now() - started) / 1000,
    };
  } finally {
    await model.layers.release();
    await subject.language?.release();
    await backend.dispose();
  }
}

const tokenCount = (items: AuditedSequence['items']) => items.reduce((n, { places }) => n + places.length, 0);

interface Subject {
  readonly config: Config;
  readonly backend: Backend;
  readonly model: AuditedModel;
  readonly maker: SequenceMaker;
  readonly tokenizer: Tokenizer;
  readonly trained: Trained | undefined;
  /** Of a language model. */
  readonly prompts?: PromptOptions;
  readonly language?: LanguageModel;
}

async function openSubject(
  o: AuditOptions,
  dataset: Dataset,
  runtime: Runtime,
  progress: Progress,
): Promise<Subject> {
  const encoder = await holdsEncoder(o.model);
  const adapter = o.adapter === undefined ? undefined : await readAdapter(o.adapter);
  const config = parseConfig(
    {
      name: 'audit',
      seed: o.seed,
      cache: o.cache,
      recommender: encoder ? 'recformer' : 'bigrec',
      data: { path: o.data },
      model: { path: o.model, maxTokens: o.maxTokens },
      generation: { beams: 4, maxNewTokens: 32, batch: 8 },
      ...(adapter && {
        lora: {
          rank: adapter.config.rank,
          alpha: adapter.config.alpha,
          targetModules: [...adapter.config.targetModules],
        },
      }),
    },
    'the options of audit',
  );
  const { catalogue } = dataset;
  const backend = await openBackend(config, {
    catalogues: [{ catalogue, domain: config.domain }],
    runtime,
    report: progress.report,
  });
  assertWhole(backend.checkpoint, 'an audit');
  const tokenizer = await loadTokenizer(backend.checkpoint.directory);
  const { checkpoint } = backend;
  const subject = {
    config,
    backend,
    model: auditedModel(backend.layers.model, runtime),
    tokenizer,
    trained: adapter && { lora: adapter.config, tensors: adapter.tensors },
  };
  if (isEncoder(checkpoint)) {
    const { startId, limits } = checkpoint.config;
    const maxTokens = Math.min(o.maxTokens, limits.maxTokens);
    return {
      ...subject,
      maker: itemSequences({
        catalogue,
        tokenizer,
        attributes: defaultAttributes(catalogue),
        config: { startId, limits: { ...limits, maxTokens } },
      }),
    };
  }
  const { contextLength, eosIds } = checkpoint.config;
  const maxTokens = Math.min(o.maxTokens, contextLength);
  const prompts = { catalogue, tokenizer, domain: config.domain, maxTokens, eosIds };
  return {
    ...subject,
    prompts,
    maker: promptSequences(prompts),
    language: languageModel(checkpoint, runtime),
  };
}

function isEncoder(checkpoint: AnyCheckpoint): checkpoint is RecformerCheckpoint {
  return 'family' in checkpoint;
}

function assertDepths(depths: readonly number[], layerCount: number): void {
  const wrong = depths.filter((depth) => depth > layerCount);
  if (wrong.length > 0)
    throw new ConfigError(
      `audit: --layers ${wrong.join(', ')}: the model has ${layerCount} layers, so depths 0 (embeddings) to ${layerCount} (after the last layer) are possible`,
    );
}

function usualCuts(layerCount: number): number[] {
  const cuts = [1, Math.round(layerCount / 4), Math.round(layerCount / 2)];
  return [...new Set(cuts)].filter((k) => k < layerCount);
}

function assertDefences(
  { defences, adapter }: AuditOptions,
  cuts: readonly number[],
  layerCount: number,
): void {
  const wrong = cuts.filter((k) => k >= layerCount);
  if (wrong.length > 0)
    throw new ConfigError(
      `audit: --defence-layers ${wrong.join(', ')}: clients of this model keep 0 to ${layerCount - 1} layers`,
    );
  if (defences.some(({ kind }) => kind === 'withheld') && adapter === undefined)
    throw new ConfigError('audit: the defence "withheld" needs an adapter; give --adapter');
}

/** With the attacked users' samples, and those of the users that the inverter learns from. */
type Users = Pick<StudyOptions, 'victims' | 'auxiliary' | 'held'> & {
  readonly samples: readonly Sample[];
  readonly others: readonly Sample[];
};

/** Attacked users, and others: nobody is in two groups. */
function chosenUsers(
  { users, auxiliaryUsers, seed, data }: AuditOptions,
  dataset: Dataset,
  maker: SequenceMaker,
  captured: Captured | undefined,
): Users {
  const free = dataset.users.filter(({ id }) => !captured?.users.has(id)).flatMap(testSamples);
  const attacked = captured ? 0 : users;
  const chosen = subset(free, attacked + heldUsers + auxiliaryUsers, seed, 'audit').flatMap((sample) => {
    const sequence = maker.history(sample);
    return sequence ? [{ sample, sequence }] : [];
  });
  if (chosen.length < attacked + 2)
    throw new Error(
      `audit: ${data} has ${chosen.length} users with a history and a test item that fit${captured ? ' besides those recorded' : ''}; --users ${users} needs more, for the inverter learns from others`,
    );
  const others = chosen.slice(attacked);
  const held = Math.min(heldUsers, Math.ceil(others.length / 4));
  return {
    samples: chosen.slice(0, attacked).map(({ sample }) => sample),
    victims: captured?.sequences ?? chosen.slice(0, attacked).map(({ sequence }) => sequence),
    held: others.slice(0, held).map(({ sequence }) => sequence),
    auxiliary: others.slice(held).map(({ sequence }) => sequence),
    others: others.slice(held).map(({ sample }) => sample),
  };
}

/** Attacks on gradients and adapters, of a language model; the matching of states begins at the inverter's guess. */
async function attackGradients(
  o: AuditOptions,
  { model, victims, trained, known }: StudyOptions,
  { prompts, language, config }: Subject,
  { samples, others }: Users,
  guesses: ReadonlyMap<number, readonly Claim[]>,
  progress: Progress,
): Promise<GradientResult[]> {
  if (o.gradientUsers === 0 || samples.length === 0 || !prompts || !language) return [];
  const count = Math.min(o.gradientUsers, samples.length);
  const { layerCount } = model.cut;
  const [k] = [...guesses.keys()]
    .filter((depth) => depth > 0 && depth < layerCount)
    .sort((a, b) => Math.abs(a - layerCount / 4) - Math.abs(b - layerCount / 4));
  const claims = k === undefined ? undefined : guesses.get(k);
  const lora = { ...config.lora, dropout: 0 };
  return gradientAttacks({
    model,
    language,
    text: prompts,
    victims: samples.slice(0, count),
    others: others.slice(0, count),
    trained,
    known,
    targetModules: ['q_proj', 'v_proj'],
    seed: o.seed,
    span: { batches: [1, 4], ranks: [8, 64], groups: spanGroups },
    ...(claims && {
      matching: {
        k: k!,
        steps: 60,
        learningRate: 0.1,
        candidates: 16,
        checks: 32,
        users: Math.min(count, matchedUsers),
        accuracy: 1,
        guess: (user) => guessedIds(victims[user]!, claims[user]!),
      },
    }),
    labels: { shortlist: 64 },
    membership: { lora, simulated: { rounds: 2, epochs: 2, batchSize: 4, learningRate: 1e-3 } },
    report: progress.report,
  });
}

/** The sequence as an attack has it: the template, and its claims. */
function guessedIds(sequence: AuditedSequence, claim: Claim): number[] {
  const ids = [...sequence.ids];
  if ('tokens' in claim)
    for (const [i, place] of claimedPlaces(sequence).entries()) ids[place] = claim.tokens[i]!;
  return ids;
}

/** Each defence at each chosen depth: the attacks again, and the recommender through that cut. */
async function measureDefences(
  o: AuditOptions,
  study: StudyOptions,
  subject: Subject,
  dataset: Dataset,
  cuts: readonly number[],
  progress: Progress,
): Promise<DefenceResult[]> {
  if (o.defences.length === 0) return [];
  const samples = subset(dataset.users.flatMap(testSamples), o.qualityUsers, o.seed, 'audit quality');
  const results: DefenceResult[] = [];
  for (const depth of cuts) {
    const norms = await typicalNorms(study.model, study.held, study.known, depth);
    for (const [i, defence] of o.defences.entries()) {
      progress.report(`defences at depth ${depth}`, i, o.defences.length);
      const release = releaseOf(defence, norms, o.seed);
      const { attacks } = await attackStates({
        ...study,
        depths: [depth],
        release,
        ...(defence.kind === 'withheld' && { known: undefined }),
        search: searchUnder(defence, study),
        report: undefined,
      });
      const quality = await qualityThrough(o, subject, samples, depth, release);
      results.push({
        defence: defenceName(defence),
        depth,
        attacks,
        quality,
        ...('epsilon' in defence && { epsilon: defence.epsilon }),
      });
    }
  }
  return results;
}

/** Where states do not arrive exactly, the nearest candidate is taken, of fewer. */
function searchUnder({ kind }: Defence, { search }: StudyOptions): StudyOptions['search'] {
  if (kind === 'none' || kind === 'withheld') return search;
  return { budget: Math.min(search.budget, 16), tolerance: Number.POSITIVE_INFINITY, take: 'nearest' };
}

/**
 * What the recommender is worth to users if states leave in this way: those of users, and an encoder's of items. A
 * language model's vectors of the catalogue's titles, which are nobody's, are exact.
 */
async function qualityThrough(
  { seed }: AuditOptions,
  { config, backend, trained }: Subject,
  samples: readonly Sample[],
  k: number,
  release: Release | undefined,
): Promise<DefenceResult['quality']> {
  const { middle, elsewhere } = middleHere(config, backend.layers, k);
  const { keeping } = backend.recommenders[0]!;
  const parameters: NamedTensors = trained?.tensors ?? (await backend.initialParameters(seed));
  const through = async (own: Recommender) => {
    const recommender = splitRecommender(own, elsewhere);
    const { metrics } = await recommender.evaluate(samples, parameters, { seed });
    const loss = await recommender.loss(samples, parameters);
    const recalls = metrics.map((one) => one['recall@10']!);
    return { recallAt10: bootstrap(recalls, seed), loss, users: samples.length };
  };
  if (!release) return through(keeping(k, middle));
  const defended = defendedMiddle(middle, release, k);
  if (config.recommender === 'bigrec') {
    const exact = splitRecommender(keeping(k, middle), elsewhere);
    // Leaves the titles' vectors in the cache.
    await exact.evaluate(samples.slice(0, 1), parameters, { seed });
    return through(keeping(k, defended));
  }
  const cacheDir = await mkdtemp(join(tmpdir(), 'fellrec-audit-'));
  try {
    return await through(keeping(k, defended, cacheDir));
  } finally {
    await rm(cacheDir, { recursive: true, force: true });
  }
}
