// Layers in blocks, one program after another: forward, keeping what the backward pass needs; backward; a token at a time. Forward and backward are one joint graph that the differentiator cuts in two.
import {
  type Feeds,
  type Float32Tensor,
  freeTensor,
  input,
  type NamedTensors,
  type Outputs,
  type Program,
  partialGradients,
  type RunOptions,
  type Runtime,
  splitForwardBackward,
  type Tensor,
  type Value,
} from '@fellrec/graph';
import { ofLayers } from '../lora.ts';
import { programCache, runOn } from '../program-cache.ts';
import { gradientName, isCacheName, named } from '../programs.ts';
import { type CutModel, isIn, type LayerOptions, type LayerRange, type Trained } from './cut-model.ts';
import type { MiddleDropout, TokenLayout } from './middle.ts';

export interface PassOptions {
  readonly trained?: Trained | undefined;
  /** In training with an adapter that has dropout. */
  readonly dropout?: MiddleDropout | undefined;
}

/** What a forward pass left for its backward pass; to be used once. */
export interface KeptPass {
  readonly bytes: number;
  /** `through`: whether the gradient of the states that came in is wanted too. */
  backward(
    gradient: Float32Tensor,
    through: boolean,
  ): Promise<{ readonly gradient: Float32Tensor | undefined; readonly gradients: NamedTensors }>;
  /**
   * Passes of their own in its place: of the first so many sequences, of the next, ..., whose `form` has to be that of
   * all. Nothing is copied: a layer's memory is free once all have gone back through it.
   * @throws if the sequences have a prefix, which belongs to all, or dropout.
   */
  cut(counts: readonly number[]): KeptPass[];
}

export interface CutLayers {
  readonly model: CutModel;
  forward(
    range: LayerRange,
    states: Float32Tensor,
    layout: TokenLayout,
    options: PassOptions,
  ): Promise<Float32Tensor>;
  /** As forward, keeping what `backward` needs. */
  forwardKept(
    range: LayerRange,
    states: Float32Tensor,
    layout: TokenLayout,
    options: PassOptions,
  ): Promise<{ readonly states: Float32Tensor; readonly kept: KeptPass }>;
  /** As forward, with the layers' keys and values by their names. */
  prompt(
    range: LayerRange,
    states: Float32Tensor,
    layout: TokenLayout,
    options: PassOptions,
  ): Promise<{ readonly states: Float32Tensor; readonly read: Record<string, Tensor> }>;
  /** One more token of every beam; `feeds` as of a `DecodingCache`. With the grown caches. */
  decode(
    range: LayerRange,
    states: Float32Tensor,
    feeds: Feeds,
    options: PassOptions,
  ): Promise<{ readonly states: Float32Tensor; readonly grown: Record<string, Tensor> }>;
  release(): Promise<void>;
}

export interface CutLayersOptions {
  /** Computes the forward pass of a layer again instead of keeping what its backward pass needs: slower, in little memory. */
  readonly recompute?: boolean;
}

type Kind = 'forward' | 'backward' | 'through' | 'decode';

/** A layer's programs, uncompiled. */
interface LayerSegments {
  readonly forward: Outputs;
  /** Outputs of `forward` that the others are fed. */
  readonly residuals: readonly string[];
  /** The gradients of what is trained; with that of the states. */
  readonly backward: Outputs;
  readonly through: Outputs;
  readonly masks: ReadonlyMap<string, Value>;
}

interface PassedLayer {
  readonly block: LayerRange;
  /** What went in. */
  readonly hidden: Float32Tensor;
  /** What came out: the states, and what was wanted besides. */
  readonly found: Record<string, Tensor>;
  readonly masks: Feeds;
  /** Gives the memory of what came out back, but for the states that the caller has. */
  free(): void;
}

const ofStates = gradientName('hidden');

