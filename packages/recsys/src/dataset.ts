// A data set in memory: a catalogue and, per user, the parts of the split, oldest item first.
import type { Catalogue } from './catalogue.ts';

export type SplitName = 'leave-one-out' | 'global-time';

export interface User {
  readonly id: string;
  readonly train: readonly number[];
  readonly validation: readonly number[];
  readonly test: readonly number[];
  /** Columns of the users' file, for a partition by one of them. */
  readonly attributes: Readonly<Record<string, string>>;
}

export interface Dataset {
  readonly name: string;
  readonly split: SplitName;
  readonly catalogue: Catalogue;
  readonly users: readonly User[];
  /** sha256 of catalogue, interactions and attributes. */
  readonly hash: string;
}

export interface DatasetStats {
  readonly users: number;
  readonly items: number;
  readonly interactions: number;
  /** Share of all user-item pairs that occur. */
  readonly density: number;
  readonly meanLength: number;
  readonly longest: number;
  readonly train: number;
  readonly validation: number;
  readonly test: number;
}

export function datasetStats({ users, catalogue }: Dataset): DatasetStats {
  const count = (part: 'train' | 'validation' | 'test') =>
    users.reduce((n, user) => n + user[part].length, 0);
  const [train, validation, test] = [count('train'), count('validation'), count('test')];
  const interactions = train + validation + test;
  return {
    users: users.length,
    items: catalogue.items.length,
    interactions,
    density: interactions / (users.length * catalogue.items.length),
    meanLength: interactions / users.length,
    longest: users.reduce((n, u) => Math.max(n, u.train.length + u.validation.length + u.test.length), 0),
    train,
    validation,
    test,
  };
}
