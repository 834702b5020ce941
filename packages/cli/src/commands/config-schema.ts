import { configJsonSchema } from '../config-schema.ts';

export async function run(): Promise<void> {
  process.stdout.write(`${JSON.stringify(configJsonSchema(), undefined, 2)}\n`);
}
