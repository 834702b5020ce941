// Generation on compiled programs: the prompts in one pass, then a token of every beam at a time, with the keys and values
// of prompts and beams handed on from step to step.
import { type Float32Tensor, int64, type Program, type Tensor } from '@fellrec/graph';
import { batchOf, chunks, defaultBatch, lastRows, promptMask, type Tokens } from './batch.ts';
import type { LlamaConfig } from './checkpoint/config.ts';
import {
  beamSearch,
  candidatesPerRow,
  type DecodeStep,
  type GenerationOptions,
  type Hypothesis,
} from './generation.ts';
import { rotaryTables } from './llama.ts';
import { alongTrees, likeliestTokens, type NextTokensReader } from './next-tokens.ts';
import { grownName, isCacheName } from './programs.ts';
import type { TokenTree } from './token-tree.ts';

export interface BatchOptions {
  /** Prompts computed at once, of like lengths. */
  readonly batch?: number;
  readonly onProgress?: (done: number, total: number) => void;
}

export interface TreeOptions {
  /**
   * A tree for each prompt: its hypotheses are sequences of the tree, whole, and fewer than `beams` if there are not so
   * many. End tokens end nothing then, leaves do.
   */
  readonly trees?: readonly TokenTree[];
}

/** Generates after prompts of like lengths together. `search` continues those of a batch. */
export async function generateInBatches(
  prompts: readonly (readonly number[])[],
  { batch = defaultBatch, onProgress, trees, ...options }: GenerationOptions & BatchOptions & TreeOptions,
  vocabularySize: number,
  search: (
    prompts: readonly Tokens[],
    options: GenerationOptions,
    reader: NextTokensReader,
  ) => Promise<Hypothesis[][]>,
): Promise<Hypothesis[][]> {
  for (const name of ['beams', 'maxNewTokens'] as const)
    if (!(Number.isInteger(options[name]) && options[name] >= 1))
      throw new Error(`model: ${name} is ${options[name]}; it must be a whole number from 1`);
  assertWholeSequences(prompts.length, options, trees);
  const count = candidatesPerRow(options);
  const open = prompts
    .map((ids, index) => ({ ids, index, tree: trees?.[index] }))
    .filter(({ tree }) => tree?.size !== 0)
    .sort((a, b) => a.ids.length - b.ids.length);
  const found = prompts.map((): Hypothesis[] => []);
  let done = prompts.length - open.length;
  for (const part of chunks(open, batch)) {
    const reader = trees
      ? alongTrees(
          part.map(({ tree }) => tree!),
          { beams: options.beams, count, vocabularySize },
        )
      : likeliestTokens(Math.min(count, vocabularySize));
    const hypotheses = await search(part, options, reader);
    for (const [i, { index, tree }] of part.entries())
      found[index] = tree
        ? hypotheses[i]!.map((hypothesis) => ({ ...hypothesis, sequences: tree.find(hypothesis.ids) }))
        : hypotheses[i]!;
    done += part.length;
    onProgress?.(done, prompts.length);
  }
  return found;
}

function assertWholeSequences(
  prompts: number,
  { maxNewTokens }: GenerationOptions,
  trees: readonly TokenTree[] | undefined,
): void {
  if (!trees) return;
  if (trees.length !== prompts)
    throw new Error(`model: ${trees.length} trees for ${prompts} prompts; one for each`);
  const depth = trees.reduce((deepest, tree) => Math.max(deepest, tree.depth), 0);
  if (maxNewTokens < depth)
    throw new Error(
      `model: maxNewTokens is ${maxNewTokens}, the longest sequence of a tree has ${depth} tokens; allow as many, no sequence is cut`,
    );
}

/** What all sequences of a call begin with. */
export interface Prefix {
  readonly ids: readonly number[];
  /** Its keys and values, as inputs of the programs that go on from there. */
  readonly feeds: Readonly<Record<string, Tensor>>;
}

export interface Decoder {
  readonly config: LlamaConfig;
  readonly prefix: Prefix;
  readonly promptPass: Program;
  readonly decoding: Program;
  /** The adapter's tensors. */
  readonly adapter: Readonly<Record<string, Tensor>>;
}

