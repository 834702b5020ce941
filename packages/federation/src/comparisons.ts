// What a strategy asks to know of the clients' parameters, computed where it does.
import { between } from './mixing.ts';
import type { HeldParameters } from './parameters/held.ts';
import { cosines, innerProducts, squaredDistances, squaredMoves } from './similarity.ts';
import type { Comparison, RoundStatistics, Strategy } from './strategies/strategy.ts';

/** Between the clients `present` of all `count`, once each has trained. @throws if products of nothing are asked for */
export async function comparisonsOf(
  { name, similarityOn, compares = [] }: Strategy,
  parameters: HeldParameters,
  present: readonly number[],
  count: number,
): Promise<Pick<RoundStatistics, 'cosines' | Comparison>> {
  const asks = (comparison: Comparison) => compares.includes(comparison);
  if (asks('innerProducts') && !similarityOn)
    throw new Error(`${name}: it asks for inner products, and has no similarityOn that says of what`);
  const among = (matrix: readonly (readonly number[])[]) => between(present, matrix);
  const products = similarityOn && (await parameters.products(similarityOn));
  return {
    ...(products && { cosines: among(cosines(products, count)) }),
    ...(products && asks('innerProducts') && { innerProducts: among(innerProducts(products, count)) }),
    // From the common start on: long parameters that differ by little would lose digits.
    ...(asks('squaredDistances') && {
      squaredDistances: among(squaredDistances(await parameters.products('displacement'), count)),
    }),
    ...(asks('squaredMoves') && {
      squaredMoves: among(squaredMoves(await parameters.productsWithStarts(), count)),
    }),
  };
}
