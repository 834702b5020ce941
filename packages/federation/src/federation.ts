// The round, written once: train everyone from their own start, have candidates judged where the strategy has any, mix
// from a snapshot, evaluate, note the best.
import type { NamedTensors } from '@fellrec/graph';
import { assertRowStochastic, differenceOf } from './checks.ts';
import type { Client, Evaluation } from './client.ts';
import { comparisonsOf } from './comparisons.ts';
import { cosineMeans, effectiveClients } from './diagnostics.ts';
import type { BestRound, FederationEvent, FederationState, RoundRecord } from './events.ts';
import { assertHeld, bytesOf, type Held, heldBy } from './holdings.ts';
import { evaluationJob, knownEvaluationJob, stopwatch, trainingJob } from './jobs.ts';
import { judgingOf, runJudging } from './judging.ts';
import { amongAll } from './mixing.ts';
import { onDisk } from './parameters/disk.ts';
import { type HeldParameters, heldParameters } from './parameters/held.ts';
import { inMemory } from './parameters/memory.ts';
import type { ReadParameters } from './parameters/round-parameters.ts';
import type { Participation } from './participation.ts';
import { runPhase } from './phase.ts';
import { type Products, plainProducts } from './products/products.ts';
import type { Strategy } from './strategies/strategy.ts';

export interface FederateOptions {
  readonly clients: readonly Client[];
  readonly strategy: Strategy;
  /** The common start of all clients. */
  readonly initial: NamedTensors;
  /** Rounds at most, those before `resume` included. */
  readonly rounds: number;
  /** Stops after this many rounds without a lower validation loss. */
  readonly patience: number;
  readonly resume?: FederationState;
  /** All clients at the same time, and rounds without those who are late; without it one after another, and all. */
  readonly participation?: Participation;
  /** Compares and mixes many clients' parameters; without it that is done in plain TypeScript. */
  readonly products?: Products;
  /** Where many clients' parameters lie while it runs; without it they stay in memory. */
  readonly spill?: SpillOptions;
}

export interface SpillOptions {
  readonly directory: string;
  /**
   * All clients' parameters that are larger go there (default: 256 MiB). A round holds them up to three times, and every
   * different mixture that clients judge once.
   */
  readonly aboveBytes?: number;
}

/** Up to here plain TypeScript is faster: 16 ms against 61 for five adapters of SmolLM2, but 116 against 77 for eight. */
const fewClients = 5;

/**
 * Runs rounds until `rounds` are done or the validation loss stops falling.
 * @throws if a client fails (with `participation`: too many for a quorum), which it also does with a loss or a parameter
 * that is not finite, or with other tensors than it holds.
 */
export async function* federate(options: FederateOptions): AsyncGenerator<FederationEvent, void, undefined> {
  const { clients, strategy, initial, rounds, patience, resume, participation } = options;
  const active = clients.filter(({ samples }) => samples > 0);
  const holdings = clients.map((client) => heldBy(client, initial));
  const held = holdings.filter((_, c) => clients[c]!.samples > 0);
  let state = resume ?? startFrom(held);
  assertClients(clients, active, state);
  assertHeld(holdings, initial);
  if (participation) assertParticipation(participation, active.length);
  yield {
    type: 'run-started',
    strategy: strategy.name,
    clients: clients.map(({ name, samples }) => ({ name, samples })),
    round: state.nextRound,
    rounds,
    patience,
  };
  for (const { name, samples } of clients) if (samples === 0) yield { type: 'client-skipped', client: name };
  const goesOn = () => state.nextRound < rounds && state.roundsWithoutImprovement < patience;
  if (goesOn()) {
    const parameters = await openParameters(options, held, state);
    try {
      while (goesOn())
        state = yield* runRound({
          clients: active,
          held,
          strategy,
          parameters,
          before: state,
          ...(participation && { participation }),
        });
    } finally {
      await parameters.close();
    }
  }
  if (state.roundsWithoutImprovement >= patience && state.bestOverall)
    yield { type: 'stopped-early', round: state.nextRound - 1, bestRound: state.bestOverall.round };
  yield { type: 'run-finished', rounds: state.nextRound, bestOverall: state.bestOverall };
}

interface Round {
  readonly clients: readonly Client[];
  /** What each client holds of the common start. */
  readonly held: readonly Held[];
  readonly strategy: Strategy;
  readonly parameters: HeldParameters;
  readonly before: FederationState;
  readonly participation?: Participation;
}

