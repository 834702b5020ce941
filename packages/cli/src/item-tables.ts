// Which parameters a client's item vectors are computed with: its own, or, between two refreshes and in stage 2, those
// that it had when it last computed them. They are in the run's folder, so a run that goes on has them too.
import type { RunStore } from '@fellrec/federation';
import type { NamedTensors } from '@fellrec/graph';
import { tableRound } from '@fellrec/recsys';
import type { Config } from './config.ts';
import { recommendingWith } from './strategy.ts';

export interface ItemTables {
  /**
   * The parameters of the table that a client has at the start of `round` or, which is the same, after the round before;
   * undefined if they are those that it starts the round from.
   */
  of(client: string, round: number): Promise<NamedTensors | undefined>;
}

export function itemTables(config: Config, store: RunStore, initial: NamedTensors): ItemTables {
  const schedule = scheduleOf(config);
  return {
    async of(client, round) {
      const computed = schedule ? tableRound(round, schedule) : round;
      if (computed === round) return undefined;
      return computed === 0
        ? initial
        : recommendingWith(config, await store.parameters(client, computed - 1));
    },
  };
}

/** Rounds whose mixed parameters tables of later rounds are computed with. */
export function keepsForItems(config: Config): (round: number) => boolean {
  const schedule = scheduleOf(config);
  return (round) =>
    schedule !== undefined &&
    tableRound(round + 1, schedule) === round + 1 &&
    tableRound(round + 2, schedule) === round + 1;
}

function scheduleOf({ recommender, recformer }: Config) {
  const { every, stage1Rounds = Number.MAX_SAFE_INTEGER } = recformer.itemTable;
  return recommender === 'recformer' ? { every, stage1Rounds } : undefined;
}
