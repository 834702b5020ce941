// When the item table is computed anew, in two stages: refreshed while the encoder still moves far, then frozen.

export interface ItemTableSchedule {
  /** Rounds from one refresh to the next in stage 1. */
  readonly every: number;
  /** Rounds of stage 1; afterwards the table is frozen. */
  readonly stage1Rounds: number;
}

/**
 * The round (from 0) at whose start a client computed the item table that it has in `round`, with the parameters that it
 * started that round from.
 */
export function tableRound(round: number, { every, stage1Rounds }: ItemTableSchedule): number {
  const inStage1 = Math.min(round, stage1Rounds - 1);
  return inStage1 - (inStage1 % every);
}
