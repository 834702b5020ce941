// What fixtures/strategies.py wrote: six clients in three groups that started the round from different parameters.
import { readFileSync } from 'node:fs';
import type {
  ClusteredOptions,
  CosineMeans,
  FedampOptions,
  SimilarityForm,
  SimilarityOn,
} from '../src/index.ts';

type Matrix = readonly (readonly number[])[];

interface Fixture {
  readonly common: readonly number[];
  readonly starts: Matrix;
  readonly parameters: Matrix;
  readonly samples: readonly number[];
  readonly groups: readonly string[];
  /** FedAvg inside these. */
  readonly withinGroups: Matrix;
  /** Of the updates. */
  readonly cosineMeans: CosineMeans;
  /** By client: of its own parameters, the others' in their order, and its start. */
  readonly losses: Matrix;
  readonly cosines: Readonly<Record<SimilarityOn, Matrix>>;
  /** Of the updates. The matrix is FELLRec's without heating. */
  readonly forms: readonly {
    readonly form: SimilarityForm;
    readonly matrix: Matrix;
    readonly similarity: Matrix;
    /** By row of the matrix. */
    readonly effectiveClients: readonly number[];
  }[];
  readonly smoothing: number;
  /** Rounds one after another, of clients who come and go. */
  readonly smoothed: readonly {
    readonly clients: readonly string[];
    readonly cosines: Matrix;
    readonly smoothed: Matrix;
  }[];
  readonly squaredDistances: Matrix;
  /** `[i][j]`: from the start of i to the parameters of j. */
  readonly squaredMoves: Matrix;
  readonly fedamp: readonly { readonly options: FedampOptions; readonly matrix: Matrix }[];
  readonly fedfomo: Matrix;
  /** Each client's cluster before and after the round. */
  readonly clustered: readonly {
    readonly before: readonly number[];
    readonly options: ClusteredOptions;
    readonly after: readonly number[];
    readonly matrix: Matrix;
  }[];
}

export const fixture = JSON.parse(
  readFileSync(new URL('./fixtures/strategies.json', import.meta.url), 'utf8'),
) as Fixture;

export const reports = fixture.samples.map((samples, c) => ({
  client: `client-${c}`,
  group: fixture.groups[c]!,
  loss: 1,
  samples,
}));
