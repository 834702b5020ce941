// Passes through layers that several clients share: each gets what it would have got alone, and none waits for long.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Float32Tensor, float32, nodeRuntime, type Runtime, random, type Tensor } from '@fellrec/graph';
import {
  type CutLayers,
  type CutModel,
  cutLayers,
  type KeptPass,
  type LayerRange,
  llama,
  llamaCut,
  openCheckpoint,
  openRecformer,
  type PassOptions,
  recformerCut,
  type TokenLayout,
} from '@fellrec/models';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { turns } from '../src/server/turns.ts';

const columns = 2;
const maxTokens = 15;

type Method = 'forward' | 'forwardKept' | 'prompt' | 'decode' | 'backward';

/** What a client asks for. Every row of its states begins with its name, so that a run tells whose passes it is of. */
interface Asked {
  readonly name: number;
  readonly method: Method;
  readonly range: LayerRange;
  readonly layout: TokenLayout;
  readonly trained: boolean;
  readonly dropout: boolean;
  readonly fails: boolean;
}

interface Run {
  readonly method: Method;
  readonly names: readonly number[];
}

const isMany = (lengths: readonly number[]) => lengths.reduce((sum, n) => sum + n, 0) > 8;
const rowCount = ({ lengths, time, prefix }: TokenLayout) => prefix + lengths.length * time;
const failing = -1;

/** What comes of states depends on the range, and on where in its sequence a row is. */
function toyResult({ from, to }: LayerRange, states: Float32Tensor, layout: TokenLayout): Float32Tensor {
  const { lengths, time, prefix } = layout;
  const factor = (row: number) => {
    const [sequence, t] = [Math.floor((row - prefix) / time), (row - prefix) % time];
    return row < prefix ? from : to + (t < lengths[sequence]! ? lengths[sequence]! : 0);
  };
  const data = states.data.map((x, i) => x * factor(Math.floor(i / columns)));
  return float32(data, states.dims);
}

const toyGradient = (states: Float32Tensor, gradient: Float32Tensor): Float32Tensor =>
  float32(
    gradient.data.map((g, i) => g * states.data[i]!),
    states.dims,
  );

/** Layers that do one thing at a time, in the time that `busy` takes. */
function toyLayers(busy: () => Promise<void>, onRun: (run: Run) => void = () => {}): CutLayers {
  let isRunning = false;
  async function run<T>(method: Method, { dims, data }: Float32Tensor, work: () => T): Promise<T> {
    if (isRunning) throw new Error('toy: two passes at once');
    const names = Array.from({ length: dims[0]! }, (_, row) => data[row * columns]!);
    onRun({ method, names: [...new Set(names)] });
    isRunning = true;
    await busy();
    isRunning = false;
    if (data.includes(failing)) throw new Error(`toy: ${names[0]} fails`);
    return work();
  }
  function kept(states: Float32Tensor, layout: TokenLayout): KeptPass {
    return {
      bytes: states.data.byteLength,
      backward: (gradient) =>
        run('backward', gradient, () => ({ gradient: toyGradient(states, gradient), gradients: new Map() })),
      cut(counts) {
        let at = 0;
        return counts.map((count) => {
          const lengths = layout.lengths.slice(at, at + count);
          const rows = count * layout.time;
          const from = at * layout.time * columns;
          at += count;
          const own = states.data.slice(from, from + rows * columns);
          return kept(float32(own, [rows, columns]), { ...layout, lengths });
        });
      },
    };
  }
  const model = { form: ({ lengths }) => (isMany(lengths) ? 'many' : 'few') } as Pick<CutModel, 'form'>;
  return {
    model: model as CutModel,
    forward: (range, states, layout) => run('forward', states, () => toyResult(range, states, layout)),
    forwardKept: (range, states, layout) =>
      run('forwardKept', states, () => ({
        states: toyResult(range, states, layout),
        kept: kept(states, layout),
      })),
    prompt: (range, states, layout) =>
      run('prompt', states, () => ({ states: toyResult(range, states, layout), read: {} })),
    decode: (_, states) => run('decode', states, () => ({ states, grown: {} })),
    release: async () => {},
  };
}