/** The best `beams` continuations of each prompt, best first. */
export async function continuations(
  prompts: readonly Tokens[],
  { config, prefix, promptPass, decoding, adapter }: Decoder,
  options: GenerationOptions,
  reader: NextTokensReader,
): Promise<Hypothesis[][]> {
  const batch = batchOf(config, prompts, { prefix: prefix.ids.length });
  const prompt = await promptPass.run({
    ...batch.feeds,
    ...prefix.feeds,
    ...adapter,
    ...reader.feeds(),
    rows: lastRows(prompts, batch),
  });
  const cache = decodingCache(config, prompt, {
    lengths: prompts.map(({ ids }) => ids.length),
    time: prefix.ids.length + batch.time,
    beams: options.beams,
  });
  const step: DecodeStep = async (next) => {
    const { users, tokens, parents } = next;
    const found = await decoding.run({
      ...adapter,
      ...cache.feeds(users, parents),
      ...reader.feeds(next),
      ids: int64(tokens, [users.length, options.beams]),
    });
    cache.grow(found);
    return reader.read(found);
  };
  return beamSearch(reader.read(prompt), prompts.length, step, options);
}

/** Tokens that may be generated before the rotary tables are computed anew. */
const tableStep = 64;

/** Keys and values of some layers while they decode: those of the prompts, and of what each beam has generated. */
export interface DecodingCache {
  /** Feeds of the next token of every beam of `users`, which are among those of the call before. */
  feeds(users: readonly number[], parents: readonly number[]): Record<string, Tensor>;
  /** Takes what the decoding program returned. */
  grow(found: Readonly<Record<string, Tensor>>): void;
  readonly bytes: number;
}

export function decodingCache(
  config: LlamaConfig,
  prompt: Readonly<Record<string, Tensor>>,
  { lengths, time, beams }: { lengths: readonly number[]; time: number; beams: number },
): DecodingCache {
  const names = Object.keys(prompt).filter(isCacheName);
  const empty = emptyCache(config, lengths.length * beams);
  const ofPrompts: Record<string, Float32Tensor> = {
    promptMask: promptMask(lengths, time),
    ...Object.fromEntries(names.map((name) => [`prompt.${name}`, prompt[name] as Float32Tensor])),
  };
  let generated: Record<string, Tensor> = Object.fromEntries(names.map((name) => [name, empty]));
  let tables = rotaryTables(config, Math.max(...lengths) + tableStep);
  let length = 0;
  let active = lengths.map((_, user) => user);
  return {
    feeds(users, parents) {
      if (users.length < active.length) {
        const places = users.map((user) => active.indexOf(user));
        for (const [name, tensor] of Object.entries(ofPrompts)) ofPrompts[name] = takeRows(tensor, places);
        active = [...users];
      }
      const positions = users.flatMap((user) => new Array<number>(beams).fill(lengths[user]! + length));
      const last = Math.max(...positions);
      if (last >= tables.cos.dims[0]!) tables = rotaryTables(config, 2 * last);
      return {
        ...tables,
        ...ofPrompts,
        ...generated,
        parents: int64(parents, [users.length, beams]),
        positions: int64(positions, [users.length * beams, 1]),
      };
    },
    grow(found) {
      generated = Object.fromEntries(names.map((name) => [name, found[grownName(name)]!]));
      length++;
    },
    get bytes() {
      return [...Object.values(ofPrompts), ...Object.values(generated)].reduce(
        (sum, { data }) => sum + data.byteLength,
        0,
      );
    },
  };
}

/** Keys or values of no token. */
export function emptyCache({ keyValueHeadCount, headDim }: LlamaConfig, rows: number): Float32Tensor {
  return { dtype: 'float32', dims: [rows, keyValueHeadCount, 0, headDim], data: new Float32Array(0) };
}

/** Entries of the first axis. */
function takeRows(
  { dtype, dims: [rows, ...rest], data }: Float32Tensor,
  places: readonly number[],
): Float32Tensor {
  const size = data.length / rows!;
  const taken = new Float32Array(places.length * size);
  places.forEach((place, i) => {
    taken.set(data.subarray(place * size, (place + 1) * size), i * size);
  });
  return { dtype, dims: [places.length, ...rest], data: taken };
}
