// All attacks on gradients, adapters and updates of a language model recommender, on the same users. Not on encoders: only
// `membership.ts` applies to them as it stands; `span.ts`, `matching.ts` and `label-matching.ts` say why they do not.
import { adamW, type Float32Tensor, type NamedTensors, random, zeros } from '@fellrec/graph';
import {
  initialAdapter,
  type LanguageModel,
  type LoraConfig,
  type Projection,
  type Trained,
} from '@fellrec/models';
import { bootstrap, renderAnswer, renderPrompt, type Sample, trainingSequence } from '@fellrec/recsys';
import { type AuditedModel, depths, offsetsOf, rowsBetween } from '../layerwise.ts';
import { claimedPlaces } from '../metrics.ts';
import type { GradientResult, Interval } from '../result.ts';
import { type AuditedSequence, type PromptOptions, promptSequences } from '../sequences.ts';
import { openLabelMatcher } from './label-matching.ts';
import { type MatchOptions, openMatcher } from './matching.ts';
import {
  bootstrapAuc,
  languageLearner,
  membershipScores,
  type SeenRound,
  type SimulatedClient,
  simulatedRounds,
} from './membership.ts';
import { adapterEvidence, openSpanTest, type SpanEvidence, tokensOf, weightGradients } from './span.ts';
import { difference } from './vectors.ts';

export interface GradientAttackOptions {
  readonly model: AuditedModel;
  /** The same model whole, without dropout. */
  readonly language: LanguageModel;
  readonly text: PromptOptions;
  /** One sample of each attacked user; and of others, who were not trained on. */
  readonly victims: readonly Sample[];
  readonly others: readonly Sample[];
  /** What the client's layers have learned, and what the attacker knows of that; the base if absent. */
  readonly trained?: Trained | undefined;
  readonly known?: Trained | undefined;
  readonly targetModules: readonly Projection[];
  readonly seed: number;
  /** Batches of so many sequences, adapters of so high ranks, and how many batches of each. */
  readonly span?: {
    readonly batches: readonly number[];
    readonly ranks: readonly number[];
    readonly groups: number;
  };
  /**
   * Of so many users. `guess`: tokens that another attack has found, by the user's place; if absent, a stand-in for it
   * that has `accuracy` of the tokens right.
   */
  readonly matching?: Omit<MatchOptions, 'trained'> & {
    readonly users: number;
    readonly accuracy: number;
    readonly guess?: (user: number) => readonly number[];
  };
  readonly labels?: { readonly shortlist: number };
  /** What the server saw of a client that has the victims; or how one that has them alone is to train. */
  readonly membership?:
    | { readonly lora: LoraConfig; readonly rounds: readonly SeenRound[] }
    | { readonly lora: LoraConfig; readonly simulated: Omit<SimulatedClient, 'seed'> };
  readonly report?: ((stage: string, done: number, total: number) => void) | undefined;
}

interface Opened extends GradientAttackOptions {
  readonly sequences: readonly AuditedSequence[];
}

/** @throws if there is nobody to attack. */
export async function gradientAttacks(options: GradientAttackOptions): Promise<GradientResult[]> {
  const { history } = promptSequences(options.text);
  const fitting = options.victims.flatMap((sample) => {
    const sequence = history(sample);
    return sequence ? [{ sample, sequence }] : [];
  });
  if (fitting.length === 0) throw new Error('audit: no users to attack');
  const opened: Opened = {
    ...options,
    victims: fitting.map(({ sample }) => sample),
    others: options.others.filter((sample) => history(sample)),
    sequences: fitting.map(({ sequence }) => sequence),
  };
  return [
    ...(await spanAttacks(opened)),
    ...(await matchingAttacks(opened)),
    ...(await membershipAttacks(opened)),
  ];
}

const labelled = ({ text }: Opened, samples: readonly Sample[]) =>
  samples.map((sample) => trainingSequence(sample, 'answer', text).value);