function statesOf({ name, layout, fails }: Asked): Float32Tensor {
  const rows = rowCount(layout);
  const data = Array.from({ length: rows }, (_, row) => [name, fails ? failing : row + 1]).flat();
  return float32(data, [rows, columns]);
}

function optionsOf({ trained, dropout }: Asked): PassOptions {
  return {
    ...(trained && { trained: { tensors: new Map() } }),
    ...(dropout && { dropout: { seed: [1], sequences: [] } }),
  };
}

describe('passes of several clients', () => {
  const lengthsOf = fc.array(fc.integer({ min: 1, max: 3 }), { minLength: 1, maxLength: 3 });
  const mostly = <T>(usual: T, ...others: T[]) =>
    fc.oneof(
      { weight: 9, arbitrary: fc.constant(usual) },
      { weight: 1, arbitrary: fc.constantFrom(...others) },
    );
  const anyPass = fc
    .record({
      method: mostly<Method>('forwardKept', 'forward', 'prompt', 'decode'),
      range: fc.record({ from: mostly(1, 2), to: mostly(4, 5) }),
      lengths: lengthsOf,
      time: mostly(3, 4),
      hasPrefix: mostly(false, true),
      trained: mostly(false, true),
      dropout: fc.boolean(),
      fails: mostly(false, true),
    })
    .map(({ lengths, time, hasPrefix, ...rest }) => {
      const prefix = hasPrefix ? 2 : 0;
      return { ...rest, layout: { lengths: lengths.map((own) => prefix + own), time, prefix } };
    });

  /** Whether passes may run as one. */
  function mayJoin(passes: readonly Asked[]): boolean {
    const [first] = passes as [Asked];
    const sequences = passes.flatMap(({ layout }) => layout.lengths);
    return (
      ['forward', 'forwardKept'].includes(first.method) &&
      passes.every(
        ({ method, range, layout, trained }) =>
          method === first.method &&
          range.from === first.range.from &&
          range.to === first.range.to &&
          layout.time === first.layout.time &&
          layout.prefix === 0 &&
          isMany(layout.lengths) === isMany(sequences) &&
          !trained,
      ) &&
      sequences.length * first.layout.time <= maxTokens
    );
  }

  it('take turns, oldest first, and run as one where they fit', async () => {
    let joined = 0;
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.array(anyPass, { minLength: 1, maxLength: 3 }), { minLength: 2, maxLength: 6 }),
        fc.scheduler(),
        async (clients, scheduler) => {
          const pause = () => scheduler.schedule(Promise.resolve());
          const waiting: (Asked & { readonly runsBefore: number })[] = [];
          /** Names of passes that ran as one and failed: each runs again, alone. */
          const again: number[] = [];
          let runs = 0;

          function expectFair({ method, names }: Run): void {
            if (again.length > 0) {
              expect(names).toEqual([again.shift()]);
              return;
            }
            const passes = waiting.filter(({ name }) => names.includes(name));
            const others = waiting.filter((pass) => !passes.includes(pass));
            expect(names[0], 'the oldest runs').toBe(waiting[0]?.name);
            expect(names, 'in their order').toEqual(passes.map(({ name }) => name));
            expect(method).toBe(passes[0]!.method);
            for (const { runsBefore } of passes)
              expect(runs - runsBefore, 'runs of others before').toBeLessThan(clients.length);
            if (passes.length > 1) expect(mayJoin(passes), 'they fit').toBe(true);
            for (const other of others)
              expect(mayJoin([...passes, other]), 'all that fit come along').toBe(false);
            if (passes.length > 1) joined++;
            if (passes.length > 1 && passes.some(({ fails }) => fails)) again.push(...names);
            waiting.splice(0, waiting.length, ...others);
            runs++;
          }
          // What is thrown in a run is the run's: it would be taken for a pass that fails.
          const wrong: unknown[] = [];
          const layers = toyLayers(pause, (run) => {
            try {
              expectFair(run);
            } catch (error) {
              wrong.push(error);
            }
          });
          const shared = turns(layers, { maxTokens });

          async function expectResult(
            asked: Asked,
            pass: () => Promise<Float32Tensor | undefined>,
            expected: Float32Tensor,
          ): Promise<void> {
            waiting.push({ ...asked, runsBefore: runs });
            const found = pass();
            expect(shared.queueLength()).toBe(waiting.length);
            if (asked.fails) await expect(found).rejects.toThrow(`toy: ${asked.name} fails`);
            else expect(await found).toEqual(expected);
          }

          async function ask(asked: Asked): Promise<void> {
            const { method, range, layout, fails } = asked;
            const states = statesOf(asked);
            const options = optionsOf(asked);
            let kept: KeptPass | undefined;
            const passes = {
              forward: () => shared.forward(range, states, layout, options),
              async forwardKept() {
                const found = await shared.forwardKept(range, states, layout, options);
                kept = found.kept;
                return found.states;
              },
              prompt: async () => (await shared.prompt(range, states, layout, options)).states,
              decode: async () => (await shared.decode(range, states, {}, options)).states,
              backward: async () => (await kept!.backward(states, true)).gradient,
            };
            await expectResult(
              asked,
              passes[method],
              method === 'decode' ? states : toyResult(range, states, layout),
            );
            if (!kept || fails) return;
            expect(kept.bytes).toBe(states.data.byteLength);
            await pause();
            await expectResult(
              { ...asked, method: 'backward' },
              passes.backward,
              toyGradient(states, states),
            );
          }

          let names = 0;
          const all = clients.map(async (passes) => {
            for (const pass of passes) {
              await pause();
              await ask({ ...pass, name: ++names });
            }
          });
          await scheduler.waitFor(Promise.all(all));
          expect(wrong).toEqual([]);
          expect(shared.queueLength()).toBe(0);
        },
      ),
      { numRuns: 300 },
    );
    expect(joined).toBeGreaterThan(20);
  });

  it('wait for one run of each other client, however much these ask', async () => {
    const order: number[] = [];
    const shared = turns(
      toyLayers(
        () => new Promise(setImmediate),
        ({ names }) => order.push(...names),
      ),
      { maxTokens },
    );
    const asked = (name: number): Asked => ({
      name,
      method: 'decode',
      range: { from: 1, to: 4 },
      layout: { lengths: [1], time: 1, prefix: 0 },
      trained: false,
      dropout: false,
      fails: name === 2,
    });
    const client = async (name: number) => {
      const pass = asked(name);
      for (let i = 0; i < 3; i++) await shared.decode(pass.range, statesOf(pass), {}, {}).catch(() => {});
    };
    await Promise.all([1, 2, 3].map(client));
    expect(order).toEqual([1, 2, 3, 1, 2, 3, 1, 2, 3]);
  });
});

