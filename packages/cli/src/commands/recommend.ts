import { print } from '../output.ts';
import { progressOn } from '../progress.ts';
import { recommend } from '../recommend.ts';
import { table } from '../table.ts';

interface Options {
  readonly client: string;
  readonly history: readonly string[];
  readonly k: number;
  readonly json?: boolean;
}

export async function run(directory: string, { json, ...request }: Options): Promise<void> {
  const found = await recommend(directory, request, progressOn(process.stderr));
  const rows = found.items.map(({ id, title }, i) => [`${i + 1}`, id, title]);
  const said = found.answer === undefined ? '' : `The model said: ${found.answer}\n\n`;
  print(found, `${said}${table(['rank', 'id', 'title'], rows)}`, { json: json ?? false });
}
