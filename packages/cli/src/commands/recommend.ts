import { print } from '../output.ts';
import { progressOn } from '../progress.ts';
import { type RecommendedTitles, recommend } from '../recommend.ts';
import { table } from '../table.ts';

interface Options {
  readonly client?: string;
  readonly history: readonly string[];
  readonly k: number;
  readonly set?: readonly string[];
  readonly explain?: boolean;
  readonly json?: boolean;
}

export async function run(directory: string, { json, explain = false, ...request }: Options): Promise<void> {
  const found = await recommend(directory, request, progressOn(process.stderr));
  print(found, found.reason ?? (explain ? explained(found) : listed(found)), { json: json ?? false });
}

function listed({ items }: RecommendedTitles): string {
  return table(
    ['rank', 'id', 'title'],
    items.map(({ id, title }, i) => [`${i + 1}`, id, title]),
  );
}

/** With what the model said, or how likely it found each title where it was asked. */
function explained({ items, answer }: RecommendedTitles): string {
  const isAsked = items.some(({ likelihood }) => likelihood);
  const rows = items.map(({ id, title, score, likelihood }, i) => [
    `${i + 1}`,
    id,
    title,
    score.toFixed(4),
    ...(isAsked ? [likelihood?.logProbability.toFixed(3) ?? '-', String(likelihood?.tokens ?? '-')] : []),
  ]);
  const said = answer === undefined ? '' : `The model said: ${answer}\n\n`;
  const header = ['rank', 'id', 'title', 'score', ...(isAsked ? ['log-probability', 'tokens'] : [])];
  return `${said}${table(header, rows)}`;
}
