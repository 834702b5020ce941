// Candidates: parameters that clients judge on their own validation samples before all are mixed.
import { assertCandidates } from './checks.ts';
import type { Client, Evaluation } from './client.ts';
import type { FederationEvent } from './events.ts';
import { judgingJob } from './jobs.ts';
import { isSameRow, rowAmongAll } from './mixing.ts';
import type { HeldParameters, Mixture } from './parameters/held.ts';
import type { ReadParameters } from './parameters/round-parameters.ts';
import type { Participation } from './participation.ts';
import { runPhase } from './phase.ts';
import type { Candidate, Strategy } from './strategies/strategy.ts';

/** One client's candidates, of which equal ones are judged once. */
export interface Judging {
  readonly client: Client;
  readonly candidates: readonly Candidate[];
  /** For each its place in `read`. */
  readonly places: readonly number[];
  readonly read: readonly ReadParameters[];
  /** How many of these it is sent: under a strategy that shows others' parameters it has its own, and what it began with. */
  readonly sent: number;
}

export interface CandidatesOptions {
  readonly strategy: Pick<Strategy, 'name' | 'showsOthers'>;
  /** By client of `present`. */
  readonly candidates: readonly (readonly Candidate[])[];
  readonly clients: readonly Client[];
  /** Numbers of those that take part, in the order of the rows' weights. */
  readonly present: readonly number[];
  readonly parameters: HeldParameters;
}

/** Computes what is to be judged. @throws if a client has no candidate, or one whose weights are none. */
export async function judgingOf(options: CandidatesOptions): Promise<Judging[]> {
  const { strategy, candidates, clients, present, parameters } = options;
  assertCandidates(candidates, present.length, strategy.name);
  const starts = parameters.starts();
  const wanted: Mixture[] = [];
  const judged = candidates.map((own, place) => {
    const client = present[place]!;
    const distinct: Candidate[] = [];
    const places = own.map((candidate) => {
      const known = distinct.findIndex(({ row }) => isSame(row, candidate.row));
      return known >= 0 ? known : distinct.push(candidate) - 1;
    });
    const read = distinct.map(({ row }) => {
      if (row === 'start') return () => starts[client]!();
      const number = wanted.push({ client, row: rowAmongAll(present, row, clients.length) }) - 1;
      return () => mixtures[number]!();
    });
    const isOwn = ({ row }: Candidate) =>
      row === 'start' || row.every((weight, j) => weight === Number(j === place));
    const sent = strategy.showsOthers ? distinct.filter((one) => !isOwn(one)).length : distinct.length;
    return { client: clients[client]!, candidates: own, places, read, sent };
  });
  const mixtures = await parameters.mixtures(wanted);
  return judged;
}

/** What came of it, by client in the order of the judging. */
export interface Judgements {
  /** Of all candidates; undefined of a client that has no validation samples or did not deliver. */
  readonly losses: readonly (readonly number[] | undefined)[];
  /** How many parameters it was sent. */
  readonly evaluations: readonly number[];
  /** By name, of those who delivered. */
  readonly seconds: Readonly<Record<string, number>>;
  /** What it found of a row of the matrix; undefined if it did not judge that. */
  evaluationOf(place: number, row: readonly number[]): Evaluation | undefined;
}

type ClientJudged = FederationEvent & { readonly type: 'client-judged' };

/** Has clients judge their candidates. */
export async function* runJudging(
  judging: readonly Judging[],
  round: number,
  participation: Participation | undefined,
): AsyncGenerator<FederationEvent, Judgements> {
  const events = yield* runPhase({
    phase: 'judging',
    round,
    participation,
    jobs: judging.map(({ client, read }) => judgingJob(client, read)),
    async delivered(place, { result, seconds }): Promise<ClientJudged> {
      const { client, candidates, places } = judging[place]!;
      const { samples } = result[0]!;
      const lossOf = (k: number) => result[places[k]!]!.loss;
      return {
        type: 'client-judged',
        round,
        client: client.name,
        candidates: samples > 0 ? candidates.map(({ name }, k) => ({ name, loss: lossOf(k) })) : [],
        evaluations: result.length,
        samples,
        seconds,
      };
    },
  });
  const delivered = events.filter((event) => event !== undefined);
  return {
    losses: events.map((event) =>
      event && event.samples > 0 ? event.candidates.map(({ loss }) => loss) : undefined,
    ),
    evaluations: events.map((event, place) => Math.min(event?.evaluations ?? 0, judging[place]!.sent)),
    seconds: Object.fromEntries(delivered.map(({ client, seconds }) => [client, seconds])),
    evaluationOf(place, row) {
      const known = judging[place]!.candidates.findIndex((candidate) => isSame(candidate.row, row));
      const { candidates, samples } = events[place] ?? { candidates: [], samples: 0 };
      const loss = candidates[known]?.loss;
      return loss === undefined ? undefined : { loss, samples };
    },
  };
}

function isSame(a: Candidate['row'], b: Candidate['row']): boolean {
  return a === b || (a !== 'start' && b !== 'start' && isSameRow(a, b));
}