async function spanAttacks(options: Opened): Promise<GradientResult[]> {
  const { model, language, text, victims, targetModules, seed, span, report } = options;
  if (!span) return [];
  const batch = labelled(options, victims);
  const groupsOf = (size: number) =>
    Array.from({ length: Math.min(span.groups, Math.floor(batch.length / size)) }, (_, i) =>
      batch.slice(i * size, (i + 1) * size),
    );
  const test = await openSpanTest(language.checkpoint, model.runtime);
  const template = new Set(text.tokenizer.encode(renderPrompt([], text.domain)));
  const results: GradientResult[] = [];
  /** `evidence` of every group of sequences, by the setting's name. */
  async function attack(
    setting: string,
    groups: readonly (typeof batch)[],
    evidence: (group: typeof batch) => Promise<readonly SpanEvidence[]>,
    note?: string,
  ): Promise<void> {
    const found: SpanScores[] = [];
    for (const [i, group] of groups.entries()) {
      report?.(`span: ${setting}`, i, groups.length);
      const truth = tokensOf(group);
      const { tokens, isDecidable, ranks } = await test.tokens(await evidence(group));
      found.push({ ...spanScores(tokens, truth, template), isDecidable, rank: Math.max(...ranks) });
    }
    if (found.length === 0) return;
    results.push({
      attack: 'span test',
      setting,
      uses: ['embedding', 'weights', 'template'],
      metrics: spanMetrics(found, seed),
      ...(note && { note }),
    });
  }

  for (const size of span.batches)
    await attack(`full weights, gradient, batch of ${size}`, groupsOf(size), async (group) => [
      await weightGradients(language, group),
    ]);
  await attack(
    'full weights, one AdamW step, batch of 1',
    groupsOf(1).slice(0, 2),
    async (group) => {
      const { rows } = await weightGradients(language, group);
      const gradients = new Map(rows.map((row, i) => [`${i}`, row]));
      return [{ rows: [...firstStep(gradients, zerosLike(gradients)).values()] }];
    },
    'the first step takes the sign of every element, which has full rank',
  );
  await language.release('train');
  for (const rank of span.ranks) {
    const config: LoraConfig = { rank, alpha: 2 * rank, dropout: 0, targetModules, layers: [0] };
    const start = initialAdapter(language.checkpoint.config, config, seed);
    const gradients = async (group: typeof batch, tensors: NamedTensors) =>
      (await language.gradients(group, { config, tensors })).gradients;
    // B is no longer zero after a step on somebody else's sample.
    const stepped = firstStep(await gradients(batch.slice(-1), start), start);
    const name = `LoRA, rank ${rank}`;
    await attack(`${name}, gradient, fresh adapter, batch of 1`, groupsOf(1), async (group) =>
      adapterEvidence(await gradients(group, start), start),
    );
    await attack(`${name}, gradient, after a step, batch of 1`, groupsOf(1), async (group) =>
      adapterEvidence(await gradients(group, stepped), stepped),
    );
    await attack(`${name}, one AdamW step, batch of 1`, groupsOf(1), async (group) => {
      const after = firstStep(await gradients(group, stepped), stepped);
      return adapterEvidence(difference(after, stepped), stepped);
    });
    await language.release('train');
  }
  await test.dispose();
  return results;
}

interface SpanScores {
  readonly recall: number;
  /** Undefined if nothing was claimed. */
  readonly precision: number | undefined;
  readonly distinct: number;
  readonly rank: number;
  readonly isDecidable: boolean;
}

/** Of the tokens that say something about a user: the template's do not count. */
function spanScores(
  tokens: readonly number[],
  truth: ReadonlySet<number>,
  template: ReadonlySet<number>,
): Pick<SpanScores, 'recall' | 'precision' | 'distinct'> {
  const claimed = tokens.filter((token) => !template.has(token));
  const own = [...truth].filter((token) => !template.has(token));
  const right = claimed.filter((token) => truth.has(token)).length;
  return {
    recall: own.length === 0 ? 0 : right / own.length,
    precision: claimed.length === 0 ? undefined : right / claimed.length,
    distinct: truth.size,
  };
}

