// Dimensions: a number, or a polynomial over named sizes that are known only when a program runs (`batch*time`, `past+time`, `time+-1`).

/** A size, or its canonical expression: products joined by `*`, sums by `+`, both sorted. */
export type Dim = number | string;
export type Shape = readonly Dim[];

/** A polynomial: sorted names of a monomial (joined by `*`, '' for the constant term) to its coefficient. */
type Polynomial = Map<string, number>;

function parse(dim: Dim): Polynomial {
  if (typeof dim === 'number') return new Map([['', dim]]);
  const terms: Polynomial = new Map();
  for (const term of dim.split('+')) {
    const factors = term.split('*');
    const names = factors.filter((factor) => !isCount(factor)).sort();
    const coefficient = factors.filter(isCount).reduce((p, f) => p * Number(f), 1);
    const key = names.join('*');
    terms.set(key, (terms.get(key) ?? 0) + coefficient);
  }
  return terms;
}

const isCount = (factor: string) => /^-?\d+$/.test(factor);

function format(polynomial: Polynomial): Dim {
  const terms = [...polynomial]
    .filter(([, coefficient]) => coefficient !== 0)
    .sort(([a], [b]) => (a < b ? 1 : -1));
  if (terms.length === 0) return 0;
  if (terms.length === 1 && terms[0]![0] === '') return terms[0]![1];
  return terms
    .map(([names, coefficient]) =>
      names === '' ? `${coefficient}` : coefficient === 1 ? names : `${coefficient}*${names}`,
    )
    .join('+');
}

/** The product of dimensions, in canonical form. */
export function times(...dims: readonly Dim[]): Dim {
  return format(
    dims.map(parse).reduce(
      (a, b) => {
        const product: Polynomial = new Map();
        for (const [x, m] of a)
          for (const [y, n] of b) {
            const key = [...x.split('*'), ...y.split('*')].filter(Boolean).sort().join('*');
            product.set(key, (product.get(key) ?? 0) + m * n);
          }
        return product;
      },
      new Map([['', 1]]),
    ),
  );
}

/** The sum of dimensions, in canonical form. */
export function plus(...dims: readonly Dim[]): Dim {
  const sum: Polynomial = new Map();
  for (const dim of dims)
    for (const [key, coefficient] of parse(dim)) sum.set(key, (sum.get(key) ?? 0) + coefficient);
  return format(sum);
}

/** The sum of products that an expression stands for: per term its coefficient and names. */
export function terms(dim: Dim): readonly { coefficient: number; names: readonly string[] }[] {
  return [...parse(dim)].map(([key, coefficient]) => ({
    coefficient,
    names: key === '' ? [] : key.split('*'),
  }));
}

/** What an expression comes to; undefined if one of its names has no size. */
export function sizeOf(dim: Dim, sizes: ReadonlyMap<string, number>): number | undefined {
  let sum = 0;
  for (const { coefficient, names } of terms(dim)) {
    let product = coefficient;
    for (const name of names) product *= sizes.get(name) ?? Number.NaN;
    sum += product;
  }
  return Number.isNaN(sum) ? undefined : sum;
}

export function sameShape(a: Shape, b: Shape): boolean {
  return a.length === b.length && a.every((dim, axis) => dim === b[axis]);
}

export function showShape(shape: Shape): string {
  return `[${shape.join(', ')}]`;
}

/** The shape of an elementwise result, by NumPy's broadcasting rule. @throws if two dimensions differ and neither is 1. */
export function broadcast(a: Shape, b: Shape): Shape {
  const rank = Math.max(a.length, b.length);
  return Array.from({ length: rank }, (_, axis) => {
    const x = a[axis - rank + a.length] ?? 1;
    const y = b[axis - rank + b.length] ?? 1;
    if (x !== y && x !== 1 && y !== 1)
      throw new Error(`graph: shapes ${showShape(a)} and ${showShape(b)} do not broadcast: ${x} is not ${y}`);
    return x === 1 ? y : x;
  });
}
