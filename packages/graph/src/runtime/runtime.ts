// The seam to what runs a graph: ONNX Runtime in Node or in a browser.
import type { Outputs } from '../segments.ts';
import type { Tensor } from '../tensor.ts';

export type Feeds = Readonly<Record<string, Tensor>>;

/** A compiled graph. Holds native memory until disposed. */
export interface Program<Name extends string = string> {
  /** What must be fed: inputs of the graph that no output needs are none of the program's. */
  readonly inputs: ReadonlySet<string>;
  readonly outputs: ReadonlySet<string>;
  /** @throws naming inputs that are missing, unknown, of another type, or of a shape that does not fit. */
  run(feeds: Feeds, options?: RunOptions): Promise<Record<Name, Tensor>>;
  dispose(): Promise<void>;
}

export interface RunOptions {
  /** Which outputs are wanted (default: all); the others are not handed out. */
  readonly outputs?: readonly string[];
  /** Where outputs are written to (default: new memory). */
  readonly memory?: Memory | undefined;
}

/** Lends memory for outputs. Fresh memory of hundreds of megabytes takes longer than the arithmetic that fills it. */
export interface Memory {
  take(length: number): Float32Array;
}

export interface CompileOptions {
  /**
   * Copy frozen matrices into the layout that is fastest (default true). Off, weights stay in their file's pages, which
   * all programs share: about 15 % slower, for programs that run rarely.
   */
  readonly prepack?: boolean;
}

export interface Runtime {
  compile<O extends Outputs>(outputs: O, options?: CompileOptions): Promise<Program<keyof O & string>>;
}
