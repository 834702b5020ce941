// ONNX Runtime in Node, on the CPU.
import { availableParallelism } from 'node:os';
import { dirname, join, relative, sep } from 'node:path';
import * as ort from 'onnxruntime-node';
import { type Shape, sizeOf } from '../dim.ts';
import { emit, type OnnxModel } from '../onnx/emit.ts';
import type { Outputs } from '../segments.ts';
import type { StoredTensor, Tensor } from '../tensor.ts';
import { topological } from '../value.ts';
import type { CompileOptions, Feeds, Program, RunOptions, Runtime } from './runtime.ts';

export interface NodeRuntimeOptions {
  /** Threads that one program computes with; as many as there are cores if absent. */
  readonly threads?: number;
  /**
   * Whether threads go on spinning after a run, for the next one (default true): a little faster for a program alone,
   * far slower where several programs or processes take turns.
   */
  readonly spinning?: boolean;
  /** Every program writes ONNX Runtime's profile (JSON, Chrome's tracing format) here when it is disposed. */
  readonly profileFolder?: string;
}

/** A runtime that computes on the CPU. Weights are mapped from their files. */
export function nodeRuntime({
  threads = availableParallelism(),
  spinning = true,
  profileFolder,
}: NodeRuntimeOptions = {}): Runtime {
  return {
    async compile<O extends Outputs>(outputs: O, { prepack = true }: CompileOptions = {}) {
      const folder = commonFolder(outputs);
      const model = emit(outputs, ({ file }) => relative(folder, file));
      const session = await ort.InferenceSession.create(model.bytes, {
        executionProviders: ['cpu'],
        intraOpNumThreads: threads,
        // Lengths vary from batch to batch, so a pattern of allocations made for one shape does not serve the next.
        enableMemPattern: false,
        logSeverityLevel: 3,
        ...(profileFolder && { enableProfiling: true, profileFilePrefix: join(profileFolder, 'program') }),
        extra: {
          session: {
            model_external_initializers_file_folder_path: folder,
            ...(!prepack && { disable_prepacking: '1' }),
            ...(!spinning && { force_spinning_stop: '1' }),
          },
        },
      });
      return program(session, model, profileFolder !== undefined) as Program<keyof O & string>;
    },
  };
}

function program(session: ort.InferenceSession, model: OnnxModel, profiled: boolean): Program {
  return {
    inputs: new Set(model.inputs.keys()),
    outputs: new Set(model.outputs.keys()),
    async run(feeds, { outputs = [...model.outputs.keys()] }: RunOptions = {}) {
      checkFeeds(model, feeds);
      const found = await session.run(
        Object.fromEntries(
          Object.entries(feeds).map(([name, { dtype, data, dims }]) => [
            name,
            new ort.Tensor(dtype, data as never, dims),
          ]),
        ),
        outputs,
      );
      return Object.fromEntries(
        Object.entries(found).map(([name, { type, data, dims }]) => [
          name,
          { dtype: type, data, dims } as Tensor,
        ]),
      );
    },
    async dispose() {
      if (profiled) session.endProfiling();
      await session.release();
    },
  };
}

function checkFeeds(model: OnnxModel, feeds: Feeds): void {
  const problems: string[] = [];
  const sizes = new Map<string, number>();
  for (const name of Object.keys(feeds))
    if (!model.inputs.has(name)) problems.push(`"${name}" is not an input`);
  for (const [name, { dtype, shape }] of model.inputs) {
    const fed = feeds[name];
    if (!fed) problems.push(`"${name}" is missing`);
    else if (fed.dtype !== dtype) problems.push(`"${name}" is ${fed.dtype}, the graph wants ${dtype}`);
    else if (!fits(fed.dims, shape, sizes))
      problems.push(`"${name}" is [${fed.dims.join(', ')}], the graph wants [${shape.join(', ')}]`);
  }
  for (const [dim, size] of sizes) {
    const expected = sizeOf(dim, sizes) ?? size;
    if (expected !== size) problems.push(`${dim} is ${size}, by the sizes of its names it is ${expected}`);
  }
  if (problems.length > 0)
    throw new Error(`graph: what is fed does not fit the program: ${problems.join('; ')}`);
}

/** Whether dimensions fit a shape, given the sizes bound so far by their names or terms; binds those that it meets first. */
function fits(dims: readonly number[], shape: Shape, sizes: Map<string, number>): boolean {
  if (dims.length !== shape.length) return false;
  return shape.every((dim, axis) => {
    const size = dims[axis]!;
    if (typeof dim === 'number') return dim === size;
    const bound = sizes.get(dim) ?? size;
    sizes.set(dim, bound);
    return bound === size;
  });
}

/** The deepest folder that holds all files of a graph's weights: ONNX Runtime looks for them below one folder. */
function commonFolder(outputs: Outputs): string {
  const files = topological(Object.values(outputs)).order.flatMap(({ operation }): StoredTensor[] => {
    if (operation.kind === 'weight') return [operation.stored];
    return operation.kind === 'quantizedLinear' ? [operation.forward.values, operation.forward.scales] : [];
  });
  const folders = files.map(({ file }) => dirname(file).split(sep));
  const [first, ...rest] = folders;
  if (!first) return process.cwd();
  const shared = first.findIndex((part, depth) => rest.some((folder) => folder[depth] !== part));
  return (shared === -1 ? first : first.slice(0, shared)).join(sep) || sep;
}
