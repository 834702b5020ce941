// What a method recommended to each test user, as metrics: the file that comparisons over users are made from.
import { join } from 'node:path';
import { writeWhole } from '@fellrec/federation';
import type { Metrics } from '@fellrec/recsys';
import { z } from 'zod';
import { readIfThere } from '../read-if-there.ts';

const file = 'test-users.json';

/** One row a user: its id and a value for each metric. */
const schema = z.strictObject({
  metrics: z.array(z.string()),
  users: z.array(z.tuple([z.string()], z.number())),
});

export type UserMetrics = ReadonlyMap<string, Metrics>;

export async function writeUserMetrics(directory: string, users: UserMetrics): Promise<void> {
  const [first] = users.values();
  const metrics = Object.keys(first ?? {});
  const rows = [...users].map(([user, values]) =>
    JSON.stringify([user, ...metrics.map((name) => values[name]!)]),
  );
  await writeWhole(
    join(directory, file),
    `{"metrics": ${JSON.stringify(metrics)},\n"users": [\n${rows.join(',\n')}\n]}\n`,
  );
}

/** Undefined if there is no such file. @throws if it is damaged. */
export async function readUserMetrics(directory: string): Promise<UserMetrics | undefined> {
  const path = join(directory, file);
  const text = await readIfThere(path);
  if (text === undefined) return undefined;
  let parsed: z.infer<typeof schema>;
  try {
    parsed = schema.parse(JSON.parse(text));
    if (parsed.users.some(({ length }) => length !== parsed.metrics.length + 1))
      throw new Error('its rows differ in length');
  } catch (cause) {
    throw new Error(
      `run: ${path} is damaged: ${(cause as Error).message}; delete it and go on with --resume`,
      { cause },
    );
  }
  return new Map(
    parsed.users.map(([user, ...values]) => [
      user,
      Object.fromEntries(parsed.metrics.map((name, i) => [name, values[i]!])),
    ]),
  );
}
