// A recommender whose model is cut: its parameters are partly the client's, partly those of layers elsewhere.
import type { NamedTensors } from '@fellrec/graph';
import type { Recommender } from './recommender.ts';

/** The layers elsewhere, as far as they learn. */
export interface Elsewhere {
  /** Whose parameters they are, by a tensor's name. */
  holds(name: string): boolean;
  /** Begins from these parameters, which it holds. */
  begin(parameters: NamedTensors): void;
  /** What it has learned since. */
  learned(): NamedTensors;
}

/** Takes and returns the parameters of both sides; `own` is the recommender that has only the client's. */
export function splitRecommender(own: Recommender, elsewhere: Elsewhere): Recommender {
  const part = (parameters: NamedTensors, theirs: boolean) =>
    new Map([...parameters].filter(([name]) => elsewhere.holds(name) === theirs));
  /** Hands the other side its part and returns the client's. */
  const begin = (parameters: NamedTensors): NamedTensors => {
    elsewhere.begin(part(parameters, true));
    return part(parameters, false);
  };
  const items = <O extends { readonly items?: NamedTensors }>(options: O): O =>
    options.items ? { ...options, items: part(options.items, false) } : options;
  return {
    ...own,
    async train(samples, parameters, options) {
      const trained = await own.train(samples, begin(parameters), items(options));
      const all = new Map([...trained.parameters, ...elsewhere.learned()]);
      // In the order in which they came.
      return {
        ...trained,
        parameters: new Map([...parameters.keys()].map((name) => [name, all.get(name)!])),
      };
    },
    loss: (samples, parameters, table) => own.loss(samples, begin(parameters), table && part(table, false)),
    score: (queries, parameters, options) => own.score(queries, begin(parameters), items(options)),
    recommend: (queries, parameters, options) => own.recommend(queries, begin(parameters), items(options)),
    evaluate: (samples, parameters, options) => own.evaluate(samples, begin(parameters), items(options)),
  };
}
