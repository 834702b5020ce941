import { resolve } from 'node:path';
import {
  type AttackName,
  type AuditResult,
  attackNames,
  type Interval,
  type MetricName,
  metricNames,
  parseDefence,
  type Recovery,
} from '@fellrec/audit';
import { type AuditOptions, audit } from '../audit.ts';
import { ConfigError } from '../config.ts';
import { print } from '../output.ts';
import { progressOn } from '../progress.ts';
import { auditSection } from '../report/audit.ts';
import { writeReport } from '../report/page.ts';
import { table } from '../table.ts';

export interface Flags extends Omit<AuditOptions, 'attacks' | 'defences' | 'metric' | 'capture'> {
  readonly capture?: string;
  readonly client?: string;
  readonly attacks?: readonly string[];
  readonly defences: readonly string[];
  readonly metric: string;
  readonly output?: string;
  readonly json?: boolean;
}

export async function run({ output, json, ...flags }: Flags): Promise<void> {
  const progress = progressOn(process.stderr);
  const result = await audit(checked(flags), progress);
  if (output !== undefined) {
    await writeReport(resolve(output), 'FELLRec audit', [await auditSection(result)]);
    progress.line(`report: ${resolve(output)}`);
  }
  print(result, describe(result), { json: json ?? false });
}

function checked({
  attacks = attackNames,
  defences,
  metric,
  capture,
  client,
  ...flags
}: Omit<Flags, 'output' | 'json'>): AuditOptions {
  const unknown = attacks.filter((name) => !attackNames.includes(name as AttackName));
  if (unknown.length > 0)
    throw new ConfigError(`audit: no attack "${unknown.join('", "')}"; there are ${attackNames.join(', ')}`);
  if (!metricNames.includes(metric as MetricName))
    throw new ConfigError(`audit: no metric "${metric}"; there are ${metricNames.join(', ')}`);
  if (capture !== undefined && (flags.layers || flags.defenceLayers || defences.length > 0))
    throw new ConfigError(
      'audit: with --capture the depth is that of the recording, and states left as they did',
    );
  try {
    return {
      ...flags,
      ...(capture !== undefined && { capture: { folder: capture, client } }),
      attacks: attacks as AttackName[],
      metric: metric as MetricName,
      defences: defences.map(parseDefence),
    };
  } catch (cause) {
    throw new ConfigError((cause as Error).message, { cause });
  }
}

const columns: Readonly<Record<MetricName, string>> = {
  tokenAccuracy: 'tokens',
  tokenRecall: 'recall',
  exact: 'exact',
  rougeL: 'ROUGE-L',
  items: 'items',
  target: 'target',
  similarity: 'similarity',
};

const interval = (found: Interval | undefined) =>
  found ? `${found.mean.toFixed(3)} [${found.low.toFixed(3)}, ${found.high.toFixed(3)}]` : '-';

function describe(result: AuditResult): string {
  const { attacks, floors, defences, recommendation, inverter, search, data } = result;
  const used = metricNames.filter((name) => [...attacks, ...floors].some(({ recovery }) => recovery[name]));
  const cells = (recovery: Recovery) => used.map((name) => interval(recovery[name]));
  const rows = attacks.map(({ attack, depth, recovery }) => [`${depth}  ${attack}`, ...cells(recovery)]);
  for (const { floor, recovery } of floors) rows.push([`-  ${floor}`, ...cells(recovery)]);
  const parts = [
    `${data.users} users of ${data.name}, ${data.historyTokens} history tokens; means with 95 % intervals over users`,
    table(['depth, attack', ...used.map((name) => columns[name])], rows),
  ];
  if (inverter)
    parts.push(
      `inverter: trained on ${inverter.tokens} tokens of ${inverter.users} other users, knows ${inverter.vocabulary} tokens; token accuracy on others ${inverter.accuracy.map(({ depth, accuracy }) => `${depth}: ${accuracy.toFixed(3)}`).join(', ')}`,
    );
  if (search)
    parts.push(
      `search: at most ${search.budget} candidates a token, ${search.candidates} run in all; a state counts as reproduced within ${search.tolerance} of its length${searchEnds(search)}`,
    );
  if (result.gradients.length > 0) parts.push(gradientTable(result));
  if (defences.length > 0) parts.push(defenceTable(result));
  parts.push(recommendation.text);
  return parts.join('\n\n');
}

function searchEnds({ ends }: NonNullable<AuditResult['search']>): string {
  if (ends.length === 0) return '';
  const each = ends.map(
    ({ depth, complete, unlisted, unmatched, mistaken }) =>
      `${depth}: ${complete}/${unlisted}/${unmatched}/${mistaken}`,
  );
  return `; users found completely/stopped at a token not among the candidates/at one whose state was not reproduced/at a wrong one ${each.join(', ')}`;
}

function gradientTable({ gradients }: AuditResult): string {
  const rows = gradients.flatMap(({ attack, setting, metrics }) =>
    Object.entries(metrics).map(([name, found]) => [`${attack}: ${setting}`, name, interval(found)]),
  );
  return table(['gradients and adapters', '', ''], rows);
}

function defenceTable({ defences, recommendation: { metric } }: AuditResult): string {
  const names = [...new Set(defences.flatMap(({ attacks }) => attacks.map(({ attack }) => attack)))];
  const rows = defences.map(({ defence, depth, attacks, quality }) => [
    `${depth}  ${defence}`,
    interval(quality.recallAt10),
    quality.loss.toFixed(3),
    ...names.map((name) => interval(attacks.find(({ attack }) => attack === name)?.recovery[metric])),
  ]);
  return table(
    ['depth, defence', 'R@10', 'loss', ...names.map((name) => `${name} (${columns[metric]})`)],
    rows,
  );
}