function spanMetrics(found: readonly SpanScores[], seed: number): Record<string, Interval> {
  const mean = (values: readonly number[]) => bootstrap(values, seed);
  const precisions = found.flatMap(({ precision }) => (precision === undefined ? [] : [precision]));
  return {
    'token recall': mean(found.map(({ recall }) => recall)),
    ...(precisions.length > 0 && { precision: mean(precisions) }),
    decidable: mean(found.map(({ isDecidable }) => (isDecidable ? 1 : 0))),
    'distinct tokens': mean(found.map(({ distinct }) => distinct)),
    rank: mean(found.map(({ rank }) => rank)),
  };
}

/** Parameters after the first step of AdamW. */
function firstStep(gradients: NamedTensors, parameters: NamedTensors): NamedTensors {
  const optimizer = adamW();
  return optimizer.update(gradients, optimizer.init(parameters), 1e-3).parameters;
}

function zerosLike(tensors: NamedTensors): NamedTensors {
  return new Map([...tensors].map(([name, { dims }]) => [name, zeros(dims)]));
}

/** Both directions at a cut. */
async function matchingAttacks(options: Opened): Promise<GradientResult[]> {
  const { model, matching, labels, sequences, trained } = options;
  if (!matching && !labels) return [];
  const last = model.cut.layerCount - 1;
  const places = sequences.map(({ ids }) => ids.map((_, place) => place));
  const offsets = offsetsOf(sequences.map(({ ids }) => ids.length));
  const results: GradientResult[] = [];
  const deepest = labels ? last : matching!.k;
  for await (const { depth, states } of depths(model, [{ sequences, places, trained }], deepest)) {
    const own = sequences.map(({ ids }, i) => rowsBetween(states[0]!, offsets[i]!, offsets[i]! + ids.length));
    if (depth === matching?.k) results.push(await inputMatching(options, matching, own));
    if (depth === last && labels) results.push(await labelMatching(options, labels.shortlist, own));
  }
  return results;
}

async function inputMatching(
  { model, sequences, known, seed, report }: Opened,
  matching: NonNullable<GradientAttackOptions['matching']>,
  states: readonly Float32Tensor[],
): Promise<GradientResult> {
  const matcher = await openMatcher(model);
  const accuracies: Record<'guess' | 'rounded' | 'found' | 'objective', number[]> = {
    guess: [],
    rounded: [],
    found: [],
    objective: [],
  };
  const attacked = sequences.slice(0, matching.users);
  for (const [user, sequence] of attacked.entries()) {
    report?.('matching', user, attacked.length);
    const places = claimedPlaces(sequence);
    const right = (tokens: readonly number[]) =>
      places.filter((place) => tokens[place] === sequence.ids[place]).length / (places.length || 1);
    const guess =
      matching.guess?.(user) ??
      corrupted(sequence, places, matching.accuracy, model.cut.vocabularySize, seed);
    const { rounded, tokens, objective } = await matcher.match(states[user]!, guess, {
      ...matching,
      trained: known,
    });
    accuracies.guess.push(right(guess));
    accuracies.rounded.push(right(rounded));
    accuracies.found.push(right(tokens));
    // A guess that is right leaves nothing to do.
    accuracies.objective.push(objective[0] === 0 ? 0 : objective.at(-1)! / objective[0]!);
  }
  await matcher.dispose();
  const mean = (values: readonly number[]) => bootstrap(values, seed);
  return {
    attack: 'state matching',
    setting: `states at depth ${matching.k}, ${matching.steps} steps`,
    uses: ['embedding', 'weights', 'template', ...(known ? (['adapter'] as const) : [])],
    metrics: {
      'accuracy before': mean(accuracies.guess),
      'accuracy, nearest tokens': mean(accuracies.rounded),
      'accuracy after': mean(accuracies.found),
      'objective, of its start': mean(accuracies.objective),
    },
    ...(!matching.guess && {
      note: `begins at the true tokens with ${Math.round(100 * (1 - matching.accuracy))} % of them replaced at random`,
    }),
  };
}

