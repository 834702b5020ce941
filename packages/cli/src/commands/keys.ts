import { join } from 'node:path';
import { createKeys, keysProblems, writeKeys } from '@fellrec/network';
import { ConfigError } from '../config.ts';
import { print } from '../output.ts';

interface Options {
  readonly clients: readonly string[];
  readonly host: readonly string[];
  readonly days: number;
  readonly output: string;
  readonly force?: boolean;
  readonly json?: boolean;
}

const warning = 'For tests: whoever has ca.key can be any client and the server.';

export async function run({
  clients,
  host: hosts,
  days,
  output,
  force = false,
  json,
}: Options): Promise<void> {
  const problems = keysProblems({ clients, hosts, days });
  if (problems.length > 0) throw new ConfigError(`keys: ${problems.join('\n')}`);
  const files = await createKeys({ clients, hosts, days });
  await writeKeys(output, files, { force });
  const names = files.map(({ name }) => name);
  print(
    { folder: output, clients, hosts, days, files: names, warning },
    describe(output, clients, hosts[0]!, names),
    { json: json ?? false },
  );
}

function describe(
  folder: string,
  clients: readonly string[],
  host: string,
  files: readonly string[],
): string {
  const client = clients[0]!;
  const file = (name: string) => join(folder, name);
  const address = `https://${host.includes(':') ? `[${host}]` : host}:7443`;
  return `${warning}

${folder}: ${files.join(', ')}

With tokens:
  fellrec serve ... --tls-cert ${file('server.crt')} --tls-key ${file('server.key')} --tokens ${file('tokens.json')}
  fellrec join ${address} --ca ${file('ca.crt')} --token ${file(`${client}.token`)}

With certificates:
  fellrec serve ... --tls-cert ${file('server.crt')} --tls-key ${file('server.key')} --client-ca ${file('ca.crt')} --names ${clients.join(' ')}
  fellrec join ${address} --ca ${file('ca.crt')} --cert ${file(`${client}.crt`)} --key ${file(`${client}.key`)}`;
}