export function cutLayers(
  model: CutModel,
  runtime: Runtime,
  { recompute = false }: CutLayersOptions = {},
): CutLayers {
  const programs = programCache<Kind>();
  const segments = new Map<string, LayerSegments>();

  function blockOf(block: LayerRange, layout: TokenLayout, { trained, dropout }: PassOptions) {
    const own = partOf(trained, block);
    const options = { trained: own, training: own !== undefined && dropout !== undefined };
    const form = model.form(layout);
    const variant = [block, form, describe(options.trained), options.training];
    const key = JSON.stringify(variant);
    const known = segments.get(key) ?? segmentsOfBlock(model, block, form, options, recompute);
    segments.set(key, known);
    const program = (kind: 'forward' | 'backward' | 'through') =>
      programs.get(kind, variant, async () => ({
        program: await runtime.compile(known[kind]),
        masks: known.masks,
      }));
    return { ...known, program };
  }

  /** Runs a range of layers; `wanted` says what each one hands out besides its states. */
  async function pass(
    range: LayerRange,
    states: Float32Tensor,
    layout: TokenLayout,
    options: PassOptions,
    wanted: (name: string, residuals: readonly string[]) => boolean,
  ): Promise<{ states: Float32Tensor; feeds: Feeds; layers: PassedLayer[] }> {
    const feeds = model.feeds(layout);
    const layers: PassedLayer[] = [];
    let hidden = states;
    for (const block of blocksOf(range)) {
      const { program, residuals } = blockOf(block, layout, options);
      const { program: forward, masks } = await program('forward');
      const rate = options.trained?.lora?.dropout ?? 0;
      const dropped = options.dropout && rate > 0 ? model.dropout(masks, rate, layout, options.dropout) : {};
      const outputs = [...forward.outputs].filter((name) => name === 'states' || wanted(name, residuals));
      const found = await run(forward, { ...feeds, ...dropped, hidden }, options.trained, { outputs });
      const free = () => {
        for (const tensor of Object.values(found)) if (tensor !== hidden) freeTensor(tensor);
      };
      layers.push({ block, hidden, found, masks: dropped, free });
      hidden = found.states as Float32Tensor;
    }
    return { states: hidden, feeds, layers };
  }

  function keep(
    layers: readonly PassedLayer[],
    feeds: Feeds,
    layout: TokenLayout,
    options: PassOptions,
  ): KeptPass {
    const kept = keptPass(layers, async (kind, { block, hidden, found, masks }, gradient) => {
      const { program, ...segments } = blockOf(block, layout, options);
      if (kind === 'backward' && Object.keys(segments.backward).length === 0) return {};
      const { program: back } = await program(kind);
      return run(back, { ...feeds, ...masks, ...found, hidden, gradient }, options.trained);
    });
    return {
      ...kept,
      cut(counts) {
        if (layout.prefix > 0 || layers.some(({ masks }) => Object.keys(masks).length > 0))
          throw new Error('model: a kept pass with a prefix or with dropout cannot be cut');
        const frees = layers.map(({ free }) => lastOf(counts.length, free));
        return sharesOf(counts).map((share) => {
          const part = { ...layout, lengths: layout.lengths.slice(share.from, share.to) };
          const own = layers.map((layer, i): PassedLayer => {
            const { forward } = blockOf(layer.block, layout, options);
            const found = Object.entries(layer.found).map(([name, tensor]) => [
              name,
              isOfSequences(name, forward[name]!) ? rowsOf(tensor, share) : tensor,
            ]);
            const hidden = rowsOf(layer.hidden, share) as Float32Tensor;
            return { ...layer, hidden, found: Object.fromEntries(found), free: frees[i]! };
          });
          return keep(own, model.feeds(part), part, options);
        });
      },
    };
  }

  return {
    model,
    async forward(range, states, layout, options) {
      const found = await pass(range, states, layout, options, () => false);
      return found.states;
    },

    async forwardKept(range, states, layout, options) {
      const found = await pass(range, states, layout, options, (name, residuals) => residuals.includes(name));
      return { states: found.states, kept: keep(found.layers, found.feeds, layout, options) };
    },

    async prompt(range, states, layout, options) {
      const found = await pass(range, states, layout, options, isCacheName);
      const made = found.layers.flatMap(({ found: outputs }) => Object.entries(outputs));
      return { states: found.states, read: Object.fromEntries(made.filter(([name]) => isCacheName(name))) };
    },

    async decode(range, states, feeds, options) {
      let hidden = states;
      const grown: Record<string, Tensor> = {};
      for (const block of blocksOf(range)) {
        const part = { trained: partOf(options.trained, block), training: false };
        const { program } = await programs.get('decode', [block, describe(part.trained)], async () => {
          if (!model.decoding) throw new Error('model: an encoder does not decode');
          return { program: await runtime.compile(model.decoding.layers(block, part)), masks: new Map() };
        });
        const { states: after, ...others } = await run(program, { ...feeds, hidden }, options.trained);
        Object.assign(grown, others);
        hidden = after as Float32Tensor;
      }
      return { states: hidden, grown };
    },

    release: () => programs.release([]),
  };
}

