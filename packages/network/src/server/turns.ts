// Layers that several clients share: their passes take turns, and those that wait and fit together run as one.
import { type Float32Tensor, float32 } from '@fellrec/graph';
import type { CutLayers, KeptPass, LayerRange, PassOptions, TokenLayout } from '@fellrec/models';

export interface TurnsOptions {
  /** Rows of passes that run as one, padding included; a pass that has more runs alone. */
  readonly maxTokens: number;
}

export interface Turns extends CutLayers {
  /** Passes that wait. */
  queueLength(): number;
}

interface Pass {
  readonly range: LayerRange;
  readonly states: Float32Tensor;
  readonly layout: TokenLayout;
  readonly options: PassOptions;
}

interface Waiting<T> extends PromiseWithResolvers<T> {
  readonly pass: Pass;
}

/**
 * Layers that run one pass at a time, the oldest first: with one pass at a time of each client, nobody waits for more
 * than one run of each other client.
 *
 * Forward passes through the same layers, of the base model alone, run as one if they are padded alike and have no
 * prefix: younger ones come along with the oldest. Each gets what it would have got alone, up to rounding.
 */
export function turns(layers: CutLayers, { maxTokens }: TurnsOptions): Turns {
  const { model } = layers;
  let tail: Promise<unknown> = Promise.resolve();
  let waiting = 0;

  function inTurn<T>(work: () => Promise<T>): Promise<T> {
    const done = tail.then(work);
    tail = done.catch(() => {});
    return done;
  }

  function alone<T>(pass: () => Promise<T>): Promise<T> {
    waiting++;
    return inTurn(() => {
      waiting--;
      return pass();
    });
  }

  /** `run` finds the results of passes, one or several that fit together. */
  function joining<T>(run: (passes: readonly Pass[]) => Promise<readonly T[]>): (pass: Pass) => Promise<T> {
    let line: Waiting<T>[] = [];

    async function runAll(taken: readonly Waiting<T>[]): Promise<void> {
      if (taken.length > 1)
        try {
          const results = await run(taken.map(({ pass }) => pass));
          for (const [i, { resolve }] of taken.entries()) resolve(results[i]!);
          return;
        } catch {
          // Whoever fails is to fail alone.
        }
      for (const { pass, resolve, reject } of taken)
        await run([pass]).then(([result]) => resolve(result!), reject);
    }

    return (pass) => {
      const own: Waiting<T> = { pass, ...Promise.withResolvers<T>() };
      line.push(own);
      waiting++;
      inTurn(async () => {
        if (line[0] !== own) return; // It came along with an older one.
        const taken: Waiting<T>[] = [];
        for (const next of line) if (fit([...taken, next].map(({ pass }) => pass))) taken.push(next);
        line = line.filter((one) => !taken.includes(one));
        waiting -= taken.length;
        await runAll(taken);
      });
      return own.promise;
    };
  }

  function fit(passes: readonly Pass[]): boolean {
    if (passes.length === 1) return true;
    const { from, to } = passes[0]!.range;
    const layout = layoutOf(passes);
    const form = model.form(layout);
    const fits = (pass: Pass) =>
      pass.range.from === from &&
      pass.range.to === to &&
      pass.layout.time === layout.time &&
      pass.layout.prefix === 0 &&
      model.form(pass.layout) === form &&
      // Without an adapter dropout has nothing to do.
      pass.options.trained === undefined;
    return passes.every(fits) && layout.lengths.length * layout.time <= maxTokens;
  }

  const takingTurns = (kept: KeptPass): KeptPass => ({
    bytes: kept.bytes,
    backward: (gradient, through) => alone(() => kept.backward(gradient, through)),
    cut: (counts) => kept.cut(counts).map(takingTurns),
  });

  const forward = joining(async (passes) => {
    const { range, states, layout, options } = sideBySide(passes);
    return apart(await layers.forward(range, states, layout, options), passes);
  });

  const forwardKept = joining(async (passes) => {
    const { range, states, layout, options } = sideBySide(passes);
    const found = await layers.forwardKept(range, states, layout, options);
    const own = apart(found.states, passes);
    const kept =
      passes.length === 1 ? [found.kept] : found.kept.cut(passes.map(({ layout }) => layout.lengths.length));
    return kept.map((part, i) => ({ states: own[i]!, kept: takingTurns(part) }));
  });

  return {
    model,
    forward: (range, states, layout, options) => forward({ range, states, layout, options }),
    forwardKept: (range, states, layout, options) => forwardKept({ range, states, layout, options }),
    prompt: (...pass) => alone(() => layers.prompt(...pass)),
    decode: (...pass) => alone(() => layers.decode(...pass)),
    release: () => inTurn(() => layers.release()),
    queueLength: () => waiting,
  };
}

/** Passes that fit together as one. */
function sideBySide(passes: readonly Pass[]): Pass {
  const first = passes[0]!;
  if (passes.length === 1) return first;
  const columns = first.states.dims[1]!;
  const layout = layoutOf(passes);
  const rows = layout.lengths.length * layout.time;
  const states = float32(new Float32Array(rows * columns), [rows, columns]);
  let at = 0;
  for (const { states: own } of passes) {
    states.data.set(own.data, at);
    at += own.data.length;
  }
  return { ...first, states, layout, options: {} };
}

function layoutOf(passes: readonly Pass[]): TokenLayout {
  return { ...passes[0]!.layout, lengths: passes.flatMap(({ layout }) => layout.lengths) };
}

/** Each pass' states, in memory of their own: an answer is kept for retries, those beside it need not be. */
function apart(states: Float32Tensor, passes: readonly Pass[]): Float32Tensor[] {
  if (passes.length === 1) return [states];
  let at = 0;
  return passes.map(({ states: { dims, data } }) => {
    const from = at;
    at += data.length;
    return float32(states.data.slice(from, at), dims);
  });
}
