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
  /** Which outputs are wanted (default: all). The others are computed, but not copied out. */
  readonly outputs?: readonly string[];
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
