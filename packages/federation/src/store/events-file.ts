// events.jsonl: everything the federation said, one JSON object a line, without tensors.
import { appendFile, open, readFile, truncate } from 'node:fs/promises';
import type { FederationEvent } from '../events.ts';

export interface EventsFile {
  append(event: FederationEvent): Promise<void>;
  flush(): Promise<void>;
}

/**
 * The file of a run that goes on after round `last` (undefined: from the start). What came later is cut off before the
 * first event is added: a finished run that is only read keeps its end.
 */
export function eventsFile(file: string, last: number | undefined): EventsFile {
  let cut: Promise<void> | undefined;
  return {
    async append(event) {
      cut ??= cutAfter(file, last);
      await cut;
      // A run that goes on has said this before.
      if (last !== undefined && (event.type === 'run-started' || event.type === 'client-skipped')) return;
      await appendFile(file, `${JSON.stringify(withoutTensors(event))}\n`);
    },
    async flush() {
      const handle = await open(file, 'r+');
      try {
        await handle.sync();
      } finally {
        await handle.close();
      }
    },
  };
}

function withoutTensors(event: FederationEvent): unknown {
  if (event.type !== 'round-finished') return event;
  const { type, round, state: _, ...record } = event;
  // In this order: `endOfRound` looks for it.
  return { type, round, ...record };
}

/** Keeps the lines up to the end of round `last`. */
async function cutAfter(file: string, last: number | undefined): Promise<void> {
  const text = await readFile(file).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined;
    throw error;
  });
  if (text !== undefined) await truncate(file, last === undefined ? 0 : endOfRound(text, last));
}

function endOfRound(text: Buffer, round: number): number {
  const mark = text.indexOf(`{"type":"round-finished","round":${round},`);
  return mark < 0 ? text.length : text.indexOf('\n', mark) + 1;
}