const folder = mkdtempSync(join(tmpdir(), 'fellrec-turns-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const architectures: Record<string, () => Promise<CutModel>> = {
  async llama() {
    const directory = join(import.meta.dirname, '../../cli/quickstart/stories260k');
    const checkpoint = await openCheckpoint(directory, { cacheDir: folder });
    return llamaCut(llama(checkpoint), checkpoint.config);
  },
  'recformer, dense': () => recformerOf('dense'),
  'recformer, blocks': () => recformerOf('blocks'),
};
async function recformerOf(form: 'dense' | 'blocks'): Promise<CutModel> {
  const directory = join(import.meta.dirname, '../../models/test/fixtures/recformer-tiny');
  return recformerCut(await openRecformer(directory, { cacheDir: folder }), () => form);
}

const variants = Object.keys(architectures).flatMap((name) =>
  [false, true].map((recompute) => [name, recompute] as const),
);

describe.each(variants)('passes that run as one: %s, recompute: %s', (name, recompute) => {
  let layers: CutLayers;
  let range: LayerRange;
  beforeAll(async () => {
    const cut = await architectures[name]!();
    range = { from: 1, to: cut.layerCount };
    layers = cutLayers(cut, nodeRuntime({ threads: 1 }), { recompute });
  });
  afterAll(() => layers.release());

  /** Three clients'; what one says of dropout is of layers that have an adapter. */
  function clients() {
    return [[3, 16], [9], [16, 1, 12]].map((lengths, i) => {
      const layout = { lengths, time: 16, prefix: 0 };
      const options = i === 1 ? { dropout: { seed: [1] as const, sequences: [0] } } : {};
      return {
        layout,
        options,
        states: drawn(layout, `states ${i}`),
        gradient: drawn(layout, `gradient ${i}`),
      };
    });
  }
  function drawn(layout: TokenLayout, what: string): Float32Tensor {
    const dims = [rowCount(layout), layers.model.hiddenSize];
    const { normal } = random(1, what);
    return float32(Float32Array.from({ length: dims[0]! * dims[1]! }, normal), dims);
  }

  /** The layers taking turns, with room for all clients; and how many rows each pass through them had. */
  function shared() {
    const rows: number[] = [];
    const noted: CutLayers = {
      ...layers,
      forward(...pass) {
        rows.push(rowCount(pass[2]));
        return layers.forward(...pass);
      },
      forwardKept(...pass) {
        rows.push(rowCount(pass[2]));
        return layers.forwardKept(...pass);
      },
    };
    return { rows, ...turns(noted, { maxTokens: 6 * 16 }) };
  }

  it('forward', async () => {
    const { rows, forward } = shared();
    const found = await Promise.all(
      clients().map(({ states, layout, options }) => forward(range, states, layout, options)),
    );
    expect(rows).toEqual([6 * 16]);
    for (const [i, { states, layout }] of clients().entries())
      expectNear(found[i]!, await layers.forward(range, states, layout, {}));
  });

  it.each([
    ['in order', [0, 1, 2]],
    ['in another', [2, 0, 1]],
  ])('forward, and backward each, %s', async (_, order) => {
    const { rows, forwardKept } = shared();
    const found = await Promise.all(
      clients().map(({ states, layout, options }) => forwardKept(range, states, layout, options)),
    );
    expect(rows).toEqual([6 * 16]);
    for (const i of order) {
      const { states, layout, gradient } = clients()[i]!;
      const expected = await layers.forwardKept(range, states, layout, {});
      const back = await expected.kept.backward(gradient, true);
      expect(found[i]!.kept.bytes).toBe(expected.kept.bytes);
      expectNear(found[i]!.states, expected.states);
      expectNear((await found[i]!.kept.backward(gradient, true)).gradient!, back.gradient!);
    }
  });
});

/** Up to 1e-6 of the largest. */
function expectNear(found: Float32Tensor, expected: Float32Tensor): void {
  expect(found.dims).toEqual(expected.dims);
  const largest = Math.max(...expected.data.map(Math.abs));
  const differences = expected.data.map((x, i) => Math.abs(found.data[i]! - x));
  expect(Math.max(...differences) / largest).toBeLessThan(1e-6);
}

describe('a kept pass that is cut', () => {
  const range = { from: 0, to: 1 };
  const rowsOf = (count: number) => float32(new Float32Array(count * 64).fill(1), [count, 64]);

  it('gives its memory back once all parts have gone back', async () => {
    const runtime = nodeRuntime({ threads: 1 });
    const made: Tensor[] = [];
    const noting: Runtime = {
      async compile(outputs, options) {
        const program = await runtime.compile(outputs, options);
        return {
          ...program,
          async run(...fed) {
            const found = await program.run(...fed);
            made.push(...Object.values<Tensor>(found));
            return found;
          },
        };
      },
    };
    const layers = cutLayers(await architectures.llama!(), noting);
    const layout = { lengths: [4, 3], time: 4, prefix: 0 };
    const { states, kept } = await layers.forwardKept(range, rowsOf(8), layout, {});
    const others = made.filter((tensor) => tensor !== states);
    const bytes = () => others.reduce((sum, { data }) => sum + data.byteLength, 0);
    const before = bytes();
    const [first, second] = kept.cut([1, 1]) as [KeptPass, KeptPass];
    await first.backward(rowsOf(4), true);
    expect(bytes()).toBe(before);
    await second.backward(rowsOf(4), true);
    expect(bytes()).toBe(0);
    expect(states.data).toHaveLength(8 * 64);
    await layers.release();
  });

  it('has no prefix', async () => {
    const layers = cutLayers(await architectures.llama!(), nodeRuntime({ threads: 1 }));
    const { kept } = await layers.forwardKept(range, rowsOf(10), { lengths: [4, 5], time: 4, prefix: 2 }, {});
    expect(() => kept.cut([1, 1])).toThrow('prefix');
    await layers.release();
  });
});
