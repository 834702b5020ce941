// The one prompt template (Alpaca's layout, as BIGRec), for training and inference alike.

/** The words for a domain: "video games", "video game", "played". */
export interface Domain {
  readonly items: string;
  readonly item: string;
  /** Past participle of what users do with them. */
  readonly used: string;
}

export const videoGames: Domain = { items: 'video games', item: 'video game', used: 'played' };

/** The prompt up to where the answer begins. `titles` are the history, oldest first. */
export function renderPrompt(titles: readonly string[], { items, item, used }: Domain): string {
  const history = titles.map((title) => `"${title}"`).join(', ');
  return `Below is an instruction that describes a task, paired with an input that provides further context. Write a response that appropriately completes the request.

### Instruction:
Given a list of ${items} the user has ${used} before, please recommend a new ${item} that the user likes to the user.

### Input:
The user has ${used} the following ${items} before:${history}

### Response:
`;
}

export function renderAnswer(title: string): string {
  return `"${title}"`;
}

/**
 * The title in a generated answer: its first line without the outer quotation marks (the last one may be missing;
 * those inside belong to the title). Empty if there is nothing.
 */
export function parseAnswer(text: string): string {
  const line = text.trimStart().split('\n')[0]!.trim();
  if (!line.startsWith('"')) return line;
  const end = line.lastIndexOf('"');
  return end > 0 ? line.slice(1, end) : line.slice(1);
}
