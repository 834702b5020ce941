// Programs by what they compute, compiled when first asked for.
import type { Feeds, Program, RunOptions, Tensor, Value } from '@fellrec/graph';

export interface Compiled {
  readonly program: Program;
  /** Dropout masks that are among its inputs. */
  readonly masks: ReadonlyMap<string, Value>;
}

export interface ProgramCache<Kind extends string> {
  /** `variant` tells programs of one kind apart. What failed to compile is tried again. */
  get(kind: Kind, variant: unknown, compile: () => Promise<Compiled>): Promise<Compiled>;
  /** Frees the programs of some kinds, or all. */
  release(kinds: readonly string[]): Promise<void>;
}

export function programCache<Kind extends string>(): ProgramCache<Kind> {
  const compiled = new Map<string, Promise<Compiled>>();
  return {
    get(kind, variant, compile) {
      const key = `${kind} ${JSON.stringify(variant)}`;
      const known = compiled.get(key);
      if (known) return known;
      const own = compile();
      compiled.set(key, own);
      own.catch(() => compiled.get(key) === own && compiled.delete(key));
      return own;
    },
    async release(kinds) {
      const chosen = [...compiled].filter(
        ([key]) => kinds.length === 0 || kinds.some((kind) => key.startsWith(`${kind} `)),
      );
      for (const [key] of chosen) compiled.delete(key);
      const settled = await Promise.allSettled(chosen.map(([, entry]) => entry));
      for (const one of settled) if (one.status === 'fulfilled') await one.value.program.dispose();
    },
  };
}

/** Runs a program on what it takes of some feeds: a layer that is computed in part leaves others unread. */
export function runOn(program: Program, feeds: Feeds, options?: RunOptions): Promise<Record<string, Tensor>> {
  const taken = Object.entries(feeds).filter(([name]) => program.inputs.has(name));
  return program.run(Object.fromEntries(taken), options);
}