/** The sequence with some of its private tokens replaced. */
function corrupted(
  { ids, user }: AuditedSequence,
  places: readonly number[],
  accuracy: number,
  vocabulary: number,
  seed: number,
): number[] {
  const { uniform, integer } = random(seed, 'guess', user);
  const guess = [...ids];
  for (const place of places) if (uniform() >= accuracy) guess[place] = integer(vocabulary);
  return guess;
}

async function labelMatching(
  { model, text, victims, trained, known, seed, report }: Opened,
  shortlist: number,
  states: readonly Float32Tensor[],
): Promise<GradientResult> {
  const { catalogue, tokenizer, eosIds } = text;
  const answers = catalogue.items.map(({ title }) => [
    ...tokenizer.encodeContinuation(renderAnswer(title)),
    ...eosIds.slice(0, 1),
  ]);
  const client = await openLabelMatcher(model, { trained, shortlist });
  const attacker = trained === known ? client : await openLabelMatcher(model, { trained: known, shortlist });
  const ranks: number[] = [];
  const accuracies: number[] = [];
  for (const [user, { targets }] of victims.entries()) {
    report?.('labels', user, victims.length);
    const truth = answers[targets[0]!]!;
    const hidden = states[user]!;
    const gradient = await client.gradient(hidden, truth);
    const { order, labels } = await attacker.rank({ hidden, gradient }, answers);
    const { title } = catalogue.items[targets[0]!]!;
    ranks.push(order.findIndex((item) => catalogue.items[item]!.title === title) + 1);
    accuracies.push(truth.filter((label, i) => labels[truth.length - 1 - i] === label).length / truth.length);
  }
  for (const one of new Set([client, attacker])) await one.dispose();
  const mean = (values: readonly number[]) => bootstrap(values, seed);
  return {
    attack: 'label matching',
    setting: `gradient at the upper cut, ${answers.length} titles`,
    uses: ['head', 'weights', 'catalogue', ...(known ? (['adapter'] as const) : [])],
    metrics: {
      'target at rank 1': mean(ranks.map((rank) => (rank === 1 ? 1 : 0))),
      'target in the top 10': mean(ranks.map((rank) => (rank <= 10 ? 1 : 0))),
      'label accuracy without titles': mean(accuracies),
    },
  };
}

async function membershipAttacks(options: Opened): Promise<GradientResult[]> {
  const { language, victims, others, membership, seed, report } = options;
  if (!membership) return [];
  const { lora } = membership;
  const [members, nonMembers] = [labelled(options, victims), labelled(options, others)];
  const learner = languageLearner(language, lora);
  report?.('membership', 0, 1);
  const rounds =
    'rounds' in membership
      ? membership.rounds
      : await simulatedRounds(learner, members, initialAdapter(language.checkpoint.config, lora, seed), {
          ...membership.simulated,
          seed,
        });
  const scores = await membershipScores(
    learner,
    [...members, ...nonMembers].map((sequence) => [sequence]),
    rounds,
  );
  const auc = (name: 'lossDrop' | 'cosine') => {
    const values = scores.map((score) => score[name]);
    return bootstrapAuc(values.slice(0, members.length), values.slice(members.length), seed);
  };
  return [
    {
      attack: 'membership',
      setting: `LoRA, rank ${lora.rank}, ${rounds.length} rounds, ${members.length} members and ${nonMembers.length} others`,
      uses: ['weights', 'adapter', 'catalogue', 'template'],
      metrics: { 'AUC, fall of the loss': auc('lossDrop'), 'AUC, cosine': auc('cosine') },
      ...('simulated' in membership && {
        note: `a client that trains alone on the members, ${membership.simulated.epochs} epochs a round`,
      }),
    },
  ];
}