/** The graph of a layer and of its gradients, in two parts. */
function segmentsOfBlock(
  model: CutModel,
  block: LayerRange,
  form: string,
  options: LayerOptions,
  recompute: boolean,
): LayerSegments {
  const { hidden, states, parameters, masks, read } = model.layers(block, form, options);
  const seed = { value: states, gradient: input('gradient', 'float32', states.shape) };
  const found = partialGradients([seed], [hidden, ...parameters.values()]);
  const gradients = named(['hidden', ...parameters.keys()], found);
  const { [ofStates]: _, ...own } = gradients;
  const outputs = { states, ...read };
  if (recompute) return { forward: outputs, residuals: [], backward: own, through: gradients, masks };
  const { forward, backward, residuals } = splitForwardBackward(outputs, gradients);
  const { [ofStates]: __, ...ofParameters } = backward;
  return { forward, residuals, backward: ofParameters, through: backward, masks };
}

function keptPass(
  layers: readonly PassedLayer[],
  step: (
    kind: 'backward' | 'through',
    layer: PassedLayer,
    gradient: Float32Tensor,
  ) => Promise<Record<string, Tensor>>,
): Omit<KeptPass, 'cut'> {
  const left = [...layers];
  return {
    bytes: layers
      .flatMap(({ found }) => Object.values(found))
      .reduce((sum, { data }) => sum + data.byteLength, 0),
    async backward(last, through) {
      const gradients = new Map<string, Float32Tensor>();
      let gradient: Float32Tensor | undefined = last;
      while (left.length > 0 && gradient) {
        const layer = left.pop()!;
        const wanted = through || left.length > 0;
        const { [ofStates]: before, ...own }: Record<string, Tensor> = await step(
          wanted ? 'through' : 'backward',
          layer,
          gradient,
        );
        for (const [name, tensor] of Object.entries(own)) gradients.set(name, tensor as Float32Tensor);
        // Hundreds of megabytes, which would wait for the garbage collector.
        layer.free();
        if (gradient !== last) freeTensor(gradient);
        gradient = before as Float32Tensor | undefined;
      }
      return { gradient, gradients };
    },
  };
}

/** Sequences from .. to - 1 of so many. */
interface Share {
  readonly from: number;
  readonly to: number;
  readonly of: number;
}

function sharesOf(counts: readonly number[]): Share[] {
  const of = counts.reduce((sum, count) => sum + count, 0);
  let to = 0;
  return counts.map((count) => {
    const from = to;
    to += count;
    return { from, to, of };
  });
}

/** The rows of some sequences, in the memory of all. */
function rowsOf({ dtype, dims: [rows, ...others], data }: Tensor, { from, to, of }: Share): Tensor {
  const size = data.length / of;
  const dims = [(rows! / of) * (to - from), ...others];
  return { dtype, dims, data: data.subarray(from * size, to * size) } as Tensor;
}

/** Whether a value has rows of each sequence, one after another; others are the same for all. */
function isOfSequences(name: string, { shape }: Value): boolean {
  const axis = shape.findIndex((dim) => String(dim).split('*').includes('batch'));
  if (axis > 0) throw new Error(`model: "${name}" [${shape.join(', ')}] cannot be cut between sequences`);
  return axis === 0;
}

/** Done by the last of so many calls. */
function lastOf(calls: number, work: () => void): () => void {
  let left = calls;
  return () => {
    if (--left === 0) work();
  };
}

/** Layers of one program: ranges that begin elsewhere share all but their first block. */
const blockLayers = 8;

function blocksOf({ from, to }: LayerRange): LayerRange[] {
  const blocks: LayerRange[] = [];
  for (let at = from; at < to; at = blocks.at(-1)!.to)
    blocks.push({ from: at, to: Math.min(to, (Math.floor(at / blockLayers) + 1) * blockLayers) });
  return blocks;
}

/** Feeds a program what it takes. */
function run(
  program: Program,
  feeds: Feeds,
  trained: Trained | undefined,
  options?: RunOptions,
): Promise<Record<string, Tensor>> {
  return runOn(program, { ...feeds, ...Object.fromEntries(trained?.tensors ?? []) }, options);
}

/** Tells what is trained apart, but not its values. */
const describe = (trained: Trained | undefined) => trained && (trained.lora ?? [...trained.tensors.keys()]);

/** The part of what is trained that belongs to a block. */
function partOf(trained: Trained | undefined, block: LayerRange): Trained | undefined {
  if (!trained) return undefined;
  const tensors = ofLayers(trained.tensors, isIn(block));
  return tensors.size > 0 ? { ...trained, tensors } : undefined;
}
