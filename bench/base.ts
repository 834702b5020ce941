// Our model on the base that a benchmark asks for.
import { nodeRuntime } from '../packages/graph/src/index.ts';
import {
  type Base,
  bases,
  type LanguageModel,
  languageModel,
  openCheckpoint,
  quantizeBase,
} from '../packages/models/src/index.ts';

interface Options {
  readonly model: string;
  readonly cache: string;
  readonly threads: string;
  readonly base: string;
  /** Token sequences that a quantised base is calibrated on. */
  readonly calibration: readonly (readonly number[])[];
}

/** Quantises what is not yet in the cache, so that no contestant's memory and time include it. */
export async function prepare(bases: readonly string[], o: Omit<Options, 'base'>): Promise<void> {
  for (const base of bases) await openModel({ ...o, base });
}

export async function openModel(o: Options): Promise<LanguageModel> {
  const base = bases.find((known): known is Base => known === o.base);
  if (!base) throw new Error(`bench: --base ${o.base} is unknown; there are ${bases.join(', ')}`);
  const runtime = nodeRuntime({ threads: Number(o.threads) });
  const checkpoint = await openCheckpoint(o.model, { cacheDir: o.cache });
  if (base === 'float32') return languageModel(checkpoint, runtime);
  const { calibration } = o;
  return languageModel(
    checkpoint,
    runtime,
    await quantizeBase(checkpoint, { base, calibration, runtime, cacheDir: o.cache }),
  );
}
