// How likely given continuations of a prompt are: log p(y | x) = sum over t of log p(y_t | x, y_<t). The prompt is
// computed up to its last token, all continuations read its keys and values, and each is the last token and its own
// tokens but the last: what predicts y_1 .. y_n.
import { int64, type Tensor } from '@fellrec/graph';
import { type Batch, chunks, type Tokens } from './batch.ts';

export interface Likelihood {
  /** Sum over the continuation's tokens. */
  readonly logProbability: number;
  /** How many these are. */
  readonly tokens: number;
}

export interface LikelihoodOptions {
  /** Continuations of one prompt computed at once, of like lengths. */
  readonly batch?: number;
}

/** Minus the log-probabilities of the tokens of some continuations, one after the other. */
type LossesBehind = (continuations: readonly (readonly number[])[]) => Promise<ArrayLike<number>>;

/** A title of a catalogue has some 15 tokens; the head's scores of as many such take 100 MB for a vocabulary of 49 152. */
const defaultBatch = 32;

/** The likelihoods of each prompt's continuations. `open` prepares a prompt. */
export async function likelihoodsBehind(
  prompts: readonly (readonly number[])[],
  continuations: readonly (readonly (readonly number[])[])[],
  { batch = defaultBatch }: LikelihoodOptions,
  open: (prompt: readonly number[]) => Promise<LossesBehind>,
): Promise<Likelihood[][]> {
  assertTokens(prompts, continuations);
  const found: Likelihood[][] = [];
  for (const [i, prompt] of prompts.entries()) {
    const likelihoods: Likelihood[] = [];
    const byLength = continuations[i]!.map((ids, index) => ({ ids, index })).sort(
      (a, b) => a.ids.length - b.ids.length,
    );
    const lossesOf = byLength.length > 0 ? await open(prompt) : undefined;
    for (const part of chunks(byLength, batch)) {
      const losses = await lossesOf!(part.map(({ ids }) => ids));
      let at = 0;
      for (const { ids, index } of part) {
        let logProbability = 0;
        for (let t = 0; t < ids.length; t++) logProbability -= losses[at++]!;
        likelihoods[index] = { logProbability, tokens: ids.length };
      }
    }
    found.push(likelihoods);
  }
  return found;
}

function assertTokens(
  prompts: readonly (readonly number[])[],
  continuations: readonly (readonly (readonly number[])[])[],
): void {
  if (continuations.length !== prompts.length)
    throw new Error(`model: continuations of ${continuations.length} prompts, there are ${prompts.length}`);
  const empty = prompts.flatMap((ids, i) => [
    ...(ids.length === 0 ? [`prompt ${i}`] : []),
    ...continuations[i]!.flatMap(({ length }, c) =>
      length === 0 ? [`continuation ${c} of prompt ${i}`] : [],
    ),
  ]);
  if (empty.length > 0) throw new Error(`model: no token in ${empty.join(', ')}; each needs one`);
}

/** Continuations as sequences whose last token is not computed: nothing follows it. */
export function sequencesBehind(
  prompt: readonly number[],
  continuations: readonly (readonly number[])[],
): Tokens[] {
  return continuations.map((ids) => ({ ids: [...prompt, ...ids.slice(0, -1)] }));
}

/** Feeds of their losses: every token of them is a label. */
export function continuationFeeds(
  continuations: readonly (readonly number[])[],
  { time }: Batch,
): { readonly rows: Tensor; readonly labels: Tensor } {
  const rows = continuations.flatMap((ids, b) => ids.map((_, t) => b * time + t));
  const labels = continuations.flat();
  return { rows: int64(rows, [rows.length]), labels: int64(labels, [labels.length]) };
}
