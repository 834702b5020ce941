// Progress on its way to the server while training goes on: one report at a time, always the latest.
import type { TrainingProgress } from '@fellrec/federation';
import { hasGivenUp } from './trouble.ts';

export interface ProgressReports {
  /** @throws what the server refused an earlier report with: going on is in vain. That it is out of reach is no reason. */
  report(progress: TrainingProgress): void;
  /** Sends what is left. @throws as `report` does */
  flush(): Promise<void>;
}

export function progressReports(send: (progress: TrainingProgress) => Promise<unknown>): ProgressReports {
  let latest: TrainingProgress | undefined;
  let sending: Promise<void> | undefined;
  let refusal: { readonly error: unknown } | undefined;

  async function sendAll(): Promise<void> {
    while (latest && !refusal) {
      const progress = latest;
      latest = undefined;
      try {
        await send(progress);
      } catch (error) {
        if (!hasGivenUp(error)) refusal = { error };
      }
    }
    sending = undefined;
  }
  return {
    report(progress) {
      if (refusal) throw refusal.error;
      latest = progress;
      sending ??= sendAll();
    },
    async flush() {
      await sending;
      if (refusal) throw refusal.error;
    },
  };
}
