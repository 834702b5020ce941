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
}

/**
 * Log-probabilities of the next token for every beam of every user, [users * beams, vocabulary] flat, after appending
 * `tokens` to the beams `parents` (indices of the call before).
 */
export type DecodeStep = (tokens: readonly number[], parents: readonly number[]) => Promise<Float32Array>;

interface Running {
  readonly ids: readonly number[];
  readonly logProbability: number;
}
interface UserState {
  running: readonly Running[];
  finished: readonly Hypothesis[];
  /** Whether a running beam may still beat the worst finished one. */
  improvable: boolean;
}

/**
 * Beam search over users side by side; the best `beams` hypotheses of each, best first. `first` are the
 * log-probabilities after the prompts, [users, vocabulary] flat. With early_stopping = false, as transformers:
 * a user is done when no running beam's present score exceeds the worst of `beams` finished ones.
 */
export async function beamSearch(
  first: Float32Array,
  users: number,
  step: DecodeStep,
  { beams, maxNewTokens, lengthPenalty = 1, eosIds }: GenerationOptions,
): Promise<Hypothesis[][]> {
  if (beams === 1) return greedySearch(first, users, step, { maxNewTokens, eosIds, lengthPenalty });
  const vocabulary = first.length / users;
  const eos = new Set(eosIds);
  const kept = Math.max(2, 1 + eosIds.length) * beams;
  const states: UserState[] = Array.from({ length: users }, () => ({
    running: [{ ids: [], logProbability: 0 }],
    finished: [],
    improvable: true,
  }));
  let logProbabilities = first;
  for (let length = 1; ; length++) {
    const rowsPerUser = length === 1 ? 1 : beams;
    const tokens: number[] = [];
    const parents: number[] = [];
    let open = false;
    states.forEach((state, user) => {
      const base = user * rowsPerUser;
      const candidates = topContinuations(logProbabilities, vocabulary, base, state.running, kept);
      const stops = candidates.map(({ token }) => length === maxNewTokens || eos.has(token));
      if (state.improvable) {
        const justFinished = candidates
          .filter((_, i) => i < beams && stops[i])
          .map((c) => ({ ids: c.ids, score: c.logProbability / length ** lengthPenalty }));
        state.finished = [...state.finished, ...justFinished]
          .sort((a, b) => b.score - a.score)
          .slice(0, beams);
      }
      // Candidates that stop run on only where there are not enough others, far behind (as transformers' -1e9).
      const ranked = [
        ...candidates.filter((_, i) => !stops[i]),
        ...candidates.filter((_, i) => stops[i]),
      ].slice(0, beams);
      state.running = ranked;
      const best = candidates.find((_, i) => !stops[i])?.logProbability ?? Number.NEGATIVE_INFINITY;
      const worst = state.finished.length < beams ? Number.NEGATIVE_INFINITY : state.finished.at(-1)!.score;
      state.improvable &&= best / length ** lengthPenalty > worst;
      open ||= state.improvable && stops.some((stop) => !stop);
      for (const { token, row } of ranked) {
        tokens.push(token);
        parents.push(length === 1 ? user * beams : row);
      }
    });
    if (!open) return states.map(({ finished }) => [...finished]);
    logProbabilities = await step(tokens, parents);
  }
}

async function greedySearch(
  first: Float32Array,
  users: number,
  step: DecodeStep,
  { maxNewTokens, eosIds, lengthPenalty = 1 }: Omit<GenerationOptions, 'beams'>,
): Promise<Hypothesis[][]> {
  const vocabulary = first.length / users;
  const found = Array.from({ length: users }, () => ({
    ids: [] as number[],
    logProbability: 0,
    done: false,
  }));
  const rows = found.map((_, user) => user);
  let logProbabilities = first;
  for (let length = 1; ; length++) {
    const tokens = found.map((hypothesis, user) => {
      const row = logProbabilities.subarray(user * vocabulary, (user + 1) * vocabulary);
      const token = argmax(row);
      if (!hypothesis.done) {
        hypothesis.ids.push(token);
        hypothesis.logProbability += row[token]!;
        hypothesis.done = eosIds.includes(token);
      }
      return token;
    });
    if (length === maxNewTokens || found.every(({ done }) => done))
      return found.map(({ ids, logProbability }) => [
        { ids, score: logProbability / ids.length ** lengthPenalty },
      ]);
    logProbabilities = await step(tokens, rows);
  }
}

interface Continuation extends Running {
  readonly token: number;
  /** Row of the step before that it continues. */
  readonly row: number;
}

/** The `count` best continuations of a user's running beams, best first. */
function topContinuations(
  logProbabilities: Float32Array,
  vocabulary: number,
  base: number,
  running: readonly Running[],
  count: number,
): Continuation[] {
  const best: { score: number; beam: number; token: number }[] = [];
  running.forEach(({ logProbability }, beam) => {
    const offset = (base + beam) * vocabulary;
    for (let token = 0; token < vocabulary; token++) {
      const score = logProbability + logProbabilities[offset + token]!;
      if (best.length === count && score <= best[count - 1]!.score) continue;
      let place = best.length;
      while (place > 0 && best[place - 1]!.score < score) place--;
      best.splice(place, 0, { score, beam, token });
      if (best.length > count) best.pop();
    }
  });
  return best.map(({ score, beam, token }) => ({
    ids: [...running[beam]!.ids, token],
    logProbability: score,
    token,
    row: base + beam,
  }));
}

function argmax(row: Float32Array): number {
  let best = 0;
  for (let i = 1; i < row.length; i++) if (row[i]! > row[best]!) best = i;
  return best;
}