async function* runRound({
  clients,
  held,
  strategy,
  parameters,
  before,
  participation,
}: Round): AsyncGenerator<FederationEvent, FederationState> {
  const round = before.nextRound;
  const total = stopwatch();
  yield { type: 'round-started', round };

  const starts = parameters.starts();
  const trained = yield* runPhase({
    phase: 'training',
    round,
    participation,
    jobs: clients.map((client, c) => trainingJob(client, starts[c]!, held[c]!)),
    async delivered(c, { result: { parameters: own, loss, samples, tokens }, seconds }) {
      await parameters.keep(c, own);
      const counted = tokens === undefined ? {} : { tokens };
      const client = clients[c]!.name;
      return { type: 'client-trained', round, client, loss, samples, ...counted, seconds } as const;
    },
  });
  const numbers = [...clients.keys()];
  const present = numbers.filter((c) => trained[c]);
  const absent = numbers.filter((c) => !trained[c]);
  for (const c of absent) await parameters.keep(c, await starts[c]!());
  const names = present.map((c) => clients[c]!.name);
  const reports = present.map((c) => {
    const { client, loss, samples } = trained[c]!;
    const { group } = clients[c]!;
    return { client, loss, samples, ...(group !== undefined && { group }) };
  });

  const comparing = stopwatch();
  const compared = await comparisonsOf(strategy, parameters, present, clients.length);
  const statistics = { round, previous: before.previous, ...compared };
  const candidates = strategy.candidates?.(reports, statistics);
  const judging = candidates && (await judgingOf({ strategy, candidates, clients, present, parameters }));
  const comparingSeconds = comparing();
  const judgements = judging && (yield* runJudging(judging, round, participation));

  const aggregation = stopwatch();
  const { cosines } = compared;
  const mixing = {
    ...strategy.mix(reports, { ...statistics, judged: judgements?.losses }),
    ...(cosines && { cosines }),
  };
  assertRowStochastic(mixing.matrix, present.length, strategy.name);
  await parameters.mix(amongAll(present, mixing.matrix, clients.length));
  const mixed = parameters.starts();
  const aggregationSeconds = comparingSeconds + aggregation();
  yield { type: 'aggregated', round, clients: names, mixing, seconds: aggregationSeconds };

  const evaluated = yield* runPhase({
    phase: 'evaluation',
    round,
    participation,
    jobs: present.map((c, place) => {
      const known = judgements?.evaluationOf(place, mixing.matrix[place]!);
      return known ? knownEvaluationJob(clients[c]!, known) : evaluationJob(clients[c]!, mixed[c]!);
    }),
    async delivered(place, { result: { loss, samples }, seconds }) {
      return { type: 'client-evaluated', round, client: names[place]!, loss, samples, seconds } as const;
    },
  });
  const validated = evaluated.filter((event) => event !== undefined);

  const validation = Object.fromEntries(
    validated.map(({ client, loss, samples }) => [client, { loss, samples }]),
  );
  const parametersOf = new Map(clients.map(({ name }, c) => [name, mixed[c]!]));
  const state = { ...advance(before, parametersOf, validation), previous: { clients: names, mixing } };
  const carried = [...state.validation].filter(([name]) => !validation[name]);
  const bytes = present.map((c) => {
    const { crosses } = clients[c]!;
    return bytesOf([held[c]!], (name) => strategy.personal?.(name) || crosses?.(name) === false);
  });
  const up = bytes.reduce((sum, own) => sum + own, 0);
  const down = bytes.reduce((sum, own, place) => sum + own * (judgements?.evaluations[place] ?? 0), up);
  const effective = effectiveClients(mixing.matrix);
  const means =
    cosines &&
    cosineMeans(
      cosines,
      reports.map(({ group }) => group),
    );
  const record: RoundRecord = {
    round,
    clients: names,
    ...(absent.length > 0 && { absent: absent.map((c) => clients[c]!.name) }),
    samples: Object.fromEntries(reports.map(({ client, samples }) => [client, samples])),
    losses: Object.fromEntries(reports.map(({ client, loss }) => [client, loss])),
    mixing,
    effectiveClients: Object.fromEntries(names.map((name, row) => [name, effective[row]!])),
    ...(means && { cosineMeans: means }),
    validation,
    ...(carried.length > 0 && { carried: Object.fromEntries(carried) }),
    validationLoss: overallLoss(state.validation, round),
    best: Object.fromEntries(
      [...state.best].map(([name, best]) => [name, { round: best.round, loss: best.loss }]),
    ),
    bestOverall: state.bestOverall!,
    roundsWithoutImprovement: state.roundsWithoutImprovement,
    bytes: { down, up },
    seconds: {
      training: Object.fromEntries(present.map((c) => [clients[c]!.name, trained[c]!.seconds])),
      ...(judgements && { candidates: judgements.seconds }),
      aggregation: aggregationSeconds,
      evaluation: Object.fromEntries(validated.map(({ client, seconds }) => [client, seconds])),
      total: total(),
    },
  };
  yield { type: 'round-finished', ...record, state };
  return state;
}

