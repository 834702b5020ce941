// Greedy and beam search with the semantics and scores of transformers' `generate`. The search is pure bookkeeping over
// log-probabilities; who computes them (`step`) keeps the caches.

export interface GenerationOptions {
  readonly maxNewTokens: number;
  /** 1 is greedy search. */
  readonly beams: number;
  /** A finished beam's score is its log-probability / generated length ^ lengthPenalty. */
  readonly lengthPenalty?: number;
  readonly eosIds: readonly number[];
}

export interface Hypothesis {
  /** Generated tokens, with the end token if there is one. */
  readonly ids: readonly number[];
  /** Sum of log-probabilities / length ^ lengthPenalty. */
  readonly score: number;
  /** Where the search runs along a tree: the indices of the tree's sequences that it is, which are equal. */
  readonly sequences?: readonly number[];
}

/** The likeliest next tokens of each row and their log-probabilities, [rows, perRow] flat, best first. */
export interface NextTokens {
  readonly perRow: number;
  readonly ids: ArrayLike<number | bigint>;
  /** -Infinity where a row has fewer. */
  readonly logProbabilities: ArrayLike<number>;
  /** Whether a token is the last of its sequence; where absent, end tokens are. */
  readonly ends?: ArrayLike<boolean>;
}

/**
 * Appends `tokens` to rows `parents` of the call before: a row for every beam of each of `users`, of which there are
 * fewer the more are done.
 */
export interface BeamTokens {
  readonly users: readonly number[];
  readonly tokens: readonly number[];
  readonly parents: readonly number[];
}

/** What follows then. */
export type DecodeStep = (next: BeamTokens) => Promise<NextTokens>;

/** How many of a row's next tokens a search looks at, as transformers: enough if every end token is among them. */
export function candidatesPerRow({ beams, eosIds }: Pick<GenerationOptions, 'beams' | 'eosIds'>): number {
  return beams === 1 ? 1 : Math.max(2, 1 + eosIds.length) * beams;
}

interface Running {
  readonly ids: readonly number[];
  readonly logProbability: number;
}
interface UserState {
  readonly user: number;
  running: readonly Running[];
  finished: readonly Hypothesis[];
}

/**
 * Beam search over users side by side; the best `beams` hypotheses of each, or all if they are fewer, best first.
 * `first` is what follows the prompts, a row a user. With early_stopping = false, as transformers: a user is done when
 * no running beam's present score exceeds the worst of `beams` finished ones; who is done is computed no further.
 */
export async function beamSearch(
  first: NextTokens,
  users: number,
  step: DecodeStep,
  options: GenerationOptions,
): Promise<Hypothesis[][]> {
  const { beams, maxNewTokens, lengthPenalty = 1, eosIds } = options;
  if (beams === 1) return greedySearch(first, users, step, options);
  const isLast = lastTokens(eosIds);
  const kept = candidatesPerRow(options);
  const states = Array.from(
    { length: users },
    (_, user): UserState => ({
      user,
      running: [{ ids: [], logProbability: 0 }],
      finished: [],
    }),
  );
  let active = states;
  let next = first;
  for (let length = 1; ; length++) {
    const rowsPerUser = length === 1 ? 1 : beams;
    const open: { state: UserState; ranked: readonly Continuation[] }[] = [];
    active.forEach((state, place) => {
      const candidates = topContinuations(next, place * rowsPerUser, state.running, kept);
      const stops = candidates.map(({ at }) => length === maxNewTokens || isLast(next, at));
      const justFinished = candidates
        .filter((_, i) => i < beams && stops[i])
        .map((c) => ({ ids: c.ids, score: c.logProbability / length ** lengthPenalty }));
      state.finished = [...state.finished, ...justFinished].sort((a, b) => b.score - a.score).slice(0, beams);
      const ranked = filledUp(candidates.filter((_, i) => !stops[i]).slice(0, beams), beams);
      state.running = ranked;
      const best = candidates.find((_, i) => !stops[i])?.logProbability ?? Number.NEGATIVE_INFINITY;
      const worst = state.finished.length < beams ? Number.NEGATIVE_INFINITY : state.finished.at(-1)!.score;
      // Whether a running beam may still beat the worst finished one.
      const improvable = best / length ** lengthPenalty > worst;
      if (improvable && ranked.length > 0) open.push({ state, ranked });
    });
    if (open.length === 0) return states.map(({ finished }) => [...finished]);
    active = open.map(({ state }) => state);
    next = await step({
      users: active.map(({ user }) => user),
      tokens: open.flatMap(({ ranked }) => ranked.map(({ token }) => token)),
      parents: open.flatMap(({ state, ranked }) =>
        ranked.map(({ row }) => (length === 1 ? state.user * beams : row)),
      ),
    });
  }
}

/** A row for every beam: where there are too few, dead ones, which nothing continues (transformers' -1e9). */
function filledUp(running: readonly Continuation[], beams: number): readonly Continuation[] {
  const [best] = running;
  if (!best) return [];
  const dead = { ...best, logProbability: Number.NEGATIVE_INFINITY };
  return [...running, ...new Array<Continuation>(beams - running.length).fill(dead)];
}

async function greedySearch(
  first: NextTokens,
  users: number,
  step: DecodeStep,
  { maxNewTokens, eosIds, lengthPenalty = 1 }: Omit<GenerationOptions, 'beams'>,
): Promise<Hypothesis[][]> {
  const isLast = lastTokens(eosIds);
  const states = Array.from({ length: users }, (_, user) => ({
    user,
    ids: [] as number[],
    logProbability: 0,
  }));
  let active = states;
  let next = first;
  for (let length = 1; ; length++) {
    active.forEach((state, row) => {
      state.ids.push(Number(next.ids[row * next.perRow]));
      state.logProbability += next.logProbabilities[row * next.perRow]!;
    });
    const open = active
      .map((state, row) => ({ state, row }))
      .filter(({ row }) => length < maxNewTokens && !isLast(next, row * next.perRow));
    if (open.length === 0)
      return states.map(({ ids, logProbability }) => [
        { ids, score: logProbability / ids.length ** lengthPenalty },
      ]);
    active = open.map(({ state }) => state);
    next = await step({
      users: active.map(({ user }) => user),
      tokens: active.map(({ ids }) => ids.at(-1)!),
      parents: open.map(({ row }) => row),
    });
  }
}

/** Whether the next token at a place ends its sequence. */
function lastTokens(eosIds: readonly number[]): (next: NextTokens, at: number) => boolean {
  const eos = new Set(eosIds);
  return ({ ids, ends }, at) => ends?.[at] ?? eos.has(Number(ids[at]));
}

interface Continuation extends Running {
  readonly token: number;
  /** Its place among the next tokens. */
  readonly at: number;
  /** Row of the step before that it continues. */
  readonly row: number;
}

/** The `count` best continuations of a user's running beams, whose rows begin at `base`, best first; none of dead ones. */
function topContinuations(
  { perRow, ids, logProbabilities }: NextTokens,
  base: number,
  running: readonly Running[],
  count: number,
): Continuation[] {
  return running
    .flatMap((beam, place) =>
      Array.from({ length: perRow }, (_, i) => {
        const at = (base + place) * perRow + i;
        return {
          beam,
          at,
          row: base + place,
          token: Number(ids[at]),
          score: beam.logProbability + logProbabilities[at]!,
        };
      }),
    )
    .filter(({ score }) => score > Number.NEGATIVE_INFINITY)
    .sort((a, b) => b.score - a.score)
    .slice(0, count)
    .map(({ beam, score, ...rest }) => ({ ids: [...beam.ids, rest.token], logProbability: score, ...rest }));
}