/**
 * The state after a round. A client without validation samples is best when all together are; one that was not evaluated
 * keeps its best, and counts among all with its latest loss. What all together had before a client was first evaluated is
 * of others, so that the search for their best begins anew then.
 */
function advance(
  before: FederationState,
  parameters: ReadonlyMap<string, ReadParameters>,
  validation: Readonly<Record<string, Evaluation>>,
): FederationState {
  const round = before.nextRound;
  const known = new Map([...before.validation, ...Object.entries(validation)]);
  const overall = overallLoss(known, round);
  const begins = Object.entries(validation).some(
    ([name, { samples }]) => samples > 0 && !before.validation.has(name),
  );
  const best = new Map(before.best);
  for (const name of parameters.keys()) {
    const own = validation[name];
    if (!own) continue;
    const judges = own.samples > 0;
    const loss = judges ? own.loss : overall;
    const lowest = !judges && begins ? undefined : best.get(name)?.loss;
    if (loss < (lowest ?? Number.POSITIVE_INFINITY)) best.set(name, { round, loss });
  }
  const improved = begins || overall < (before.bestOverall?.loss ?? Number.POSITIVE_INFINITY);
  const bestOverall: BestRound | undefined = improved ? { round, loss: overall } : before.bestOverall;
  const roundsWithoutImprovement = improved ? 0 : before.roundsWithoutImprovement + 1;
  return { nextRound: round + 1, parameters, best, validation: known, bestOverall, roundsWithoutImprovement };
}

/** sum n loss / sum n over clients' validation samples. */
function overallLoss(evaluations: ReadonlyMap<string, Evaluation>, round: number): number {
  const judging = [...evaluations.values()].filter(({ samples }) => samples > 0);
  const total = judging.reduce((sum, { samples }) => sum + samples, 0);
  if (total === 0)
    throw new Error(
      `federation: no client has validation samples in round ${round + 1}, so it cannot be called the best`,
    );
  return judging.reduce((sum, { loss, samples }) => sum + samples * loss, 0) / total;
}

function startFrom(held: readonly Held[]): FederationState {
  return {
    nextRound: 0,
    parameters: new Map(held.map(({ client, tensors }) => [client, async () => tensors])),
    best: new Map(),
    validation: new Map(),
    bestOverall: undefined,
    roundsWithoutImprovement: 0,
  };
}

/** The parameters of a state, where they fit. @throws if they are other tensors than a client holds. */
async function openParameters(
  { products = plainProducts, spill, strategy }: FederateOptions,
  held: readonly Held[],
  { parameters }: FederationState,
): Promise<HeldParameters> {
  const starts = held.map((own) => async () => {
    const tensors = await parameters.get(own.client)!();
    const difference = differenceOf(own, { owner: own.client, tensors });
    if (difference) throw new Error(`the state to go on from: ${difference}`);
    return tensors;
  });
  const isLarge = spill && bytesOf(held) > (spill.aboveBytes ?? 2 ** 28);
  return heldParameters({
    held: held.map(({ tensors }) => tensors),
    ...(strategy.personal && { personal: strategy.personal }),
    starts,
    open: (group) => {
      const options = { ...group, products: group.starts.length > fewClients ? products : plainProducts };
      return isLarge ? onDisk(spill.directory, options) : inMemory(options);
    },
  });
}

function assertClients(clients: readonly Client[], active: readonly Client[], state: FederationState): void {
  const names = clients.map(({ name }) => name);
  const twice = names.filter((name, i) => names.indexOf(name) !== i);
  if (twice.length > 0)
    throw new Error(`federation: several clients are called ${[...new Set(twice)].join(', ')}`);
  if (active.length === 0) throw new Error('federation: no client has a training sample');
  const missing = active.filter(({ name }) => !state.parameters.has(name)).map(({ name }) => name);
  if (missing.length > 0)
    throw new Error(`federation: the state to go on from has no parameters of ${missing.join(', ')}`);
}

function assertParticipation({ quorum, deadlineSeconds }: Participation, clients: number): void {
  if (!(Number.isInteger(quorum) && quorum >= 1 && quorum <= clients))
    throw new Error(
      `federation: the quorum is ${quorum}; ${clients} clients train, so it can be 1 to ${clients}`,
    );
  if (!(deadlineSeconds >= 0))
    throw new Error(`federation: the deadline is ${deadlineSeconds} s; it can be 0 or more`);
}
